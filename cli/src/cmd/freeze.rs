//! `freeze` and `thaw`: an enclave stands still with everything it has, and goes
//! on as if nothing had been.
//!
//! Held are its vCPUs. Kernel, memory, cores, arenas and the readers of these
//! stay. Its clocks are the host's and go on.

use std::time::Duration;

use clap::Args;
use enclave_vmm::control::client::Client;
use enclave_vmm::control::protocol::Request;
use enclave_vmm::failure::Failure;

use crate::locate;

/// Longer than a VMM tries to hold its vCPUs.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Hold an enclave where it is; what it has published stays readable.
#[derive(Debug, Args)]
pub(crate) struct Freeze {
    /// Enclave.
    name: String,
}

/// Let a frozen enclave go on.
#[derive(Debug, Args)]
pub(crate) struct Thaw {
    /// Enclave.
    name: String,
}

impl Freeze {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        ask(&self.name, &Request::Freeze {})
    }
}

impl Thaw {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        ask(&self.name, &Request::Thaw {})
    }
}

fn ask(name: &str, request: &Request) -> Result<(), Failure> {
    let dir = locate::enclave(&locate::run_dir()?, name)?;
    Client::connect(&dir, TIMEOUT)?.call(request).map(drop)
}
