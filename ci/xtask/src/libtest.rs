//! Reads what the standard test harness prints.
//!
//! Called by `test` with each line of `cargo test`. Adds up the `test result:`
//! lines, so that the last line of a whole run is one sum.

/// Counts of one or more test programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Tests that passed.
    pub(crate) passed: u64,
    /// Tests that failed.
    pub(crate) failed: u64,
    /// Tests that were not run.
    pub(crate) ignored: u64,
}

impl Totals {
    /// Adds another count.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

/// The counts of a `test result:` line, `None` for any other line.
pub(crate) fn parse(line: &str) -> Option<Totals> {
    let counts = line
        .trim()
        .strip_prefix("test result: ")?
        .split_once(". ")?
        .1;
    let count = |word: &str| {
        counts
            .split(';')
            .find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok())
    };
    Some(Totals {
        passed: count("passed")?,
        failed: count("failed")?,
        ignored: count("ignored")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_line_is_counted() {
        let line = "test result: FAILED. 11 passed; 2 failed; 1 ignored; 0 measured; \
                    3 filtered out; finished in 0.01s";
        let want = Totals {
            passed: 11,
            failed: 2,
            ignored: 1,
        };
        assert_eq!(parse(line), Some(want));
    }

    #[test]
    fn other_lines_count_nothing() {
        assert_eq!(parse("test geometry ... ok"), None);
        assert_eq!(parse("test result: ok. none"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn counts_add_up() {
        let mut sum = Totals::default();
        for line in [
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out",
            "test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out",
        ] {
            sum.add(parse(line).unwrap());
        }
        assert_eq!((sum.passed, sum.failed), (7, 0));
    }
}
