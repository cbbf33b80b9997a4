//! A live table, JSON lines or CSV.
//!
//! Results go to standard output, flushed line by line, because somebody may be
//! watching or piping. Formatting is pure; [`Output`] only writes.

use crate::analysis::peak;
use crate::reading::Reading;
use serde::Serialize;
use std::io::{self, Write};

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Columns for people.
    Table,
    /// JSON lines.
    Json,
    /// Comma-separated spectra.
    Csv,
}

/// Totals of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Summary {
    /// Snapshots read.
    pub(crate) snapshots: u64,
    /// Snapshots checked and whole.
    pub(crate) verified: u64,
    /// Snapshots that could not be checked wholly.
    pub(crate) unverified: u64,
    /// Snapshots that were not whole.
    pub(crate) torn: u64,
    /// Snapshots published that we never saw.
    pub(crate) missed: u64,
    /// Why the run ended.
    pub(crate) end: String,
}

/// A line of JSON.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line<'a> {
    Step(StepLine<'a>),
    Summary(&'a Summary),
}

/// One snapshot as JSON.
#[derive(Debug, Serialize)]
struct StepLine<'a> {
    step: u64,
    time: f64,
    generation: u64,
    bytes: u64,
    runs: usize,
    chunks_copied: u64,
    publish_cycles: u64,
    peak_group: usize,
    peak_value: f64,
    spectrum: &'a [f64],
    checksum_ok: Option<bool>,
    spectrum_ok: Option<bool>,
    valid: bool,
    missed: u64,
    age_us: f64,
}

/// Writes results in one format.
#[derive(Debug)]
pub(crate) struct Output<W> {
    format: Format,
    out: W,
    lines: u64,
}

impl<W: Write> Output<W> {
    /// An output that has written nothing yet.
    pub(crate) fn new(format: Format, out: W) -> Self {
        Self {
            format,
            out,
            lines: 0,
        }
    }

    /// One snapshot.
    pub(crate) fn reading(&mut self, reading: &Reading, missed: u64) -> io::Result<()> {
        if self.lines == 0 {
            match self.format {
                Format::Table => writeln!(self.out, "{TABLE_HEAD}")?,
                Format::Csv => writeln!(self.out, "{}", csv_head(reading.spectrum.len()))?,
                Format::Json => {}
            }
        }
        self.lines += 1;
        let line = match self.format {
            Format::Table => table_line(reading, missed),
            Format::Csv => csv_line(reading),
            Format::Json => json_line(reading, missed)?,
        };
        writeln!(self.out, "{line}")?;
        self.out.flush()
    }

    /// The end. With CSV the summary would spoil the columns, so it is left out.
    pub(crate) fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        match self.format {
            Format::Table => writeln!(self.out, "{}", table_summary(summary))?,
            Format::Json => {
                writeln!(
                    self.out,
                    "{}",
                    serde_json::to_string(&Line::Summary(summary))?
                )?;
            }
            Format::Csv => {}
        }
        self.out.flush()
    }
}

const TABLE_HEAD: &str =
    "  step         time  gen    runs  copied  publish cyc  peak    value  whole  missed   age us";

fn table_line(reading: &Reading, missed: u64) -> String {
    let (group, value) = peak(&reading.spectrum).unwrap_or((0, 0.0));
    let whole = match reading.verdict() {
        crate::reading::Verdict::Verified => "yes",
        crate::reading::Verdict::Unverified => "-",
        crate::reading::Verdict::Torn => "TORN",
    };
    format!(
        "{:6}  {:11.4e}  {:3}  {:6}  {:6}  {:11}  {group:4}  {value:7.3}  {whole:>5}  {missed:6}  {:7.0}",
        reading.step,
        reading.time,
        reading.generation,
        reading.runs,
        reading.chunks_copied,
        reading.publish_cycles,
        reading.age_us,
    )
}

fn table_summary(summary: &Summary) -> String {
    format!(
        "snapshots {}  verified {}  unverified {}  torn {}  missed {}  end: {}",
        summary.snapshots,
        summary.verified,
        summary.unverified,
        summary.torn,
        summary.missed,
        summary.end,
    )
}

fn json_line(reading: &Reading, missed: u64) -> io::Result<String> {
    let (peak_group, peak_value) = peak(&reading.spectrum).unwrap_or((0, 0.0));
    let line = Line::Step(StepLine {
        step: reading.step,
        time: reading.time,
        generation: reading.generation,
        bytes: reading.bytes,
        runs: reading.runs,
        chunks_copied: reading.chunks_copied,
        publish_cycles: reading.publish_cycles,
        peak_group,
        peak_value,
        spectrum: &reading.spectrum,
        checksum_ok: reading.checksum_ok,
        spectrum_ok: reading.spectrum_ok,
        valid: reading.is_valid,
        missed,
        age_us: reading.age_us,
    });
    Ok(serde_json::to_string(&line)?)
}

fn csv_head(groups: usize) -> String {
    let columns: String = (1..=groups)
        .map(|group| format!(",group_{group}"))
        .collect();
    format!("step,time,generation{columns}")
}

fn csv_line(reading: &Reading) -> String {
    let values: String = reading
        .spectrum
        .iter()
        .map(|value| format!(",{value:e}"))
        .collect();
    format!(
        "{},{:e},{}{values}",
        reading.step, reading.time, reading.generation
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading::tests::reading;

    fn printed(format: Format) -> String {
        let mut bytes = Vec::new();
        let mut output = Output::new(format, &mut bytes);
        output.reading(&reading(), 1).unwrap();
        let torn = Reading {
            checksum_ok: Some(false),
            ..reading()
        };
        output.reading(&torn, 2).unwrap();
        let summary = Summary {
            snapshots: 2,
            torn: 1,
            end: "closed".into(),
            ..Summary::default()
        };
        output.summary(&summary).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn json_has_one_object_per_line() {
        let text = printed(Format::Json);
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0]["type"], "step");
        assert_eq!(lines[0]["peak_group"], 2);
        assert_eq!(lines[0]["checksum_ok"], true);
        assert_eq!(lines[0]["age_us"], 42.5);
        assert_eq!(lines[1]["checksum_ok"], false);
        assert_eq!(lines[1]["missed"], 2);
        assert_eq!(lines[2]["type"], "summary");
        assert_eq!(lines[2]["torn"], 1);
    }

    #[test]
    fn csv_has_one_head_and_a_column_per_group() {
        let expected = "step,time,generation,group_1,group_2,group_3\n\
                        3,2.5e-1,4,1e0,3e0,2e0\n3,2.5e-1,4,1e0,3e0,2e0\n";
        assert_eq!(printed(Format::Csv), expected);
    }

    #[test]
    fn the_table_says_what_is_torn() {
        let text = printed(Format::Table);
        assert_eq!(text.lines().count(), 4);
        assert!(text.contains("TORN"), "{text}");
        assert!(
            text.contains("torn 1") && text.contains("end: closed"),
            "{text}"
        );
        let widths: Vec<usize> = text.lines().take(3).map(str::len).collect();
        assert_eq!(widths[0], widths[1]);
    }
}
