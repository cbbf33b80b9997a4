//! `libxasm.a`: the guest library for C and Fortran programs.
//!
//! The functions of `include/xasm.h`, where they are documented for their
//! users; each is a few lines over the crate `xasm`. Build the archive with
//!
//! ```text
//! cargo build -p xasm-c --profile guest
//! ```
//!
//! which leaves `libxasm.a` in the target folder's `guest/`. That profile
//! aborts on panic, and then the crate is `no_std` and brings its own panic
//! handler: the archive needs nothing but the memory routines of a C library,
//! musl or glibc, linked statically or not. Under profiles that unwind (tests,
//! lints) the crate is an ordinary one.
//!
//! An arena is a small number, its slot in the kernel; what the kernel does
//! not keep (address, size) is kept in [`table`].

#![cfg_attr(all(panic = "abort", not(test)), no_std)]

pub mod aspace;
#[cfg(test)]
mod header;
pub mod import;
pub mod memory;
pub mod paper;
pub mod policy;
pub mod segment;
pub mod surface;
mod table;
