//! `cargo xtask …`: everything the project does to itself.
//!
//! A developer, a user on the first day and the continuous integration call
//! the same commands. This program depends on none of the project's crates: it
//! runs cargo and the built binaries, and judges what they say. Each
//! subcommand has its own file; here they are only named.

mod demo;
mod failure;
mod hw_lane;
mod image;
mod libtest;
mod lint;
mod proc;
mod setup;
mod test;
mod tool;
mod warden;
mod wheel;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Project commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask demo            build everything and watch one enclave publish snapshots
  cargo xtask demo --json     the same, with one JSON object as the last line
  cargo xtask test            every check that continuous integration runs
  cargo xtask test --quick    the checks that need neither image nor KVM
  cargo xtask wheel           build the Python package into out/
  cargo xtask hw-lane         enclaves where ring 0 is native: QEMU emulates AMD SVM
  cargo xtask hw-lane --vmx   the same with Intel VMX, emulated by Bochs, and exact counts";

#[derive(Debug, Subcommand)]
enum Command {
    /// Add the build target, tools and packages that are missing.
    Setup,
    /// Build kernel, host programs and guests into `out/`.
    Image,
    /// Build the Python package `xemem` into `out/`.
    Wheel(wheel::Options),
    /// Run an enclave from create to destroy and prove that nothing is left.
    Demo(demo::Options),
    /// Run every check in order, stop at the first failure.
    Test(test::Options),
    /// Run enclaves under emulated AMD or Intel virtualisation, where ring 0 is native.
    HwLane(hw_lane::Options),
    /// Check the rules that no compiler checks.
    Lint(lint::Options),
    /// Clean up after a demo whose process died (started by `demo`).
    #[command(hide = true)]
    Warden(warden::Options),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            failure::print(&error);
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> anyhow::Result<()> {
    match &command {
        Command::Warden(options) => return warden::serve(options),
        // Where the programs are installed there is no workspace.
        Command::Demo(options) if options.is_installed() => return demo::installed(options),
        _ => {}
    }
    let workspace = Workspace::find()?;
    match command {
        Command::Setup => setup::run(&workspace).map(drop),
        Command::Image => {
            setup::require(&workspace, setup::Purpose::Build)?;
            image::run(&workspace)
        }
        Command::Wheel(options) => {
            setup::require(&workspace, setup::Purpose::Test)?;
            wheel::run(&workspace, &options)
        }
        Command::Demo(options) => demo::run(&workspace, &options),
        Command::Test(options) => test::run(&workspace, &options),
        Command::HwLane(options) => hw_lane::run(&workspace, &options),
        Command::Lint(options) => lint::run(&workspace, &options),
        Command::Warden(_) => Ok(()),
    }
}
