//! `completion` and `man`: what a package installs beside the program.
//!
//! A shell's script asks this program at every Tab (`COMPLETE=bash enclavectl`),
//! so it completes names of enclaves and arenas that exist at that moment and
//! never goes stale. Manual pages come from the same command line.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use clap_complete::env::{Bash, EnvCompleter, Fish, Zsh};
use enclave_vmm::failure::{Class, Failure};

use crate::{help, output};

/// Name of the variable by which a shell's script asks.
pub(crate) const VARIABLE: &str = "COMPLETE";

/// Print the script that lets a shell complete verbs, options and names.
#[derive(Debug, Args)]
pub(crate) struct Completion {
    /// Shell.
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Write the manual pages, one for each verb, into a directory.
#[derive(Debug, Args)]
pub(crate) struct Man {
    /// Directory, which must be there.
    dir: PathBuf,
}

impl Completion {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let shell: &dyn EnvCompleter = match self.shell {
            Shell::Bash => &Bash,
            Shell::Zsh => &Zsh,
            Shell::Fish => &Fish,
        };
        let mut script = Vec::new();
        let name = "enclavectl";
        shell
            .write_registration(VARIABLE, name, name, name, &mut script)
            .map_err(|e| Failure::io("write a completion script", e))?;
        output::bytes(&script)
    }
}

impl Man {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let what = || format!("write manual pages to {}", self.dir.display());
        if !self.dir.is_dir() {
            let why = "it is not a directory";
            return Err(Failure::new(Class::NotFound, what(), why)
                .with_hint(format!("mkdir -p {}", self.dir.display())));
        }
        clap_mangen::generate_to(help::command().disable_help_subcommand(true), &self.dir)
            .map_err(|e| Failure::io(what(), e))
    }
}
