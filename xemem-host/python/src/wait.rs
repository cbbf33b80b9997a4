//! Waiting that Ctrl-C can end.
//!
//! Each wait is made of slices without the interpreter's lock; between them
//! Python handles its signals. A signal that comes during a slice ends it
//! early where the system says so, else it waits for the slice's end.

use std::time::{Duration, Instant};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// Longest time a signal may have to wait.
const SLICE: Duration = Duration::from_millis(200);

/// A moment until which is waited, or none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    /// `timeout` from now; for ever if `None`.
    pub(crate) fn after(timeout: Option<Duration>) -> Self {
        Self(timeout.and_then(|timeout| Instant::now().checked_add(timeout)))
    }

    /// How long the next slice may be; `None` when time is up.
    pub(crate) fn slice(self) -> Option<Duration> {
        let Some(deadline) = self.0 else {
            return Some(SLICE);
        };
        let left = deadline.saturating_duration_since(Instant::now());
        (!left.is_zero()).then(|| left.min(SLICE))
    }
}

/// Seconds as a caller gives them: `None` and infinity are for ever.
///
/// # Errors
/// ValueError for what is negative or no number.
pub(crate) fn timeout(seconds: Option<f64>) -> PyResult<Option<Duration>> {
    match seconds {
        None => Ok(None),
        Some(seconds) if seconds == f64::INFINITY => Ok(None),
        Some(seconds) => match Duration::try_from_secs_f64(seconds) {
            Ok(timeout) => Ok(Some(timeout)),
            // Longer than time lasts.
            Err(_) if seconds > 0.0 => Ok(None),
            Err(_) => Err(PyValueError::new_err(format!(
                "timeout must be None or not negative, not {seconds}"
            ))),
        },
    }
}

/// Calls `attempt` with the time it may take, without the interpreter's lock,
/// until it gives something. The last attempt, when time is up, may take none;
/// what it gives then is the result, even nothing.
///
/// # Errors
/// An exception that a signal handler raised.
pub(crate) fn sliced<T: Send, E: Send>(
    py: Python<'_>,
    deadline: Deadline,
    mut attempt: impl FnMut(Duration) -> Result<Option<T>, E> + Send,
) -> PyResult<Result<Option<T>, E>> {
    loop {
        let slice = deadline.slice();
        let outcome = py.detach(|| attempt(slice.unwrap_or_default()));
        if slice.is_none() || !matches!(outcome, Ok(None)) {
            return Ok(outcome);
        }
        py.check_signals()?;
    }
}
