//! [`Variable`]: how a variable lies in memory, in numpy's words.
//!
//! Made from checked descriptions, for users to look at and for
//! [`crate::snapshot::Frames`] to make arrays of. Reads no data.

use enclave_abi::arena::{VarDesc, dtype, text};
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use xemem_host::schema::{self, Described};

/// What an arena says about one of its variables.
#[derive(Clone, Debug)]
#[pyclass(frozen, module = "xemem")]
pub(crate) struct Variable {
    desc: VarDesc,
}

/// numpy's type string of one lane, if numpy has such a type.
pub(crate) fn type_string(desc: &VarDesc) -> Option<String> {
    let letter = match (desc.dtype_code, desc.dtype_bits) {
        (dtype::INT, 8 | 16 | 32 | 64) => 'i',
        (dtype::UINT, 8 | 16 | 32 | 64) => 'u',
        (dtype::FLOAT, 16 | 32 | 64) => 'f',
        (dtype::COMPLEX, 64 | 128) => 'c',
        _ => return None,
    };
    let bytes = desc.dtype_bits / 8;
    let endian = if bytes == 1 { '|' } else { '<' };
    Some(format!("{endian}{letter}{bytes}"))
}

/// Shape and strides as numpy sees them: lanes are a last dimension.
pub(crate) fn dimensions(desc: &VarDesc) -> (Vec<u64>, Vec<i64>) {
    let ndim = usize::try_from(desc.ndim).unwrap_or(usize::MAX);
    let mut shape: Vec<u64> = desc.shape.iter().take(ndim).copied().collect();
    let mut strides: Vec<i64> = desc.strides.iter().take(ndim).copied().collect();
    if desc.dtype_lanes > 1 {
        shape.push(u64::from(desc.dtype_lanes));
        strides.push(i64::from(desc.dtype_bits / 8));
    }
    (shape, strides)
}

/// What is `described`, as Python's JSON module reads it.
///
/// # Errors
/// ValueError if there is no such form.
pub(crate) fn schema<'py>(
    py: Python<'py>,
    format: &str,
    described: &Described<'_>,
) -> PyResult<Bound<'py, PyAny>> {
    let document = match format {
        "json" => schema::json(described),
        "conduit" => schema::conduit(described),
        other => {
            let text = format!("format must be \"json\" or \"conduit\", not {other:?}");
            return Err(PyValueError::new_err(text));
        }
    };
    py.import("json")?
        .call_method1("loads", (document.to_string(),))
}

impl Variable {
    pub(crate) fn new(desc: VarDesc) -> Self {
        Self { desc }
    }

    /// Its name.
    pub(crate) fn key(&self) -> &str {
        self.desc.name().unwrap_or("")
    }

    /// The entry of the table it was made of.
    pub(crate) fn desc(&self) -> VarDesc {
        self.desc
    }

    /// Labels of the axes, none for lanes.
    fn labels(&self) -> Vec<&str> {
        let labels = text(&self.desc.axis_labels).unwrap_or("");
        let labels = labels.split(',').map(str::trim);
        labels.filter(|label| !label.is_empty()).collect()
    }
}

#[pymethods]
impl Variable {
    /// Name, perhaps a path with slashes.
    #[getter]
    fn name(&self) -> &str {
        self.key()
    }

    /// Type of an element as numpy writes it, or None if numpy has no such type.
    #[getter]
    fn dtype(&self) -> Option<String> {
        type_string(&self.desc)
    }

    /// Elements per dimension.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, dimensions(&self.desc).0)
    }

    /// Bytes between neighbours per dimension.
    #[getter]
    fn strides<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, dimensions(&self.desc).1)
    }

    /// Order the producer names: "C" or "F".
    #[getter]
    fn order(&self) -> String {
        char::from(self.desc.order).to_string()
    }

    /// Bytes from the arena's start.
    #[getter]
    fn offset(&self) -> u64 {
        self.desc.offset
    }

    /// Bytes it covers.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.desc.nbytes
    }

    /// Unit, empty if the producer named none.
    #[getter]
    fn unit(&self) -> &str {
        text(&self.desc.unit).unwrap_or("")
    }

    /// Labels of the axes, first axis first; empty if the producer named none.
    #[getter]
    fn axes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.labels())
    }

    /// What it is: "data", "coordinate", "element" or "vertex".
    #[getter]
    fn role(&self) -> &'static str {
        schema::role_name(self.desc.role)
    }

    /// Unit, axes, order and role as a dictionary.
    #[getter]
    pub(crate) fn attrs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let attrs = PyDict::new(py);
        attrs.set_item("unit", self.unit())?;
        attrs.set_item("axes", self.axes(py)?)?;
        attrs.set_item("order", self.order())?;
        attrs.set_item("role", self.role())?;
        Ok(attrs)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let shape = self.shape(py)?.into_bound_py_any(py)?.repr()?;
        let dtype = self.dtype().unwrap_or_else(|| "?".to_owned());
        let (name, order) = (self.name(), self.order());
        Ok(format!(
            "<xemem.Variable {name:?} {dtype} {shape} order {order} unit {:?}>",
            self.unit()
        ))
    }
}
