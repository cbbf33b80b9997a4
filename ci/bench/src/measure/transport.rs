//! A whole simulation with a snapshot each step and a reader attached, against
//! the same without snapshots: `snap-mini` on its three benchmark decks.

use super::Plan;
use crate::figures::{Figure, Figures};
use crate::session::{self, Enclave, Session};
use crate::stats::{Pair, median};
use anyhow::{Context as _, ensure};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

/// What the largest deck should stay below; noted, not asserted, because the
/// reader shares the machine's memory with the simulation.
const GOAL: f64 = 1.03;
/// Decks, and how often a quick run solves each.
const DECKS: [(&str, usize); 3] = [("small", 1), ("medium", 1), ("large", 0)];
/// Keys that replace a deck's own: fewer iterations and steps, so that three
/// pairs of runs take a minute. It makes snapshots ten times as frequent, for
/// the same solving, as the decks themselves do.
const SHORTER: &str = "  nsteps=3 iitm=2 oitm=1\n/";
/// Flag of the program.
const NO_SNAPSHOTS: &str = "--no-snapshots";

/// Writes the shortened decks to a folder of the run; returns it.
pub(super) fn decks(session: &Session) -> anyhow::Result<PathBuf> {
    let folder = session.folder("decks")?;
    for (deck, _) in DECKS {
        let text = fs::read_to_string(shipped(deck)).with_context(|| format!("read {deck}.inp"))?;
        let text = shortened(&text).with_context(|| format!("{deck}.inp has no end"))?;
        fs::write(folder.join(format!("{deck}.inp")), text).context("write a deck")?;
    }
    Ok(folder)
}

/// A deck as it is in the source tree.
fn shipped(deck: &str) -> PathBuf {
    let inputs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guests/snap-mini/inputs");
    inputs.join(format!("{deck}.inp"))
}

/// A deck that ends with [`SHORTER`]: the last value of a key counts.
fn shortened(deck: &str) -> Option<String> {
    let (before, after) = deck.rsplit_once("\n/")?;
    Some(format!("{before}\n{SHORTER}{after}"))
}

/// Measures each deck.
pub(super) fn measure(
    plan: &Plan,
    session: &Session,
    enclave: &Enclave<'_>,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    for (deck, quick) in DECKS {
        let mut times = Pair::default();
        let mut published = 0;
        for _ in 0..plan.blocks(3, quick) {
            let with = with_reader(session, enclave, deck)?;
            times.first.push(milliseconds(&with));
            published += count(&with, "published");
            times
                .second
                .push(milliseconds(&run(enclave, deck, &[NO_SNAPSHOTS])?));
        }
        if times.first.is_empty() {
            continue;
        }
        ensure!(published > 0, "{deck}: nothing was published");
        let middle = |values: &[f64]| median(values).unwrap_or_default();
        let name = format!("snap-mini {deck}, with snapshots / without");
        figures.add(
            Figure::reported(name, times.ratio()?, "ratio")
                .detail("with_ms", middle(&times.first))
                .detail("without_ms", middle(&times.second))
                .detail("ratio_of_minima", times.ratio_of_minima())
                .detail("published", published)
                .detail("pairs", times.first.len())
                .detail("goal", GOAL),
        );
    }
    Ok(())
}

/// One run while `spectrum` follows it.
fn with_reader(session: &Session, enclave: &Enclave<'_>, deck: &str) -> anyhow::Result<Value> {
    let reader = session
        .program("spectrum")
        .args(["snap/flux", "--policy", "latest", "--json"])
        .stdout(Stdio::null())
        .spawn()
        .context("start spectrum")?;
    let mut reader = Reader(reader);
    let summary = run(enclave, deck, &[])?;
    let status = reader.0.wait().context("wait for spectrum")?;
    ensure!(status.success(), "spectrum: {status}");
    Ok(summary)
}

/// The running reader; killed if the run fails.
struct Reader(Child);

impl Drop for Reader {
    fn drop(&mut self) {
        // After a wait both fail, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One run; its summary.
fn run(enclave: &Enclave<'_>, deck: &str, more: &[&str]) -> anyhow::Result<Value> {
    let mut command = enclave.run("snap-mini");
    command.args(["--input", &format!("/data/{deck}.inp"), "--json-summary"]);
    let text = session::capture(command.args(more))?;
    let last = text.lines().last().context("snap-mini printed nothing")?;
    serde_json::from_str(last).context("understand the summary of snap-mini")
}

/// Milliseconds of all solves and publishes.
fn milliseconds(summary: &Value) -> f64 {
    let sum = |key: &str| -> f64 {
        let list = summary[key].as_array();
        list.into_iter().flatten().filter_map(Value::as_f64).sum()
    };
    sum("solve_ms") + sum("publish_us") / 1e3
}

fn count(summary: &Value, key: &str) -> u64 {
    summary[key].as_u64().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_time_of_a_run_is_its_solves_and_publishes() {
        let summary = json!({"solve_ms": [10.0, 20.0], "publish_us": [500.0, 1500.0]});
        assert_eq!(milliseconds(&summary), 32.0);
        assert_eq!(milliseconds(&json!({"solve_ms": [1.5]})), 1.5);
    }

    #[test]
    fn a_shortened_deck_is_the_shipped_one_with_other_last_words() {
        for (deck, _) in DECKS {
            let shipped = fs::read_to_string(shipped(deck)).unwrap();
            let short = shortened(&shipped).unwrap();
            assert!(short.trim_end().ends_with(SHORTER), "{short}");
            assert!(shipped.trim_end_matches(['/', '\n']).len() < short.len());
            assert!(short.starts_with(shipped.trim_end().trim_end_matches('/')));
        }
        assert_eq!(shortened("no deck"), None);
    }
}
