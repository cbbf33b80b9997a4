//! What a demo run showed: rows, sums, table and the JSON object.
//!
//! Pure. The rows come from two sides that do not know each other: the program
//! in the enclave says what it published, the analytics process on Linux what
//! it read. They are joined by generation.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::Value;

/// One published snapshot as both sides saw it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Row {
    /// Generation of the arena.
    pub(crate) generation: u64,
    /// The program's time step.
    pub(crate) step: u64,
    /// The program's time.
    pub(crate) time: f64,
    /// Bytes the reader saw.
    pub(crate) bytes: u64,
    /// Contiguous pieces they came in.
    pub(crate) runs: u64,
    /// Chunks copied since the publish before.
    pub(crate) chunks_copied: u64,
    /// Microseconds the program spent in this publish.
    pub(crate) publish_us: f64,
    /// Cycles the kernel spent in this publish.
    pub(crate) publish_cycles: u64,
    /// Microseconds from the publish until the reader had the snapshot.
    pub(crate) age_us: f64,
    /// Energy group where the reader found the spectrum's peak.
    pub(crate) peak_group: Option<u64>,
    /// Value there.
    pub(crate) peak_value: f64,
    /// Is it what was published: checksum and spectrum as the program stored
    /// them, frames still held after reading? `None`: not all could be compared.
    pub(crate) whole: Option<bool>,
}

/// Everything a run showed.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Outcome {
    /// Time steps the program computed.
    pub(crate) steps: u64,
    /// Snapshots whose contents both sides agree on.
    pub(crate) snapshots_verified: u64,
    /// Snapshots read whose contents differ from what was published.
    pub(crate) snapshots_torn: u64,
    /// Publishes refused because the pool was exhausted.
    pub(crate) snapshots_dropped: u64,
    /// Median of the publish times in microseconds.
    pub(crate) publish_us_median: Option<f64>,
    /// Median of the kernel's own cycles per publish, doorbell excluded.
    pub(crate) publish_cycles_median: Option<f64>,
    /// Median of the microseconds from publish to reader.
    pub(crate) age_us_median: Option<f64>,
    /// Ring-0 instructions the host emulated per publish; exact.
    pub(crate) emulated_instructions_per_publish: Option<f64>,
    /// The same per copy-on-write fault.
    pub(crate) emulated_instructions_per_cow_fault: Option<f64>,
    /// `ring0` or `ring3`.
    pub(crate) kernel_mode: Option<String>,
    /// `nested` or `hardware`.
    pub(crate) platform: Option<String>,
    /// Was the machine an emulated one? Then no time means anything.
    #[serde(rename = "emulated")]
    pub(crate) is_emulated: bool,
    /// Number of things the run left behind.
    pub(crate) leftovers: usize,
    /// What they are.
    pub(crate) leftovers_found: Vec<String>,
    /// One entry per snapshot.
    pub(crate) snapshots: Vec<Row>,
}

fn number(line: &Value, key: &str) -> u64 {
    line.get(key).and_then(Value::as_u64).unwrap_or(0)
}

fn real(line: &Value, key: &str) -> f64 {
    line.get(key).and_then(Value::as_f64).unwrap_or(0.0)
}

/// One line of the analytics process as a row; `None` for lines that describe
/// no snapshot.
pub(crate) fn row(line: &Value) -> Option<Row> {
    Some(Row {
        generation: line.get("generation")?.as_u64()?,
        step: line.get("step")?.as_u64()?,
        time: real(line, "time"),
        bytes: number(line, "bytes"),
        runs: number(line, "runs"),
        chunks_copied: number(line, "chunks_copied"),
        publish_us: 0.0,
        publish_cycles: number(line, "publish_cycles"),
        age_us: real(line, "age_us"),
        peak_group: line.get("peak_group").and_then(Value::as_u64),
        peak_value: real(line, "peak_value"),
        whole: whole(line),
    })
}

/// The reader's verdict on one snapshot.
fn whole(line: &Value) -> Option<bool> {
    let verdicts =
        ["valid", "checksum_ok", "spectrum_ok"].map(|key| line.get(key).and_then(Value::as_bool));
    if verdicts.contains(&Some(false)) {
        return Some(false);
    }
    verdicts.iter().all(Option::is_some).then_some(true)
}

impl Outcome {
    /// Joins what the reader saw with the program's summary.
    pub(crate) fn join(mut rows: Vec<Row>, summary: &Value) -> Self {
        let mut times: Vec<f64> = summary
            .get("publish_us")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_f64)
            .collect();
        // Generations count successful publishes from 1, as the list does.
        for (generation, time) in (1..).zip(&times) {
            for row in rows.iter_mut().filter(|row| row.generation == generation) {
                row.publish_us = *time;
            }
        }
        let mut cycles: Vec<f64> = rows.iter().map(|row| row.publish_cycles as f64).collect();
        let mut ages: Vec<f64> = rows.iter().map(|row| row.age_us).collect();
        let count = |want| rows.iter().filter(|row| row.whole == Some(want)).count() as u64;
        Self {
            steps: number(summary, "steps"),
            snapshots_verified: count(true),
            snapshots_torn: count(false),
            snapshots_dropped: number(summary, "dropped"),
            publish_us_median: median(&mut times),
            publish_cycles_median: median(&mut cycles),
            age_us_median: median(&mut ages),
            snapshots: rows,
            ..Self::default()
        }
    }

    /// The table for people, one line per snapshot.
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "{:>5} {:>9} {:>4} {:>9} {:>5} {:>7} {:>10} {:>10} {:>15}  {}\n",
            "STEP",
            "TIME",
            "GEN",
            "BYTES",
            "RUNS",
            "COPIED",
            "PUBLISH",
            "READ AFTER",
            "PEAK",
            "CHECKSUM"
        );
        for row in &self.snapshots {
            let checksum = match row.whole {
                Some(true) => "ok",
                Some(false) => "TORN",
                None => "-",
            };
            let peak = row.peak_group.map_or_else(
                || "-".to_owned(),
                |group| format!("group {group}: {:.2}", row.peak_value),
            );
            let _ = writeln!(
                text,
                "{:>5} {:>9.4} {:>4} {:>9} {:>5} {:>7} {:>7.1} µs {:>7.0} µs {peak:>15}  {checksum}",
                row.step,
                row.time,
                row.generation,
                bytes(row.bytes),
                row.runs,
                row.chunks_copied,
                row.publish_us,
                row.age_us,
            );
        }
        text
    }

    /// One paragraph under the table.
    pub(crate) fn summary(&self) -> String {
        let median = self
            .publish_us_median
            .map_or_else(|| "-".to_owned(), |median| format!("{median:.1} µs"));
        format!(
            "{} steps, {} snapshots verified, {} torn, {} dropped; publish median {median}; \
             kernel in {} on {}{}; leftovers: {}",
            self.steps,
            self.snapshots_verified,
            self.snapshots_torn,
            self.snapshots_dropped,
            self.kernel_mode.as_deref().unwrap_or("an unknown mode"),
            self.platform.as_deref().unwrap_or("an unknown platform"),
            if self.is_emulated { ", emulated" } else { "" },
            self.leftovers,
        )
    }
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = *values.get(values.len().saturating_sub(1) / 2)?;
    Some(f64::midpoint(lower, upper))
}

/// Bytes with a binary unit.
fn bytes(count: u64) -> String {
    match count {
        n if n >= 10 << 20 => format!("{} MiB", n >> 20),
        n if n >= 10 << 10 => format!("{} KiB", n >> 10),
        n => format!("{n} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn line(generation: u64, ok: bool) -> Value {
        json!({"generation": generation, "step": generation, "time": 0.5, "bytes": 65536,
               "runs": 1, "chunks_copied": 3, "peak_group": 7, "valid": true,
               "checksum_ok": ok, "spectrum_ok": true})
    }

    #[test]
    fn lines_without_a_snapshot_are_no_rows() {
        assert_eq!(row(&json!({"event": "end"})), None);
        assert_eq!(row(&json!({"generation": 1})), None);
        assert_eq!(row(&line(4, true)).unwrap().generation, 4);
    }

    #[test]
    fn a_snapshot_is_whole_only_if_everything_was_compared() {
        assert_eq!(row(&line(1, true)).unwrap().whole, Some(true));
        let mut unchecked = line(1, true);
        unchecked["spectrum_ok"] = Value::Null;
        assert_eq!(row(&unchecked).unwrap().whole, None);
        unchecked["valid"] = json!(false);
        assert_eq!(row(&unchecked).unwrap().whole, Some(false));
    }

    #[test]
    fn a_torn_snapshot_is_counted_and_shown() {
        let lines = [line(1, true), line(2, false)];
        let rows = lines.iter().filter_map(row);
        let outcome = Outcome::join(rows.collect(), &json!({"steps": 2, "dropped": 1}));
        assert_eq!(outcome.snapshots_verified, 1);
        assert_eq!(outcome.snapshots_torn, 1);
        assert_eq!(outcome.snapshots_dropped, 1);
        assert!(outcome.table().contains("TORN"));
    }

    #[test]
    fn publish_times_are_joined_by_generation() {
        let summary = json!({"steps": 3, "publish_us": [10.0, 30.0, 80.0]});
        let lines = [line(1, true), line(3, true)];
        let outcome = Outcome::join(lines.iter().filter_map(row).collect(), &summary);
        let times: Vec<f64> = outcome.snapshots.iter().map(|row| row.publish_us).collect();
        assert_eq!(times, [10.0, 80.0]);
        assert_eq!(outcome.publish_us_median, Some(30.0));
    }

    #[test]
    fn the_median_of_nothing_is_nothing() {
        assert_eq!(median(&mut []), None);
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), Some(2.0));
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(bytes(9999), "9999 B");
        assert_eq!(bytes(64 << 10), "64 KiB");
        assert_eq!(bytes(64 << 20), "64 MiB");
    }
}
