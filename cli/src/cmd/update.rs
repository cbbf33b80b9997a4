//! `update`: give a running enclave more, or take some of it away.
//!
//! The enclave's VMM carries the change out, whole or not at all; it goes on with
//! it when this process is killed.

use std::time::Duration;

use clap::Args;
use enclave_vmm::config::parse_size;
use enclave_vmm::control::client::Client;
use enclave_vmm::control::protocol::{Change, Reply, Request, Updated};
use enclave_vmm::failure::{Class, Failure};
use serde::Serialize;

use crate::locate;
use crate::output::{self, Format};

/// Memory may have to be touched first, and the kernel has ten seconds.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Give a running enclave more memory, or take some of it away.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("change").required(true)))]
pub(crate) struct Update {
    /// Enclave.
    name: String,
    /// Add memory, in blocks of 128 MiB.
    #[arg(long, value_name = "SIZE", group = "change", value_parser = parse_size)]
    add_mem: Option<u64>,
    /// Remove memory that was added and that nobody uses.
    #[arg(long, value_name = "SIZE", group = "change", value_parser = parse_size)]
    remove_mem: Option<u64>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Told<'a> {
    name: &'a str,
    #[serde(flatten)]
    updated: &'a Updated,
}

impl Update {
    pub(crate) fn run(&self, format: Format) -> Result<(), Failure> {
        let dir = locate::enclave(&locate::run_dir()?, &self.name)?;
        let mut client = Client::connect(&dir, TIMEOUT)?;
        let updated = match client.call(&Request::Update(self.change()?))? {
            Reply::Updated(updated) => updated,
            _ => {
                let what = format!("update enclave {}", self.name);
                let why = "an answer of another kind";
                return Err(
                    Failure::new(Class::Protocol, what, why).with_hint("enclavectl version")
                );
            }
        };
        for warning in &updated.warnings {
            output::warning(warning);
        }
        match format {
            Format::Json => output::json(
                "update",
                &Told {
                    name: &self.name,
                    updated: &updated,
                },
            ),
            Format::Text => {
                let size = output::size(updated.mem_bytes);
                output::line(&format!("enclave {} has {size} of memory", self.name))
            }
        }
    }

    fn change(&self) -> Result<Change, Failure> {
        match (self.add_mem, self.remove_mem) {
            (Some(bytes), None) => Ok(Change::AddMemory { bytes }),
            (None, Some(bytes)) => Ok(Change::RemoveMemory { bytes }),
            // clap lets exactly one of them through.
            _ => {
                let what = format!("update enclave {}", self.name);
                let why = "exactly one change has to be given";
                Err(Failure::new(Class::Usage, what, why).with_hint("enclavectl help update"))
            }
        }
    }
}
