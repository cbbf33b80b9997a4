//! Enclaves, the broker and the command line against everything that does not
//! mean well: programs that cannot be run, requests that cannot be met, guest
//! programs that attack their kernel and their VMM, processes that are killed
//! in the middle of a step, clients that speak nonsense.
//!
//! Each test has a run directory of its own; the end of [`stage::Stage`] is
//! part of every test: nothing may be left, no process, no lock. Needs
//! /dev/kvm, gcc, a kernel image and the other programs of this workspace next
//! to `enclavectl`.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[path = "../support/mod.rs"]
mod support;

#[path = "../support/broker.rs"]
mod broker;

mod admission;
mod attacks;
mod images;
mod kills;
mod limits;
mod nonsense;
mod simulation;
mod stage;
mod streams;
