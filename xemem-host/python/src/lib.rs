//! `xemem._native`: the part of the Python package `xemem` that is Rust.
//!
//! ```text
//!  xemem.attach ──► Stream ──► Snapshot ──► Frames ──► numpy array
//!                     │           │            │
//!                     └────── hold::Hold ──────┘   who still uses a snapshot
//! ```
//!
//! Wraps [`xemem_host::Stream`]; what it adds is that numpy arrays, which
//! nobody can call back, never show anything but their own snapshot
//! ([`hold`]). It waits without the interpreter's lock and in slices, so that
//! Ctrl-C works. What needs no Rust (exceptions, xarray) is Python, in the
//! folder `xemem` beside this one, with the documentation for users.

mod attach;
mod failure;
mod hold;
mod layout;
mod snapshot;
mod store;
mod stream;
mod wait;

/// The module that Python imports.
#[pyo3::pymodule]
mod _native {
    #[pymodule_export]
    use super::attach::attach;
    #[pymodule_export]
    use super::layout::Variable;
    #[pymodule_export]
    use super::snapshot::Frames;
    #[pymodule_export]
    use super::snapshot::Snapshot;
    #[pymodule_export]
    use super::stream::Stream;
}
