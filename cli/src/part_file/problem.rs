//! What is wrong in a part file, and where: byte offsets become lines.

use std::ops::Range;
use std::path::Path;

use serde::Serialize;

use super::values::Wrong;
use crate::output::printable;

/// Something wrong in a part file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Problem {
    /// Line, from 1.
    pub(crate) line: usize,
    /// Character of the line, from 1.
    pub(crate) column: usize,
    /// What is wrong.
    pub(crate) what: String,
    /// What to do.
    pub(crate) fix: String,
}

impl Problem {
    /// "part.toml:3:7: what; fix".
    pub(crate) fn at(&self, path: &Path) -> String {
        let Self {
            line,
            column,
            what,
            fix,
        } = self;
        format!("{}:{line}:{column}: {what}; {fix}", path.display())
    }
}

/// A text whose offsets can be told as lines and columns.
pub(super) struct Lines<'a>(&'a str);

impl<'a> Lines<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        Self(text)
    }

    /// The problem at the beginning of `span`, in bytes.
    pub(super) fn problem(&self, span: Range<usize>, wrong: Wrong) -> Problem {
        let mut start = span.start.min(self.0.len());
        while !self.0.is_char_boundary(start) {
            start -= 1;
        }
        let (before, _) = self.0.split_at(start);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let (_, in_line) = before.split_at(line_start);
        Problem {
            line: before.matches('\n').count() + 1,
            column: in_line.chars().count() + 1,
            what: printable(&wrong.what),
            fix: printable(&wrong.fix),
        }
    }
}
