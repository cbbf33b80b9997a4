//! [`Snapshot`]: one step of a stream, a mapping from names to arrays.
//!
//! Made by [`crate::stream`]. Arrays are views of [`Frames`], which they keep
//! alive, as views of those arrays do, whoever made them: so the number of
//! living `Frames` is the number of uses that [`Hold`] counts.

use std::sync::Arc;

use enclave_abi::arena::{GenerationRecord, VarDesc};
use pyo3::exceptions::{PyBufferError, PyTypeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyIterator, PyList, PyTuple};
use rustix::io::Errno;
use xemem_host::schema::Described;
use xemem_host::snapshot::SnapshotError;
use xemem_host::{ClientError, OwnedSnapshot};

use crate::failure::{self, Class};
use crate::hold::{Hold, Place};
use crate::layout::{self, Variable};
use crate::store;
use crate::stream;

/// One published generation.
#[derive(Debug)]
#[pyclass(frozen, mapping, module = "xemem", weakref)]
pub(crate) struct Snapshot {
    hold: Arc<Hold>,
    record: GenerationRecord,
    arena: Arc<str>,
    variables: Vec<Variable>,
    size_bytes: u64,
    runs: usize,
}

impl Snapshot {
    pub(crate) fn new(arena: Arc<str>, snapshot: OwnedSnapshot) -> Self {
        let variables = snapshot.variables().iter();
        Self {
            record: *snapshot.record(),
            arena,
            variables: variables.map(|desc| Variable::new(*desc)).collect(),
            size_bytes: snapshot.geometry().size_bytes,
            runs: snapshot.runs(),
            hold: Arc::new(Hold::new(snapshot)),
        }
    }

    pub(crate) fn hold(&self) -> &Arc<Hold> {
        &self.hold
    }

    fn failed(&self, py: Python<'_>, error: SnapshotError) -> PyErr {
        let SnapshotError::Detached(_) = error else {
            return failure::of(py, &ClientError::Snapshot(error));
        };
        let step = self.record.step;
        let text = format!(
            "the snapshot of step {step} has been given back: take its arrays \
             before the stream goes on, or copy them"
        );
        failure::raise(py, Class::Released, Errno::STALE, &text)
    }
}

#[pymethods]
impl Snapshot {
    /// The producer's step.
    #[getter]
    fn step(&self) -> u64 {
        self.record.step
    }

    /// The producer's time, in its own unit.
    #[getter]
    fn time(&self) -> f64 {
        f64::from_bits(self.record.time_bits)
    }

    /// Number of this publish, from 1.
    #[getter]
    fn generation(&self) -> u64 {
        self.record.generation
    }

    /// When it was published, in seconds since 1970.
    #[getter]
    fn published_at(&self) -> f64 {
        std::time::Duration::from_nanos(self.record.unix_ns).as_secs_f64()
    }

    /// Chunks that the producer's kernel copied since the publish before.
    #[getter]
    fn chunks_copied(&self) -> u64 {
        self.record.chunks_copied
    }

    /// Cycles that the producer spent in the publish.
    #[getter]
    fn publish_cycles(&self) -> u64 {
        self.record.publish_cycles
    }

    /// Bytes of the arena's payload.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.size_bytes
    }

    /// Mapped pieces it consists of.
    #[getter]
    fn runs(&self) -> usize {
        self.runs
    }

    /// The variables by name.
    #[getter]
    fn variables<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        stream::variables(py, &self.variables)
    }

    /// Unit, axes, order and role of every variable, by name.
    #[getter]
    fn attrs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let attrs = PyDict::new(py);
        for variable in &self.variables {
            attrs.set_item(variable.key(), variable.attrs(py)?)?;
        }
        Ok(attrs)
    }

    /// Whether what its arrays show is what was published. Ask after reading.
    fn valid(&self) -> bool {
        self.hold.valid()
    }

    /// Whether its lease went back: no more arrays can be taken.
    #[getter]
    fn released(&self) -> bool {
        !self.hold.is_leased()
    }

    /// What changed from generation `since` to this one: (offset, bytes) of
    /// each range.
    fn diff(&self, py: Python<'_>, since: u64) -> PyResult<Vec<(u64, u64)>> {
        let over = SnapshotError::Detached(self.record.generation);
        let diff = py.detach(|| self.hold.with(|snapshot| snapshot.diff(since)));
        let diff = diff.unwrap_or(Err(over));
        Ok(store::ranges(
            &diff.map_err(|error| self.failed(py, error))?,
        ))
    }

    /// Gives the snapshot back; BufferError while arrays of it are in use.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.hold.release()).map_err(|left| {
            PyBufferError::new_err(format!(
                "cannot release the snapshot of step {}: {left} of its arrays are in use; \
                 delete or copy them, or let the stream go on",
                self.record.step
            ))
        })
    }

    /// The array of a variable: a read-only view of the snapshot's memory.
    fn __getitem__<'py>(slf: &Bound<'py, Self>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let snapshot = slf.get();
        let place = snapshot
            .hold
            .begin_use(name)
            .map_err(|error| snapshot.failed(py, error))?;
        let frames = Frames {
            hold: Arc::clone(&snapshot.hold),
            place,
        };
        as_array(&Bound::new(py, frames)?)
    }

    fn __len__(&self) -> usize {
        self.variables.len()
    }

    fn __contains__(&self, name: &Bound<'_, PyAny>) -> bool {
        name.extract::<String>()
            .is_ok_and(|name| self.variables.iter().any(|v| v.key() == name))
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        self.keys(py)?.try_iter()
    }

    /// Names of the variables.
    fn keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.variables.iter().map(Variable::key))
    }

    /// The variables as a dictionary: "json" lists the table, "conduit" is a
    /// Conduit schema over the arena's bytes.
    #[pyo3(signature = (format = "json"))]
    fn schema<'py>(&self, py: Python<'py>, format: &str) -> PyResult<Bound<'py, PyAny>> {
        let variables: Vec<VarDesc> = self.variables.iter().map(Variable::desc).collect();
        let described = Described {
            arena: &self.arena,
            size_bytes: self.size_bytes,
            record: Some(&self.record),
            variables: &variables,
        };
        layout::schema(py, format, &described)
    }

    /// Private copies of all variables, or of those named, by name.
    #[pyo3(signature = (*names))]
    fn copy<'py>(slf: &Bound<'py, Self>, names: Vec<String>) -> PyResult<Bound<'py, PyDict>> {
        let py = slf.py();
        let names = if names.is_empty() {
            slf.get()
                .variables
                .iter()
                .map(|v| v.key().to_owned())
                .collect()
        } else {
            names
        };
        let copies = PyDict::new(py);
        for name in names {
            let array = Self::__getitem__(slf, &name)?;
            copies.set_item(name, array.call_method1("copy", ("K",))?)?;
        }
        Ok(copies)
    }

    /// The snapshot as an xarray.Dataset, which shows the same memory.
    #[pyo3(signature = (*names))]
    fn to_xarray<'py>(
        slf: &Bound<'py, Self>,
        names: &Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let module = slf.py().import("xemem._xarray")?;
        module.call_method1("dataset", (slf, names))
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    /// No further arrays; the lease goes back with the last one.
    #[pyo3(signature = (*_raised))]
    fn __exit__(&self, py: Python<'_>, _raised: &Bound<'_, PyTuple>) {
        py.detach(|| self.hold.pass());
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err(
            "a snapshot cannot be pickled: it is memory of this machine; \
             pickle its arrays, or snapshot.copy()",
        ))
    }

    fn __repr__(&self) -> String {
        let state = if self.hold.is_leased() {
            ""
        } else {
            " released"
        };
        format!(
            "<xemem.Snapshot of {:?} step {} time {} generation {} with {} variables{state}>",
            self.arena,
            self.record.step,
            self.time(),
            self.record.generation,
            self.variables.len()
        )
    }
}

/// Memory of one variable; what arrays of it are views of.
#[derive(Debug)]
#[pyclass(frozen, module = "xemem")]
pub(crate) struct Frames {
    hold: Arc<Hold>,
    place: Place,
}

#[pymethods]
impl Frames {
    /// What numpy asks for: address, read-only, type, shape, strides.
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let Some(type_string) = layout::type_string(&self.place.desc) else {
            let (code, bits) = (self.place.desc.dtype_code, self.place.desc.dtype_bits);
            let text = format!("numpy has no type for elements of code {code} with {bits} bits");
            return Err(PyTypeError::new_err(text));
        };
        let (shape, strides) = layout::dimensions(&self.place.desc);
        let interface = PyDict::new(py);
        interface.set_item("version", 3)?;
        interface.set_item("data", (self.place.address, true))?;
        interface.set_item("typestr", type_string)?;
        interface.set_item("shape", PyTuple::new(py, shape)?)?;
        interface.set_item("strides", PyTuple::new(py, strides)?)?;
        Ok(interface)
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        self.hold.end_use(self.place.number);
    }
}

fn as_array<'py>(frames: &Bound<'py, Frames>) -> PyResult<Bound<'py, PyAny>> {
    static AS_ARRAY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = frames.py();
    let as_array = AS_ARRAY.get_or_try_init(py, || {
        let numpy = py.import("numpy")?;
        // Asked first, because numpy would make an array of objects of what
        // refuses to say what it is.
        Ok::<_, PyErr>(numpy.getattr("asarray")?.unbind())
    })?;
    frames.getattr("__array_interface__")?;
    as_array.bind(py).call1((frames,))
}
