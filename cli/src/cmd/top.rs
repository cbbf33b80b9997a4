//! `top`: the enclaves and what they do per second, again and again.
//!
//! A plain table, drawn over itself on a terminal and one after the other
//! elsewhere; with `--json` one line per look. The figures are those of `list`
//! and `stats`.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use clap::Args;
use enclave_vmm::failure::Failure;
use serde::Serialize;

use super::{show, stats};
use crate::locate;
use crate::output::{self, Format, Reader};

/// Cursor home, and clear what is below: what stays the same does not flicker.
const HOME: &str = "\x1b[H\x1b[J";

/// Show enclaves and what they do, again and again.
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value = "1",
          value_parser = clap::value_parser!(u32).range(1..=3600))]
    every: u32,
    /// How often to look (default: until interrupted).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    count: Option<u32>,
}

/// One enclave at one look.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Line {
    #[serde(flatten)]
    row: show::Row,
    /// What was counted per second, by name.
    per_second: BTreeMap<&'static str, u64>,
}

impl Top {
    pub(crate) fn run(&self, format: Format) -> Result<(), Failure> {
        let run = locate::run_dir()?;
        let draws = format == Format::Text && std::io::stdout().is_terminal();
        let mut before = stats::by_enclave()?;
        let mut next = Instant::now();
        for _ in 0..self.count.unwrap_or(u32::MAX) {
            next += Duration::from_secs(self.every.into());
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            let now = stats::by_enclave()?;
            let lines = lines(show::rows(&run)?, &before, &now, self.every.into());
            let reader = match format {
                Format::Json => output::json_line("top", &lines)?,
                Format::Text => {
                    let head = if draws { HOME } else { "" };
                    output::stream(format!("{head}{}", table(&lines)).as_bytes())?
                }
            };
            if reader == Reader::Gone {
                break;
            }
            before = now;
        }
        Ok(())
    }
}

/// Counts by enclave and name.
type Counts = BTreeMap<String, BTreeMap<&'static str, u64>>;

fn lines(rows: Vec<show::Row>, before: &Counts, now: &Counts, seconds: u64) -> Vec<Line> {
    let rates = |name: &str| -> BTreeMap<&'static str, u64> {
        let then = before.get(name);
        let counts = now.get(name).into_iter().flatten();
        counts
            .map(|(&what, count)| {
                let then = then.and_then(|then| then.get(what)).unwrap_or(&0);
                // Seldom is not never.
                (what, count.saturating_sub(*then).div_ceil(seconds))
            })
            .collect()
    };
    rows.into_iter()
        .map(|row| Line {
            per_second: rates(&row.name),
            row,
        })
        .collect()
}

fn table(lines: &[Line]) -> String {
    let shown = ["exits", "forwarded", "published", "dropped"];
    let cells: Vec<Vec<String>> = lines
        .iter()
        .map(|line| {
            let row = &line.row;
            let mut cells = vec![row.name.clone(), row.state.clone()];
            cells.extend(shown.map(|what| match line.per_second.get(what) {
                Some(rate) => rate.to_string(),
                None => "-".to_owned(),
            }));
            cells.push(row.uptime_ms.map(output::duration).unwrap_or_default());
            cells.push(output::printable(&row.program));
            cells
        })
        .collect();
    let heading = [
        "NAME",
        "STATE",
        "EXITS/S",
        "FORWARDED/S",
        "PUBLISHED/S",
        "DROPPED/S",
        "UPTIME",
        "PROGRAM",
    ];
    output::format_table(&heading, &cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_stand_beside_their_enclave_and_a_dash_where_nothing_counts() {
        let counts = |exits| -> Counts { [("a1".to_owned(), [("exits", exits)].into())].into() };
        let row = |name: &str| show::Row {
            name: name.to_owned(),
            state: "idle".to_owned(),
            ..show::Row::default()
        };
        let lines = lines(vec![row("a1"), row("b")], &counts(10), &counts(31), 2);
        assert_eq!(lines[0].per_second["exits"], 11);
        assert!(lines[1].per_second.is_empty());
        let text = table(&lines);
        let words: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(words[..4], ["a1", "idle", "11", "-"]);
    }
}
