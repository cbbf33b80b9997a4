//! Errors of the client as the exceptions of `xemem.errors`.
//!
//! Each keeps its number and its words, the broker's where the broker spoke.

use pyo3::prelude::*;
use pyo3::types::PyType;
use rustix::io::Errno;
use xemem_host::ClientError;
use xemem_host::snapshot::SnapshotError;

/// A class of `xemem.errors`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Error,
    Forgotten,
    Timeout,
    NotFound,
    PermissionDenied,
    BrokerGone,
    TooFragmented,
    Released,
    NoVariable,
}

impl Class {
    fn name(self) -> &'static str {
        match self {
            Self::Error => "Error",
            Self::Forgotten => "Forgotten",
            Self::Timeout => "Timeout",
            Self::NotFound => "NotFound",
            Self::PermissionDenied => "PermissionDenied",
            Self::BrokerGone => "BrokerGone",
            Self::TooFragmented => "TooFragmented",
            Self::Released => "Released",
            Self::NoVariable => "NoVariable",
        }
    }
}

/// The exception of `class`.
pub(crate) fn raise(py: Python<'_>, class: Class, errno: Errno, text: &str) -> PyErr {
    raise_about(py, class, errno, text, None)
}

/// The exception of `class`, with what it is about as its `filename`.
fn raise_about(
    py: Python<'_>,
    class: Class,
    errno: Errno,
    text: &str,
    about: Option<&str>,
) -> PyErr {
    let built = || -> PyResult<PyErr> {
        let class = py.import("xemem.errors")?.getattr(class.name())?;
        let class = class.cast_into::<PyType>()?;
        let (errno, text) = (errno.raw_os_error(), text.to_owned());
        Ok(match about {
            Some(about) => PyErr::from_type(class, (errno, text, about.to_owned())),
            None => PyErr::from_type(class, (errno, text)),
        })
    };
    // Without the package around this module the import error is the news.
    built().unwrap_or_else(|error| error)
}

/// The exception for `error`.
pub(crate) fn of(py: Python<'_>, error: &ClientError) -> PyErr {
    let (class, errno) = classify(error);
    raise(py, class, errno, &words(error))
}

/// The exception for `error`, which is about the segment `name`.
pub(crate) fn about(py: Python<'_>, error: &ClientError, name: &str) -> PyErr {
    let (class, errno) = classify(error);
    raise_about(py, class, errno, &words(error), Some(name))
}

fn words(error: &ClientError) -> String {
    match error {
        // The number goes beside the words.
        ClientError::Refused { text, .. } => text.clone(),
        other => other.to_string(),
    }
}

fn classify(error: &ClientError) -> (Class, Errno) {
    let errno = error.errno();
    let class = match error {
        ClientError::Snapshot(error) => return classify_snapshot(error, errno),
        ClientError::Connect { .. } | ClientError::Start { .. } | ClientError::BrokerGone => {
            Class::BrokerGone
        }
        ClientError::Refused { .. } => match errno {
            Errno::NOENT => Class::NotFound,
            Errno::ACCESS | Errno::PERM => Class::PermissionDenied,
            Errno::TIMEDOUT => Class::Timeout,
            _ => Class::Error,
        },
        ClientError::Timeout | ClientError::NoAnswer { .. } => Class::Timeout,
        _ => Class::Error,
    };
    (class, errno)
}

fn classify_snapshot(error: &SnapshotError, errno: Errno) -> (Class, Errno) {
    match error {
        SnapshotError::Runs { source, .. } => (Class::TooFragmented, *source),
        SnapshotError::Forgotten { .. } => (Class::Forgotten, Errno::NODATA),
        SnapshotError::NoRecord(_) => (Class::NotFound, Errno::NOENT),
        SnapshotError::Detached(_) => (Class::Released, Errno::STALE),
        SnapshotError::NoVariable(_) => (Class::NoVariable, Errno::NOENT),
        SnapshotError::Variable { .. } => (Class::NoVariable, Errno::INVAL),
        _ => (Class::Error, errno),
    }
}
