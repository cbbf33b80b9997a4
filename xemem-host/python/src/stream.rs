//! [`Stream`]: an attached arena, an iterator over its snapshots.
//!
//! Made by [`crate::attach`]. Each snapshot is passed when the next one is
//! asked for. So that a reader never stalls a producer for the sake of old
//! arrays, at most one passed snapshot keeps its lease, and none where the
//! arena has only two banks: older ones are detached ([`crate::hold`]).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use rustix::io::Errno;
use xemem_host::schema::Described;
use xemem_host::{ClientError, EndReason, MapCounts, OwnedSnapshot};

use crate::failure::{self, Class};
use crate::hold::Hold;
use crate::layout::{self, Variable};
use crate::snapshot::Snapshot;
use crate::store;
use crate::wait::{self, Deadline};

/// Fewest banks of an arena that can spare one for a passed snapshot: one
/// live, one to publish to.
const BANKS_TO_SPARE_ONE: u32 = 3;

/// An attached arena.
#[derive(Debug)]
#[pyclass(frozen, module = "xemem", weakref)]
pub(crate) struct Stream {
    name: Arc<str>,
    timeout: Option<Duration>,
    /// `None` once closed.
    inner: Mutex<Option<xemem_host::Stream>>,
    /// Copied after each step, so that nobody waits for a waiting thread.
    facts: Mutex<Facts>,
    holds: Mutex<Vec<Weak<Hold>>>,
    /// Those asked for by number: theirs until the stream is closed.
    chosen: Mutex<Vec<Weak<Hold>>>,
    segid: u64,
    nr_banks: u32,
    size_bytes: u64,
    /// A connection is of no use in a forked process.
    pid: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Facts {
    nr_steps: u64,
    missed: u64,
    end_reason: Option<EndReason>,
    counts: MapCounts,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Variables by name.
pub(crate) fn variables<'py>(
    py: Python<'py>,
    variables: &[Variable],
) -> PyResult<Bound<'py, PyDict>> {
    let by_name = PyDict::new(py);
    for variable in variables {
        by_name.set_item(variable.key(), variable.clone())?;
    }
    Ok(by_name)
}

impl Stream {
    pub(crate) fn new(name: String, stream: xemem_host::Stream, timeout: Option<Duration>) -> Self {
        Self {
            name: name.into(),
            timeout,
            segid: stream.segid().0,
            nr_banks: stream.geometry().nr_banks,
            size_bytes: stream.geometry().size_bytes,
            inner: Mutex::new(Some(stream)),
            facts: Mutex::default(),
            holds: Mutex::default(),
            chosen: Mutex::default(),
            pid: std::process::id(),
        }
    }

    fn check_process(&self, py: Python<'_>) -> PyResult<()> {
        if self.pid == std::process::id() {
            return Ok(());
        }
        Err(failure::of(py, &ClientError::Forked))
    }

    fn closed_error(py: Python<'_>) -> PyErr {
        let text = "the stream is closed";
        failure::raise(py, Class::Released, Errno::BADF, text)
    }

    /// Passes all snapshots; the leases of all but the newest `keep` that
    /// still have arrays go back.
    fn pass_all(&self, py: Python<'_>, keep: usize) -> PyResult<()> {
        let passed = py.detach(|| {
            let mut holds = lock(&self.holds);
            let mut in_use: Vec<Arc<Hold>> = Vec::new();
            for hold in holds.iter().filter_map(Weak::upgrade) {
                hold.pass();
                if hold.is_leased() {
                    in_use.push(hold);
                }
            }
            let too_many = in_use.len().saturating_sub(keep);
            for hold in in_use.iter().take(too_many) {
                hold.detach()?;
            }
            *holds = in_use.iter().skip(too_many).map(Arc::downgrade).collect();
            Ok(())
        });
        passed.map_err(|error| failure::of(py, &ClientError::Snapshot(error)))
    }

    /// Asks the stream, without the interpreter's lock.
    fn ask<T: Send>(
        &self,
        py: Python<'_>,
        question: impl Send + FnOnce(&mut xemem_host::Stream) -> Result<T, ClientError>,
    ) -> PyResult<T> {
        self.check_process(py)?;
        match py.detach(|| lock(&self.inner).as_mut().map(question)) {
            Some(answer) => answer.map_err(|error| failure::about(py, &error, &self.name)),
            None => Err(Self::closed_error(py)),
        }
    }

    /// The next snapshot, `None` at the end.
    fn next_within(&self, py: Python<'_>, timeout: Option<Duration>) -> PyResult<Option<Snapshot>> {
        self.check_process(py)?;
        self.pass_all(py, usize::from(self.nr_banks >= BANKS_TO_SPARE_ONE))?;
        let deadline = Deadline::after(timeout);
        let mut is_closed = false;
        let attempt = |slice| match self.attempt(slice) {
            Some(outcome) => outcome,
            None => {
                is_closed = true;
                Ok(Some(None))
            }
        };
        let outcome = wait::sliced(py, deadline, attempt)?;
        if is_closed {
            return Err(Self::closed_error(py));
        }
        match outcome {
            Ok(Some(Some(snapshot))) => {
                let snapshot = Snapshot::new(Arc::clone(&self.name), snapshot);
                lock(&self.holds).push(Arc::downgrade(snapshot.hold()));
                Ok(Some(snapshot))
            }
            Ok(Some(None)) => Ok(None),
            Ok(None) => {
                let waited = timeout.unwrap_or_default().as_secs_f64();
                let text = format!("no snapshot of {:?} within {waited} s", self.name);
                Err(failure::raise(py, Class::Timeout, Errno::TIMEDOUT, &text))
            }
            Err(error) => Err(failure::of(py, &error)),
        }
    }

    /// Waits for one slice: a snapshot, the end, or nothing yet. `None` if the
    /// stream is closed.
    fn attempt(
        &self,
        slice: Duration,
    ) -> Option<Result<Option<Option<OwnedSnapshot>>, ClientError>> {
        let mut inner = lock(&self.inner);
        let stream = inner.as_mut()?;
        let outcome = match stream.next_owned(Some(slice)) {
            Ok(next) => Ok(Some(next)),
            Err(ClientError::Timeout) => Ok(None),
            Err(error) => Err(error),
        };
        let mut facts = lock(&self.facts);
        facts.nr_steps += u64::from(matches!(outcome, Ok(Some(Some(_)))));
        facts.missed = stream.missed();
        facts.end_reason = stream.end_reason();
        facts.counts = stream.map_counts();
        Some(outcome)
    }
}

#[pymethods]
impl Stream {
    /// Name it was attached by.
    #[getter]
    fn name(&self) -> &str {
        &self.name
    }

    /// The segment's number: `name@segid` is this arena for as long as there is
    /// one.
    #[getter]
    fn segid(&self) -> u64 {
        self.segid
    }

    /// Generations published since the first one seen that were never given.
    #[getter]
    fn missed(&self) -> u64 {
        lock(&self.facts).missed
    }

    /// Why the stream ended, or None if it did not.
    #[getter]
    fn end_reason(&self) -> Option<&'static str> {
        lock(&self.facts).end_reason.map(|reason| match reason {
            EndReason::ClosedByProgram => "closed by its program",
            EndReason::ProgramDied => "its program died",
            EndReason::ExporterGone => "its enclave is gone",
            EndReason::Removed => "removed",
        })
    }

    /// The variables as a dictionary: "json" lists the table, "conduit" is a
    /// Conduit schema over the arena's bytes. Needs no snapshot.
    #[pyo3(signature = (format = "json"))]
    fn schema<'py>(&self, py: Python<'py>, format: &str) -> PyResult<Bound<'py, PyAny>> {
        let variables = py.detach(|| {
            lock(&self.inner)
                .as_ref()
                .map(xemem_host::Stream::variables)
        });
        let Some(variables) = variables else {
            return Err(Self::closed_error(py));
        };
        let described = Described {
            arena: &self.name,
            size_bytes: self.size_bytes,
            record: None,
            variables: &variables,
        };
        layout::schema(py, format, &described)
    }

    /// Whether it was closed.
    #[getter(closed)]
    fn is_closed(&self, py: Python<'_>) -> bool {
        py.detach(|| lock(&self.inner).is_none())
    }

    /// What following the arena has cost so far.
    #[getter]
    fn counters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let facts = *lock(&self.facts);
        let counters = PyDict::new(py);
        for (name, value) in [
            ("steps", facts.nr_steps),
            ("missed", facts.missed),
            ("runs_mapped", facts.counts.runs_mapped),
            ("chunks_mapped", facts.counts.chunks_mapped),
            ("chunks_reused", facts.counts.chunks_reused),
            ("bytes_detached", facts.counts.bytes_detached),
        ] {
            counters.set_item(name, value)?;
        }
        Ok(counters)
    }

    /// The next snapshot, or None at the end of the stream.
    #[pyo3(signature = (timeout = None))]
    fn next(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Snapshot>> {
        let timeout = match timeout {
            None => self.timeout,
            seconds => wait::timeout(seconds)?,
        };
        self.next_within(py, timeout)
    }

    /// The generations that `at()` would find now, ascending.
    fn generations<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let generations = self.ask(py, |stream| stream.generations())?;
        store::list(py, &generations)
    }

    /// The snapshot of one generation, whatever was read before.
    fn at(&self, py: Python<'_>, generation: u64) -> PyResult<Snapshot> {
        let snapshot = self.ask(py, |stream| stream.at_owned(generation))?;
        let snapshot = Snapshot::new(Arc::clone(&self.name), snapshot);
        let mut chosen = lock(&self.chosen);
        chosen.retain(|hold| hold.strong_count() > 0);
        chosen.push(Arc::downgrade(snapshot.hold()));
        Ok(snapshot)
    }

    /// What changed between two generations: (offset, bytes) of each range.
    fn diff(&self, py: Python<'_>, a: u64, b: u64) -> PyResult<Vec<(u64, u64)>> {
        let diff = self.ask(py, |stream| stream.diff(a, b))?;
        Ok(store::ranges(&diff))
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Snapshot>> {
        self.next_within(py, self.timeout)
    }

    /// Detaches. Arrays that are in use become private copies.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        if self.pid == std::process::id() {
            lock(&self.holds).append(&mut lock(&self.chosen));
            self.pass_all(py, 0)?;
            py.detach(|| {
                let closed = lock(&self.inner).take();
                if let Some(stream) = closed {
                    lock(&self.facts).counts = stream.map_counts();
                }
            });
        }
        Ok(())
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_raised))]
    fn __exit__(&self, py: Python<'_>, _raised: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.close(py)
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err(
            "a stream cannot be pickled: it is a connection of this process; \
             attach the arena where its snapshots are wanted",
        ))
    }

    fn __repr__(&self) -> String {
        let facts = *lock(&self.facts);
        format!(
            "<xemem.Stream of {:?}, {} steps, {} missed>",
            self.name, facts.nr_steps, facts.missed
        )
    }
}
