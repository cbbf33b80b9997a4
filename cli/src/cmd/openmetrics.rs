//! `stats --format openmetrics`: the same counters for a monitoring system.
//!
//! Pure; called by `stats`. The form is OpenMetrics 1.0: one `TYPE` for each
//! family, counters ending in `_total`, base units; the caller ends the text
//! with `# EOF`. A node exporter's textfile collector takes it as it is.

use std::fmt::Write;

/// Is it only ever added to?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
}

/// A family: `name` without `_total`, and each sample with its labels.
pub(crate) fn family<'a>(
    name: &str,
    kind: Kind,
    samples: impl Iterator<Item = (Vec<(&'a str, &'a str)>, u64)>,
) -> String {
    let (word, suffix) = match kind {
        Kind::Counter => ("counter", "_total"),
        Kind::Gauge => ("gauge", ""),
    };
    let mut text = format!("# TYPE {name} {word}\n");
    for (labels, value) in samples {
        let labels: Vec<String> = labels
            .iter()
            .map(|(label, value)| format!("{label}=\"{}\"", escaped(value)))
            .collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name}{suffix}{{{}}} {value}", labels.join(","));
    }
    text
}

/// A label's value, which may be anything a program chose as a name.
fn escaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_has_its_type_and_labels_that_cannot_break_out() {
        let sample = (vec![("enclave", "a\"1\n\\")], 7);
        assert_eq!(
            family("enclave_exits", Kind::Counter, std::iter::once(sample)),
            "# TYPE enclave_exits counter\n\
             enclave_exits_total{enclave=\"a\\\"1\\n\\\\\"} 7\n"
        );
        let none = family("xemem_readers", Kind::Gauge, std::iter::empty());
        assert_eq!(none, "# TYPE xemem_readers gauge\n");
    }
}
