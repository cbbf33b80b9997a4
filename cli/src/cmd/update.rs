//! `update`: give a running enclave more, or take some of it away.
//!
//! The enclave's VMM carries the change out, whole or not at all; it goes on with
//! it when this process is killed.

use std::time::Duration;

use clap::Args;
use enclave_vmm::config::{CoreRequest, parse_cores, parse_size};
use enclave_vmm::control::client::Client;
use enclave_vmm::control::protocol::{Change, Reply, Request, Updated};
use enclave_vmm::failure::{Class, Failure};
use enclave_vmm::topology::cpu_list;
use serde::Serialize;

use crate::cmd::isolate;
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
    /// Add cores: how many, or which (a list such as 2,4-5); `create --max-cores`
    /// makes room for them.
    #[arg(long, value_name = "N|LIST", group = "change", value_parser = parse_cores)]
    add_cores: Option<CoreRequest>,
    /// Remove cores: how many, the last ones first, or which. The first one stays.
    #[arg(long, value_name = "N|LIST", group = "change", value_parser = parse_cores)]
    remove_cores: Option<CoreRequest>,
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
        let what = self.change()?;
        let is_about_cores = matches!(what, Change::AddCores { .. } | Change::RemoveCores { .. });
        if is_about_cores {
            isolate::tidy_in(&locate::run_dir()?);
        }
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
                let has = if is_about_cores {
                    let cores = updated.cores.iter().copied().collect();
                    format!("the cores {}", cpu_list(&cores))
                } else {
                    format!("{} of memory", output::size(updated.mem_bytes))
                };
                output::line(&format!("enclave {} has {has}", self.name))
            }
        }
    }

    fn change(&self) -> Result<Change, Failure> {
        let add_cores = self.add_cores.clone();
        let remove_cores = self.remove_cores.clone();
        let changes = [
            self.add_mem.map(|bytes| Change::AddMemory { bytes }),
            self.remove_mem.map(|bytes| Change::RemoveMemory { bytes }),
            add_cores.map(|cores| Change::AddCores { cores }),
            remove_cores.map(|cores| Change::RemoveCores { cores }),
        ];
        // clap lets exactly one of them through.
        changes.into_iter().flatten().next().ok_or_else(|| {
            let what = format!("update enclave {}", self.name);
            let why = "exactly one change has to be given";
            Failure::new(Class::Usage, what, why).with_hint("enclavectl help update")
        })
    }
}
