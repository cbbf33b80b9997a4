//! Several generations, as Python sees them: lists of what there is and of
//! what changed.
//!
//! Called by [`crate::stream`] and [`crate::snapshot`].

use pyo3::prelude::*;
use pyo3::types::PyList;
use xemem_host::{Diff, Generation};

/// One `xemem.Generation` each.
pub(crate) fn list<'py>(
    py: Python<'py>,
    generations: &[Generation],
) -> PyResult<Bound<'py, PyList>> {
    let class = py.import("xemem._store")?.getattr("Generation")?;
    let list = PyList::empty(py);
    for generation in generations {
        let record = &generation.record;
        let time = f64::from_bits(record.time_bits);
        let published_at = std::time::Duration::from_nanos(record.unix_ns).as_secs_f64();
        list.append(class.call1((
            generation.generation,
            record.step,
            time,
            published_at,
            generation.is_leased,
        ))?)?;
    }
    Ok(list)
}

/// (offset, bytes) of each range.
pub(crate) fn ranges(diff: &Diff) -> Vec<(u64, u64)> {
    let ranges = diff.ranges.iter();
    ranges.map(|range| (range.offset, range.len)).collect()
}
