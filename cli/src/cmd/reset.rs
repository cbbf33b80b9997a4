//! `reset`: a fresh kernel with what the enclave has.
//!
//! Its VMM does it, and goes on when this process is killed. Programs end; cores,
//! memory, exports and name stay, and nobody else can take them meanwhile.

use std::time::Duration;

use clap::Args;
use enclave_vmm::control::client::Client;
use enclave_vmm::control::protocol::{Change, Reply, Request};
use enclave_vmm::failure::{Class, Failure};

use super::isolate;
use crate::locate;
use crate::output::{self, Format};

/// Its memory has to be cleared, and a kernel may take half a minute to come up.
const TIMEOUT: Duration = Duration::from_secs(120);

/// End an enclave's programs and boot a fresh kernel on the same cores, in the same
/// memory.
#[derive(Debug, Args)]
pub(crate) struct Reset {
    /// Enclave; its kernel may have crashed or hang.
    name: String,
}

impl Reset {
    pub(crate) fn run(&self, format: Format) -> Result<(), Failure> {
        let run_dir = locate::run_dir()?;
        let dir = locate::enclave(&run_dir, &self.name)?;
        let mut client = Client::connect(&dir, TIMEOUT)?;
        let Reply::Updated(updated) = client.call(&Request::Update(Change::Reset {}))? else {
            let what = format!("reset enclave {}", self.name);
            let failure = Failure::new(Class::Protocol, what, "an answer of another kind");
            return Err(failure.with_hint("enclavectl version"));
        };
        // Its threads are new.
        isolate::tidy_in(&run_dir);
        match format {
            Format::Json => output::json("reset", &updated),
            Format::Text => Ok(()),
        }
    }
}
