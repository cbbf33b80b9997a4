//! What went wrong, in the three lines a user sees, with its exit class.
//!
//! Made wherever a request can be refused (configuration, ledger, control
//! socket), carried over the control socket and the ready pipe as JSON, and
//! printed by `enclavectl`. It does not hold a cause chain: the chain is
//! flattened into `why` at the place that knows it.

use std::fmt::Display;

use serde::{Deserialize, Serialize};

/// Class of a failure; each has one documented exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Anything without a class of its own: 1.
    Failure,
    /// The request makes no sense: 2.
    Usage,
    /// No such enclave, snapshot or file: 3.
    NotFound,
    /// Taken, or in use: 4.
    Busy,
    /// Not allowed: 5.
    Permission,
    /// Cores, memory or huge pages are not there: 6.
    Resources,
    /// No answer in time: 7.
    Timeout,
    /// The other side speaks another version, or nonsense: 8.
    Protocol,
}

impl Class {
    /// The exit code of this class.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failure => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Busy => 4,
            Self::Permission => 5,
            Self::Resources => 6,
            Self::Timeout => 7,
            Self::Protocol => 8,
        }
    }

    /// The class an operating-system error belongs to.
    #[must_use]
    pub fn of_io(error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        match error.kind() {
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::PermissionDenied => Self::Permission,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::Timeout,
            ErrorKind::OutOfMemory | ErrorKind::StorageFull => Self::Resources,
            _ => Self::Failure,
        }
    }
}

/// A refusal or failure for the user: what, why, and what to try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{what}: {why}")]
pub struct Failure {
    /// Exit class.
    pub class: Class,
    /// What could not be done.
    pub what: String,
    /// Why, with the values.
    pub why: String,
    /// A command or step that mends it; empty if there is none.
    #[serde(default)]
    pub hint: String,
}

impl Failure {
    /// A failure without a hint.
    pub fn new(class: Class, what: impl Into<String>, why: impl Display) -> Self {
        Self {
            class,
            what: what.into(),
            why: why.to_string(),
            hint: String::new(),
        }
    }

    /// The same with a command to try.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// A failed operation of the operating system, classed by its error.
    pub fn io(what: impl Into<String>, error: impl Into<std::io::Error>) -> Self {
        let error = error.into();
        Self::new(Class::of_io(&error), what, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_json() {
        let failure = Failure::new(Class::Resources, "create a1", "no core is free")
            .with_hint("enclavectl list");
        let text = serde_json::to_string(&failure).unwrap();
        assert!(text.contains("\"class\":\"resources\""), "{text}");
        assert_eq!(serde_json::from_str::<Failure>(&text).unwrap(), failure);
    }

    #[test]
    fn operating_system_errors_keep_their_class() {
        let of = |errno: rustix::io::Errno| Class::of_io(&errno.into());
        assert_eq!(of(rustix::io::Errno::ACCESS), Class::Permission);
        assert_eq!(of(rustix::io::Errno::NOENT), Class::NotFound);
        assert_eq!(of(rustix::io::Errno::NOMEM), Class::Resources);
        assert_eq!(of(rustix::io::Errno::IO), Class::Failure);
    }
}
