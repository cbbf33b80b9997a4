//! snap-mini: a discrete-ordinates transport proxy that publishes its flux.
//!
//! Solves the time-dependent, multi-group, isotropically scattering neutral
//! particle transport equation on a structured mesh by diamond-difference
//! sweeps, in the manner of LANL's SNAP, and reads SNAP's own input decks. Its
//! scalar flux lives in an arena; after each time step it publishes a snapshot
//! that analytics on the host attach while the next step runs. Under plain
//! Linux it computes the same without snapshots.
//!
//! Build it as one static file, the form an enclave runs:
//!
//! ```text
//! cargo rustc -p snap-mini --release --bin snap-mini -- \
//!     -C target-feature=+crt-static -C relocation-model=static
//! ```
//!
//! | module        | what it holds                                       |
//! |---------------|-----------------------------------------------------|
//! | `options`     | the command line                                    |
//! | `namelist`    | Fortran namelist syntax                             |
//! | `input`       | the keys of a deck, their ranges and defaults       |
//! | `problem`     | mesh, materials, cross sections, quadrature         |
//! | `sweep`       | one transport sweep of one group                    |
//! | `solver`      | inner and outer iterations, time steps, balance     |
//! | `fields`      | the published arrays, in an arena or ordinary memory |
//! | `diagnostics` | spectrum and checksum                               |
//! | `report`      | the text report and the JSON summary                |
//! | `run`         | the time loop that ties them together               |
//!
//! Single-threaded on purpose: it is the measured program of the overhead
//! benchmarks. Not SNAP: no MPI, no anisotropic scattering, no manufactured
//! solution.

mod diagnostics;
mod failure;
mod fields;
mod input;
mod namelist;
mod options;
mod problem;
mod report;
mod run;
mod solver;
mod sweep;

use failure::Failure;
use options::{Command, Options};
use std::process::ExitCode;

fn main() -> ExitCode {
    match Options::parse(std::env::args().skip(1)) {
        Ok(Command::Help) => {
            print!("{}", options::HELP);
            ExitCode::SUCCESS
        }
        Ok(Command::Run(options)) => finish(run::run(&options), 1),
        Err(failure) => finish(Err(failure), 2),
    }
}

/// Prints the failure, if any, and chooses the exit code.
fn finish(outcome: Result<(), Failure>, code: u8) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(code)
        }
    }
}
