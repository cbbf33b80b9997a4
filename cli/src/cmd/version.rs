//! `version`: the numbers that must fit together.

use clap::Args;
use enclave_vmm::failure::Failure;
use serde_json::json;

use crate::output::{self, Format};

/// Print versions of program, protocol and ABI.
#[derive(Debug, Args)]
pub(crate) struct Version {}

impl Version {
    pub(crate) fn run(&self, format: Format) -> Result<(), Failure> {
        let program = env!("CARGO_PKG_VERSION");
        let protocol = enclave_vmm::control::protocol::PROTOCOL;
        let abi = enclave_abi::ABI_VERSION;
        match format {
            Format::Json => output::json(
                "version",
                &json!({ "program": program, "control_protocol": protocol, "abi": abi }),
            ),
            Format::Text => output::line(&format!(
                "enclavectl {program} (control protocol {protocol}, ABI {abi})"
            )),
        }
    }
}
