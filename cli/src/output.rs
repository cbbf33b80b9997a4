//! How results and failures look: JSON for programs, tables for people.
//!
//! Data goes to standard output, talk to standard error. A reader that closed
//! its end early (`| head`) is no failure.

use std::fmt::Display;
use std::io::{ErrorKind, Write};

use enclave_vmm::failure::{Class, Failure};
use serde::Serialize;
use serde_json::{Value, json};

/// Version of every JSON document printed.
pub(crate) const SCHEMA: u32 = 1;

/// Wanted form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Whether somebody reads standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    Listens,
    Gone,
}

/// Prints bytes to standard output.
pub(crate) fn stream(bytes: &[u8]) -> Result<Reader, Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(Reader::Listens),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(Failure::io("write to standard output", error)),
    }
}

/// Prints bytes to standard output, read or not.
pub(crate) fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    stream(bytes).map(|_| ())
}

/// Prints a line to standard output.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    bytes(format!("{text}\n").as_bytes())
}

/// Prints `{"schema": …, key: value}`.
pub(crate) fn json(key: &str, value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(&document(key, value)?)
        .map_err(|e| Failure::new(Class::Failure, "print JSON", e))?;
    line(&text)
}

/// Prints the same on one line, for streams.
pub(crate) fn json_line(key: &str, value: &impl Serialize) -> Result<Reader, Failure> {
    stream(format!("{}\n", document(key, value)?).as_bytes())
}

fn document(key: &str, value: &impl Serialize) -> Result<Value, Failure> {
    let value =
        serde_json::to_value(value).map_err(|e| Failure::new(Class::Failure, "print JSON", e))?;
    Ok(json!({ "schema": SCHEMA, key: value }))
}

/// Prints rows in aligned columns under a heading.
pub(crate) fn table(heading: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
    bytes(format_table(heading, rows).as_bytes())
}

/// The same as text.
pub(crate) fn format_table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = heading.iter().map(|cell| cell.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let heading: Vec<String> = heading.iter().map(|&cell| cell.to_owned()).collect();
    for row in std::iter::once(&heading).chain(rows) {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Text without control characters, for names that came from elsewhere.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// Bytes in the largest binary unit that keeps them whole.
pub(crate) fn size(bytes: u64) -> String {
    for (shift, unit) in [(40, "T"), (30, "G"), (20, "M"), (10, "K")] {
        if bytes != 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// A duration as people read it.
pub(crate) fn duration(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{:02}h", seconds / 86400, seconds % 86400 / 3600),
    }
}

/// A time since 1970 as ISO 8601 in UTC.
pub(crate) fn time(unix_ms: u64) -> String {
    let (days, ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    // Civil date from days, in eras of 400 years that begin in March
    // (Howard Hinnant, "chrono-compatible low-level date algorithms").
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        ms / 3_600_000,
        ms / 60_000 % 60,
        ms / 1000 % 60,
        ms % 1000
    )
}

/// Prints a line to standard error. Unlike `eprintln!` it does not panic when
/// nobody reads there.
pub(crate) fn talk(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Prints a warning.
pub(crate) fn warning(text: &str) {
    talk(format_args!("enclavectl: warning: {text}"));
}

/// Prints a failure: what, why, and what to try.
pub(crate) fn failure(failure: &Failure) {
    let hint = match (failure.hint.as_str(), failure.class) {
        ("", Class::Usage) => "enclavectl --help",
        ("", Class::NotFound | Class::Busy) => "enclavectl list",
        ("", Class::Protocol) => "enclavectl version",
        ("", _) => "enclavectl doctor",
        (hint, _) => hint,
    };
    let why = failure.why.trim_end().replace('\n', "\n    ");
    talk(format_args!(
        "enclavectl: {}\n  {why}\n  try: {hint}",
        failure.what
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_lines_end_clean() {
        let rows = vec![
            vec!["a".to_owned(), "idle".to_owned()],
            vec!["longer".to_owned(), String::new()],
        ];
        assert_eq!(
            format_table(&["NAME", "STATE"], &rows),
            "NAME    STATE\na       idle\nlonger\n"
        );
    }

    #[test]
    fn sizes_and_durations_are_short() {
        assert_eq!(size(512 << 20), "512M");
        assert_eq!(size(3 << 30), "3G");
        assert_eq!(size(1), "1");
        assert_eq!(size(0), "0");
        assert_eq!(duration(59_999), "59s");
        assert_eq!(duration(61_000), "1m01s");
        assert_eq!(duration(3_660_000), "1h01m");
        assert_eq!(duration(90_000_000), "1d01h");
    }

    #[test]
    fn times_are_iso_8601() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(951_782_399_999), "2000-02-28T23:59:59.999Z");
        assert_eq!(time(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(time(1_735_689_599_000), "2024-12-31T23:59:59.000Z");
        assert_eq!(time(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("a\x1b[31mb\n"), "a?[31mb?");
    }
}
