//! [`Failure`]: what went wrong, why, and what to type instead.
//!
//! The one error type of this program, printed to standard error in three
//! lines.

use std::fmt;

/// An error as the user reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    what: String,
    why: String,
    hint: String,
}

impl Failure {
    /// A failure with its cause; the hint is the help command.
    pub(crate) fn new(what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self {
            what: what.into(),
            why: why.to_string(),
            hint: "snap-mini --help".to_owned(),
        }
    }

    /// The same with another command to try.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: hint.into(),
            ..self
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "snap-mini: {}", self.what)?;
        writeln!(f, "  {}", self.why)?;
        write!(f, "try: {}", self.hint)
    }
}

impl std::error::Error for Failure {}
