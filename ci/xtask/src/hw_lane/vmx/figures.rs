//! The exact instruction counts of the Ring0 hot paths, against the committed
//! table (section `vmx` of `ci/counts.json`).
//!
//! Pure. A difference fails either way: the table says what the code does.

use std::fmt;

use anyhow::Context as _;
use serde_json::Value;

use super::trace::Sample;
use crate::failure::Failure;

/// Paths as `xasm-counts --marks` names them, with their pairs of marks.
#[derive(Debug, Default)]
pub(super) struct Paths(Vec<(String, usize)>);

/// A figure that is what one path costs beyond another.
const DIFFERENCE: [&str; 3] = ["doorbell_interrupt", "host_call_interrupted", "host_call"];

/// What one path costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Figure {
    name: String,
    minimum: u64,
    median: u64,
    exits: u64,
}

impl Paths {
    /// Takes a line of the console, which names a path or does not.
    pub(super) fn take(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["MARKS", name, pairs] = words[..]
            && let Ok(pairs) = pairs.parse()
        {
            self.0.push((name.to_owned(), pairs));
        }
    }

    /// Deals the samples out to the paths.
    ///
    /// # Errors
    /// When there are not as many as the paths have pairs of marks.
    pub(super) fn figures(&self, samples: &[Sample]) -> anyhow::Result<Vec<Figure>> {
        let mut rest = samples;
        let mut figures = Vec::new();
        for (name, pairs) in &self.0 {
            let (mine, others) = rest
                .split_at_checked(*pairs)
                .with_context(|| format!("{} samples are too few for {name}", samples.len()))?;
            figures.push(Figure::new(name, mine).with_context(|| format!("{name} has no sample"))?);
            rest = others;
        }
        anyhow::ensure!(rest.is_empty(), "{} samples belong to no path", rest.len());
        Ok(with_difference(figures))
    }
}

impl Figure {
    fn new(name: &str, samples: &[Sample]) -> Option<Self> {
        let mut counts: Vec<u64> = samples.iter().map(|s| s.instructions).collect();
        counts.sort_unstable();
        Some(Self {
            name: name.to_owned(),
            minimum: *counts.first()?,
            median: *counts.get(counts.len() / 2)?,
            exits: samples.iter().map(|s| s.exits).min()?,
        })
    }
}

/// Puts the difference in the place of its two paths.
fn with_difference(mut figures: Vec<Figure>) -> Vec<Figure> {
    let [name, more, less] = DIFFERENCE;
    let place = |wanted: &str, figures: &[Figure]| figures.iter().position(|f| f.name == wanted);
    let (Some(more), Some(less)) = (place(more, &figures), place(less, &figures)) else {
        return figures;
    };
    let base = figures[less].clone();
    let figure = &mut figures[more];
    name.clone_into(&mut figure.name);
    figure.minimum = figure.minimum.saturating_sub(base.minimum);
    figure.median = figure.median.saturating_sub(base.median);
    figure.exits = figure.exits.saturating_sub(base.exits);
    figures.remove(less);
    figures
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, count) = (&self.name, self.minimum);
        write!(
            f,
            "{name:<20} {count:>5} instructions, {} exits",
            self.exits
        )?;
        if self.median == self.minimum {
            return Ok(());
        }
        write!(f, " (median {})", self.median)
    }
}

/// Compares with the table's section `vmx`.
///
/// # Errors
/// Names every path that differs, is not in the table or was not measured, or
/// whose samples do not agree.
pub(super) fn compare(figures: &[Figure], table: &Value) -> anyhow::Result<()> {
    let section = |key: &str| table["vmx"][key].as_object().cloned().unwrap_or_default();
    let (mut counts, mut exits) = (section("instructions"), section("exits"));
    let mut differences = Vec::new();
    for figure in figures {
        let name = &figure.name;
        let mut check = |what: &str, found: u64, told: Option<Value>| {
            if told.as_ref().and_then(Value::as_u64) != Some(found) {
                let told = told.map_or_else(|| "nothing".to_owned(), |told| told.to_string());
                differences.push(format!("{name}: {found} {what}, the table says {told}"));
            }
        };
        check("instructions", figure.minimum, counts.remove(name));
        check("exits", figure.exits, exits.remove(name));
        if figure.median != figure.minimum {
            differences.push(format!("the samples do not agree: {figure}"));
        }
    }
    let left = counts.keys().chain(exits.keys());
    differences.extend(left.map(|name| format!("{name}: in the table, but not measured")));
    if differences.is_empty() {
        return Ok(());
    }
    Err(Failure::error(
        "hw-lane: a path does not cost what ci/counts.json says",
        differences.join("; "),
        "$EDITOR ci/counts.json  (if it is meant; the commit says why)",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample(instructions: u64, exits: u64) -> Sample {
        Sample {
            instructions,
            exits,
        }
    }

    fn paths() -> Paths {
        let mut paths = Paths::default();
        for line in [
            "MARKS call 3\r\n",
            "MARKS publish 1",
            "MARKS x y",
            "REMARKS z 4",
            "",
        ] {
            paths.take(line);
        }
        paths
    }

    #[test]
    fn samples_are_dealt_out_in_order() {
        let all = [sample(60, 0), sample(60, 1), sample(75, 0), sample(200, 1)];
        let figures = paths().figures(&all).unwrap();
        assert_eq!(
            figures[0].to_string(),
            "call                    60 instructions, 0 exits"
        );
        assert_eq!((figures[1].minimum, figures[1].exits), (200, 1));
    }

    #[test]
    fn samples_without_a_path_and_paths_without_samples_are_refused() {
        let of = |count| paths().figures(&vec![sample(1, 0); count]);
        assert!(of(3).is_err());
        assert!(of(4).is_ok());
        assert!(of(5).is_err());
    }

    #[test]
    fn every_difference_is_named() {
        let figures = |call| {
            let samples = [
                sample(call, 0),
                sample(call, 0),
                sample(call, 0),
                sample(9, 1),
            ];
            paths().figures(&samples).unwrap()
        };
        let table = |exits: u64| {
            json!({"vmx": {
                "instructions": {"call": 60, "publish": 9},
                "exits": {"call": 0, "publish": exits},
            }})
        };
        assert!(compare(&figures(60), &table(1)).is_ok());
        let why =
            |figures: &[Figure], table: &Value| compare(figures, table).unwrap_err().to_string();
        assert!(why(&figures(61), &table(1)).contains("call: 61 instructions, the table says 60"));
        assert!(why(&figures(59), &table(1)).contains("call: 59 instructions"));
        assert!(why(&figures(60), &table(0)).contains("publish: 1 exits, the table says 0"));
        assert!(
            why(&figures(60), &json!({})).contains("call: 60 instructions, the table says nothing")
        );
        assert!(why(&[], &table(1)).contains("publish: in the table, but not measured"));
    }

    #[test]
    fn an_interrupt_is_the_difference_of_two_calls() {
        let mut paths = Paths::default();
        paths.take("MARKS host_call 1");
        paths.take("MARKS host_call_interrupted 1");
        paths.take("MARKS publish 1");
        let all = [sample(262, 1), sample(330, 3), sample(9, 1)];
        let figures = paths.figures(&all).unwrap();
        assert_eq!(figures.len(), 2);
        let shown = figures[0].to_string();
        assert_eq!(shown, "doorbell_interrupt      68 instructions, 2 exits");
    }

    #[test]
    fn samples_that_do_not_agree_are_told() {
        let all = [sample(60, 0), sample(61, 0), sample(62, 0), sample(9, 0)];
        let figures = paths().figures(&all).unwrap();
        let error = compare(&figures, &json!({})).unwrap_err().to_string();
        assert!(
            error.contains("60 instructions, 0 exits (median 61)"),
            "{error}"
        );
    }
}
