//! What the guest `xasm-bench` and the host's `bench` both have to know.
//!
//! [`protocol`] is the lines they exchange over the guest's standard input and
//! output: the host asks for one block of work at a time, so that it decides
//! what is interleaved with what. [`pattern`] is the content of the arenas
//! that are checked for tearing. Pure; the program itself is `main.rs`.

pub mod pattern;
pub mod protocol;
