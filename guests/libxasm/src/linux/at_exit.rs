//! What happens when the program ends by returning from `main` or by `exit`.
//!
//! Readers are told that the stream ended as it should. A program that is killed
//! or calls `_exit` says nothing; the broker sees its connection end.

// UNSAFETY: a linker section that is a list of functions to call.
#![expect(unsafe_code)]

/// Called by the C library, statically linked or not, after `main`.
#[used]
#[unsafe(link_section = ".fini_array")]
static AT_EXIT: extern "C" fn() = end;

extern "C" fn end() {
    super::end_all();
}

/// Keeps the linker from leaving the section out.
pub(super) fn keep() {
    core::hint::black_box(&AT_EXIT);
}
