//! Figures: a name, a value, a bound, a verdict.
//!
//! Filled by the measurements, printed by `main` as one table and as JSON
//! lines. A figure without a bound is reported and decides nothing.

use serde::Serialize;
use serde_json::{Map, Value};
use std::fmt::Write as _;

/// What a value must be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
    /// Exactly this: for counts.
    Exactly(f64),
}

impl Bound {
    /// Whether `value` keeps the bound; a value that is no number never does.
    pub(crate) fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
            Self::Exactly(want) => value == want,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(most) => format!("≤ {most}"),
            Self::AtLeast(least) => format!("≥ {least}"),
            Self::Exactly(want) => format!("= {want}"),
        }
    }
}

/// Whether the bound is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// It is.
    Met,
    /// It is not.
    Missed,
    /// There is none.
    Reported,
}

impl Verdict {
    fn text(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "MISSED",
            Self::Reported => "reported",
        }
    }
}

/// One measured value.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    bound: Option<Bound>,
    verdict: Verdict,
    tries: u32,
    #[serde(flatten)]
    details: Map<String, Value>,
}

impl Figure {
    /// A figure that is only reported.
    pub(crate) fn reported(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            value,
            unit,
            bound: None,
            verdict: Verdict::Reported,
            tries: 1,
            details: Map::new(),
        }
    }

    /// The same with another value.
    pub(crate) fn with_value(self, value: f64) -> Self {
        Self { value, ..self }
    }

    /// The same with a bound.
    pub(crate) fn bounded(self, bound: Bound) -> Self {
        let verdict = if bound.is_met(self.value) {
            Verdict::Met
        } else {
            Verdict::Missed
        };
        Self {
            bound: Some(bound),
            verdict,
            ..self
        }
    }

    /// The same with what the project promises; the bound is what a busy
    /// machine must still keep. A promise that is not kept is not measured
    /// again: the best of several tries is no figure.
    pub(crate) fn promised(self, promise: Bound) -> Self {
        let kept = promise.is_met(self.value);
        self.detail("promise", promise.text())
            .detail("promise_kept", kept)
    }

    /// The same after so many tries.
    pub(crate) fn after(self, tries: u32) -> Self {
        Self { tries, ..self }
    }

    /// The same with one more number behind it (JSON, and the table's note).
    pub(crate) fn detail(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.details.insert(key.to_owned(), value.into());
        self
    }

    /// Whether a bound is missed.
    pub(crate) fn is_missed(&self) -> bool {
        self.verdict == Verdict::Missed
    }
}

/// All figures of a run, in the order measured.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    list: Vec<Figure>,
    /// Facts about the machine, part of every JSON line.
    machine: Map<String, Value>,
}

impl Figures {
    /// Adds one, and says so on standard error.
    pub(crate) fn add(&mut self, figure: Figure) {
        eprintln!(
            "    {}: {} {} ({})",
            figure.name,
            digits(figure.value),
            figure.unit,
            figure.verdict.text()
        );
        self.list.push(figure);
    }

    /// Notes a fact about the machine that all figures depend on.
    pub(crate) fn measured_on(&mut self, key: &str, value: &Value) {
        self.machine.insert(key.to_owned(), value.clone());
    }

    /// Whether every bound is met.
    pub(crate) fn all_met(&self) -> bool {
        !self.list.iter().any(Figure::is_missed)
    }

    /// One sentence for the end.
    pub(crate) fn summary(&self) -> String {
        let count = |verdict| self.list.iter().filter(|f| f.verdict == verdict).count();
        format!(
            "{} bounds met, {} missed, {} figures reported",
            count(Verdict::Met),
            count(Verdict::Missed),
            count(Verdict::Reported)
        )
    }

    /// The table for people.
    pub(crate) fn table(&self) -> String {
        let width = self.list.iter().map(|f| f.name.chars().count()).max();
        let width = width.unwrap_or(4).max(4);
        let mut text = format!(
            "{:<width$} {:>12} {:<6} {:>9} {:<8} {:>5}  NOTES\n",
            "NAME", "VALUE", "UNIT", "BOUND", "VERDICT", "TRIES"
        );
        for figure in &self.list {
            let notes: Vec<String> = figure
                .details
                .iter()
                .map(|(key, value)| match value.as_f64() {
                    Some(number) => format!("{key} {}", digits(number)),
                    None => format!("{key} {value}"),
                })
                .collect();
            let bound = figure.bound.map_or_else(String::new, Bound::text);
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "{:<width$} {:>12} {:<6} {:>9} {:<8} {:>5}  {}",
                figure.name,
                digits(figure.value),
                figure.unit,
                bound,
                figure.verdict.text(),
                figure.tries,
                notes.join(", ")
            );
        }
        text
    }

    /// One JSON object a line.
    pub(crate) fn json_lines(&self) -> serde_json::Result<String> {
        let mut text = String::new();
        for figure in &self.list {
            let mut line = serde_json::to_value(figure)?;
            if let Value::Object(fields) = &mut line {
                fields.extend(self.machine.clone());
            }
            text.push_str(&line.to_string());
            text.push('\n');
        }
        Ok(text)
    }
}

/// Four significant digits, counts whole.
fn digits(value: f64) -> String {
    let whole = value == value.trunc() || value.abs() >= 1000.0;
    match value.abs() {
        _ if whole => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.3}"),
        _ => format!("{value:.5}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_decides_and_no_number_never_meets_one() {
        let most = |value| Figure::reported("r", value, "").bounded(Bound::AtMost(1.5));
        assert!(!most(1.5).is_missed());
        assert!(most(1.500_1).is_missed());
        assert!(most(f64::NAN).is_missed());
        let exact = |value| Figure::reported("r", value, "").bounded(Bound::Exactly(0.0));
        assert!(!exact(0.0).is_missed());
        assert!(exact(1.0).is_missed());
        let least = |value| Figure::reported("r", value, "").bounded(Bound::AtLeast(0.9));
        assert!(!least(0.9).is_missed());
        assert!(least(0.89).is_missed() && least(f64::NAN).is_missed());
        assert!(!Figure::reported("r", 9.0, "").is_missed());
        let promised = most(1.4).promised(Bound::AtMost(1.3));
        assert_eq!(promised.details["promise_kept"], false);
        assert!(!promised.is_missed());
    }

    #[test]
    fn one_missed_bound_spoils_the_run() {
        let mut figures = Figures::default();
        figures.add(Figure::reported("a", 1.0, "").bounded(Bound::AtMost(2.0)));
        assert!(figures.all_met());
        figures.add(Figure::reported("b", 3.0, "").bounded(Bound::AtMost(2.0)));
        figures.add(Figure::reported("c", 3.0, "us"));
        assert!(!figures.all_met());
        assert_eq!(
            figures.summary(),
            "1 bounds met, 1 missed, 1 figures reported"
        );
    }

    #[test]
    fn a_line_of_json_holds_value_bound_verdict_and_details() {
        let mut figures = Figures::default();
        let figure = Figure::reported("publish/fork", 0.01, "")
            .bounded(Bound::AtMost(0.02))
            .after(2)
            .detail("blocks", 15);
        figures.add(figure);
        figures.measured_on("kernel_mode", &"ring3".into());
        let parsed: Value = serde_json::from_str(figures.json_lines().unwrap().trim()).unwrap();
        assert_eq!(parsed["name"], "publish/fork");
        assert_eq!(parsed["value"], 0.01);
        assert_eq!(parsed["bound"]["at_most"], 0.02);
        assert_eq!(parsed["verdict"], "met");
        assert_eq!(
            (&parsed["tries"], &parsed["blocks"]),
            (&2.into(), &15.into())
        );
        assert_eq!(parsed["kernel_mode"], "ring3");
        let table = figures.table();
        assert_eq!(table.lines().count(), 2);
        assert!(table.contains("≤ 0.02 met"), "{table}");
    }

    #[test]
    fn values_keep_four_digits() {
        assert_eq!(digits(1000.0), "1000");
        assert_eq!(digits(12_345.678), "12346");
        assert_eq!(digits(123.456), "123.5");
        assert_eq!(digits(1.234_56), "1.235");
        assert_eq!(digits(0.012_345), "0.01235");
    }
}
