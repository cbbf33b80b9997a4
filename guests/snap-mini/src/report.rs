//! The text report, in the order of SNAP's, and the JSON summary.
//!
//! Written step by step by `run` and flushed after each, so that a console
//! follows the run. Numbers only; no decision is made here.

use crate::failure::Failure;
use crate::fields::Published;
use crate::input::Input;
use crate::solver::StepOutcome;
use std::fmt::Write as _;
use std::io::{BufWriter, Write};
use std::time::Duration;

/// Where the report goes.
pub(crate) struct Report {
    out: BufWriter<Box<dyn Write>>,
}

/// Everything one step has to say.
#[derive(Debug)]
pub(crate) struct StepLine<'a> {
    /// The step, from 1.
    pub(crate) step: u64,
    /// Simulated time of the flux.
    pub(crate) time: f64,
    /// What the solver did.
    pub(crate) outcome: &'a StepOutcome,
    /// Spectrum, when it is to be printed.
    pub(crate) spectrum: Option<&'a [f64]>,
    /// Time of the solve.
    pub(crate) solve: Duration,
    /// What became of the publish.
    pub(crate) published: Published,
    /// Time of the publish call.
    pub(crate) publish: Duration,
}

/// Totals of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Totals {
    /// Steps done.
    pub(crate) steps: u64,
    /// Snapshots published.
    pub(crate) published: u64,
    /// Publishes refused because every bank was held.
    pub(crate) dropped: u64,
    /// Microseconds of each successful publish.
    pub(crate) publish_us: Vec<f64>,
    /// Milliseconds of each solve.
    pub(crate) solve_ms: Vec<f64>,
    /// Milliseconds of spectrum and checksum, all steps together.
    pub(crate) check_ms: f64,
    /// Group sweeps.
    pub(crate) sweeps: usize,
    /// Whether every step converged.
    pub(crate) converged: bool,
    /// Bytes of the flux.
    pub(crate) flux_bytes: u64,
    /// Bytes of the arena; 0 without.
    pub(crate) arena_bytes: u64,
    /// Checksum of the last flux that was checked.
    pub(crate) checksum: u64,
}

impl Totals {
    /// Mean milliseconds of a solve.
    fn solve_ms_per_step(&self) -> f64 {
        mean(&self.solve_ms)
    }

    /// One line of JSON.
    pub(crate) fn json(&self) -> String {
        let list = |values: &[f64]| {
            let items: Vec<String> = values.iter().map(|v| format!("{v:.3}")).collect();
            items.join(",")
        };
        format!(
            "{{\"steps\":{},\"published\":{},\"dropped\":{},\"publish_us\":[{}],\
             \"solve_ms_per_step\":{:.3},\"solve_ms\":[{}],\"check_ms\":{:.3},\
             \"converged\":{},\"flux_bytes\":{},\"arena_bytes\":{},\"checksum\":\"{:016x}\"}}",
            self.steps,
            self.published,
            self.dropped,
            list(&self.publish_us),
            self.solve_ms_per_step(),
            list(&self.solve_ms),
            self.check_ms,
            self.converged,
            self.flux_bytes,
            self.arena_bytes,
            self.checksum,
        )
    }
}

impl Report {
    /// A report into a file, or onto standard output for `-`.
    pub(crate) fn open(path: &str) -> Result<Self, Failure> {
        let out: Box<dyn Write> = match path {
            "-" => Box::new(std::io::stdout()),
            _ => Box::new(
                std::fs::File::create(path)
                    .map_err(|error| Failure::new(format!("creating {path}"), error))?,
            ),
        };
        Ok(Self {
            out: BufWriter::new(out),
        })
    }

    /// Writes text and flushes.
    fn put(&mut self, text: &str) -> Result<(), Failure> {
        self.out
            .write_all(text.as_bytes())
            .and_then(|()| self.out.flush())
            .map_err(|error| Failure::new("writing the report", error))
    }

    /// Echoes the input.
    pub(crate) fn input(&mut self, input: &Input, memory: &str) -> Result<(), Failure> {
        self.put(&echo(input, memory))
    }

    /// One step.
    pub(crate) fn step(&mut self, line: &StepLine<'_>) -> Result<(), Failure> {
        self.put(&step_text(line))
    }

    /// The end: timing and totals.
    pub(crate) fn totals(&mut self, totals: &Totals, unknowns: usize) -> Result<(), Failure> {
        self.put(&totals_text(totals, unknowns))
    }
}

fn echo(input: &Input, memory: &str) -> String {
    let [nx, ny, nz] = input.cells;
    let [lx, ly, lz] = input.extent;
    let mut text = format!(
        "snap-mini: discrete-ordinates transport\n\n\
         input\n  ndimen={} nx={nx} ny={ny} nz={nz} lx={lx} ly={ly} lz={lz}\n  \
         nang={} ng={} epsi={:e} iitm={} oitm={}\n  \
         timedep={} tf={} nsteps={} mat_opt={} src_opt={} fixup={} popout={}\n",
        input.ndimen,
        input.nang,
        input.ng,
        input.epsi,
        input.iitm,
        input.oitm,
        u8::from(input.timedep),
        input.tf,
        input.nsteps,
        input.mat_opt,
        input.src_opt,
        u8::from(input.fixup),
        input.popout,
    );
    if !input.without_effect.is_empty() {
        text += &format!(
            "  without effect here: {}\n",
            input.without_effect.join(" ")
        );
    }
    text + &format!("  flux in {memory}\n")
}

/// Writing into a string does not fail; the results of `writeln!` are unit.
fn step_text(line: &StepLine<'_>) -> String {
    let mut text = format!(
        "\ncycle {}  time {:.6e}\n  outer  inner  max change\n",
        line.step, line.time
    );
    for (number, row) in (1..).zip(&line.outcome.outers) {
        let _ = writeln!(text, "  {number:5}  {:5}  {:.3e}", row.inners, row.error);
    }
    let balance = line.outcome.balance;
    let _ = writeln!(
        text,
        "  converged {}  balance {:+.2e}  (source {:.6e} absorption {:.6e} leakage {:.6e} accumulation {:.6e})",
        if line.outcome.converged { "yes" } else { "no" },
        balance.residual(),
        balance.source,
        balance.absorption,
        balance.leakage,
        balance.accumulation,
    );
    if let Some(spectrum) = line.spectrum {
        text += "  group  spectrum\n";
        for (group, value) in (1..).zip(spectrum) {
            let _ = writeln!(text, "  {group:5}  {value:.12e}");
        }
    }
    let us = line.publish.as_secs_f64() * 1e6;
    let publish = match line.published {
        Published::Generation(generation) => format!("publish {us:.1} us  generation {generation}"),
        Published::Dropped => format!("publish {us:.1} us  dropped: every bank is held"),
        Published::Off => "publish off".to_owned(),
    };
    let _ = writeln!(
        text,
        "  solve {:.3} ms  {publish}",
        line.solve.as_secs_f64() * 1e3
    );
    text
}

fn totals_text(totals: &Totals, unknowns: usize) -> String {
    let solve_ms: f64 = totals.solve_ms.iter().sum();
    let work = (totals.sweeps * unknowns).max(1) as f64;
    format!(
        "\ntiming\n  steps {}  solve {:.3} ms per step, {solve_ms:.3} ms in all\n  \
         spectrum and checksum {:.3} ms in all\n  \
         published {}  dropped {}  publish {:.1} us mean\n  \
         grind time {:.3} ns per angle, cell and group sweep\n  \
         converged {}  checksum {:016x}\n",
        totals.steps,
        totals.solve_ms_per_step(),
        totals.check_ms,
        totals.published,
        totals.dropped,
        mean(&totals.publish_us),
        solve_ms * 1e6 / work,
        if totals.converged { "yes" } else { "no" },
        totals.checksum,
    )
}

/// Mean of some values; 0 of none.
fn mean(values: &[f64]) -> f64 {
    match values.len() {
        0 => 0.0,
        len => values.iter().sum::<f64>() / len as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::solver::{Balance, OuterRow};

    #[test]
    fn the_input_echo_lists_keys_without_effect() {
        let input = Input {
            without_effect: vec!["npey".to_owned()],
            ..Input::default()
        };
        let text = echo(&input, "ordinary memory");
        assert!(text.contains("nx=4 ny=1 nz=1"), "{text}");
        assert!(text.contains("without effect here: npey"), "{text}");
        assert!(!echo(&Input::default(), "x").contains("without effect"));
    }

    #[test]
    fn a_step_shows_iterations_spectrum_and_publish() {
        let outcome = StepOutcome {
            outers: vec![OuterRow {
                inners: 12,
                error: 1.5e-5,
            }],
            converged: true,
            balance: Balance {
                source: 2.0,
                absorption: 1.0,
                leakage: 1.0,
                accumulation: 0.0,
            },
            sweeps: 13,
        };
        let mut line = StepLine {
            step: 3,
            time: 0.25,
            outcome: &outcome,
            spectrum: Some(&[1.0, 2.5]),
            solve: Duration::from_micros(1500),
            published: Published::Generation(3),
            publish: Duration::from_nanos(12_340),
        };
        let text = step_text(&line);
        assert!(text.contains("      1     12  1.500e-5"), "{text}");
        assert!(text.contains("converged yes  balance +0.00e0"), "{text}");
        assert!(text.contains("      2  2.500000000000e0"), "{text}");
        assert!(
            text.contains("solve 1.500 ms  publish 12.3 us  generation 3"),
            "{text}"
        );
        line.published = Published::Dropped;
        assert!(step_text(&line).contains("dropped"));
    }

    #[test]
    fn the_summary_is_one_line_of_json() {
        let totals = Totals {
            steps: 2,
            published: 1,
            dropped: 1,
            publish_us: vec![12.5],
            solve_ms: vec![1.0, 3.0],
            converged: true,
            checksum: 0xff,
            ..Totals::default()
        };
        let json = totals.json();
        assert!(
            json.starts_with(
                "{\"steps\":2,\"published\":1,\"dropped\":1,\"publish_us\":[12.500],\
             \"solve_ms_per_step\":2.000,"
            ),
            "{json}"
        );
        assert!(
            json.contains("\"converged\":true")
                && json.ends_with("\"checksum\":\"00000000000000ff\"}")
        );
        assert_eq!(json.lines().count(), 1);
    }
}
