//! `enclavectl`: partitions a Linux host into enclaves and runs programs there.
//!
//! Stateless: every verb looks at the run directory, asks the enclave's VMM or
//! the broker, prints, and ends with a documented exit code. One variant of
//! [`Command`] per verb; each verb is a file of [`cmd`].

#![forbid(unsafe_code)]

mod cmd;
mod figures;
mod help;
mod launch;
mod locate;
mod npy;
mod output;
mod part_file;
mod whole_file;

use std::process::ExitCode;

use clap::{FromArgMatches, Parser, Subcommand};
use clap_complete::CompleteEnv;

use crate::output::Format;

const EXAMPLES: &str = "\
Examples:
  enclavectl doctor
  enclavectl create a1 --cores 1 --mem 512M --export /data
  enclavectl init a2 --output a2.toml
  enclavectl create -f a2.toml --dry-run
  enclavectl part ls
  enclavectl run a1 -- ./snap_mini --steps 100
  enclavectl snap ls
  enclavectl snap read flux --var flux --format npy -o flux.npy
  enclavectl snap schema flux --format conduit
  enclavectl list --json
  enclavectl destroy a1";

const EXIT_CODES: &str = "\
Exit codes:
  0  ok                          5  not permitted
  1  failure                     6  cores, memory or huge pages not available
  2  usage                       7  timeout
  3  not found                   8  protocol or version mismatch
  4  busy or conflict
  run passes the program's own code through; besides:
  125  enclavectl or the enclave failed     127    program not found
  126  program cannot be executed           128+n  killed by signal n

Environment:
  ENCLAVE_RUNDIR   run directory (default /run/enclave for root)
  ENCLAVE_KERNEL   kernel image (default: enclave-kernel next to enclavectl)
  ENCLAVE_CORES, ENCLAVE_MAX_CORES, ENCLAVE_MEM, ENCLAVE_NODE, ENCLAVE_RING,
  ENCLAVE_BACKING, ENCLAVE_ISOLATION, ENCLAVE_NO_PREFAULT, ENCLAVE_SHARE_CORES
                   as the options of create, which go before them; they go
                   before a part file";

/// Partitions this host into enclaves and runs programs in them.
#[derive(Debug, Parser)]
#[command(version, about, before_help = EXAMPLES, after_help = EXIT_CODES)]
struct Cli {
    /// Print data as JSON (with a "schema" version field).
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Give an enclave cores and memory, and boot its kernel.
    Create(cmd::create::Create),
    /// Check a part file, without looking at the host.
    Check(cmd::check::Check),
    /// Write a part file for this host, with comments.
    Init(cmd::check::Init),
    /// Show how this host is split.
    #[command(subcommand)]
    Part(cmd::part::Part),
    /// Run a program in an enclave, with this terminal's input and output.
    Run(cmd::run::Run),
    /// List the enclaves.
    List(cmd::show::List),
    /// List the processes of an enclave.
    Ps(cmd::ps::Ps),
    /// Send a process of an enclave a signal.
    Kill(cmd::ps::Kill),
    /// Show everything about an enclave, as JSON.
    Inspect(cmd::show::Inspect),
    /// Show what enclaves, arenas and segments have counted.
    Stats(cmd::stats::Stats),
    /// Show enclaves and what they do, again and again.
    Top(cmd::top::Top),
    /// Show what happened to enclaves.
    Events(cmd::events::Events),
    /// Wait until an enclave is in a state, or until a program has ended.
    Wait(cmd::wait::Wait),
    /// Print what an enclave's console said.
    Logs(cmd::logs::Logs),
    /// Follow an enclave's console from now on; Ctrl-] leaves.
    Console(cmd::logs::Console),
    /// Look below what an enclave's kernel says.
    #[command(subcommand)]
    Debug(cmd::debug::Debug),
    /// Connect gdb with an enclave's program and kernel.
    Gdb(cmd::gdb::Gdb),
    /// List, read and describe snapshots.
    #[command(subcommand)]
    Snap(cmd::snap::Snap),
    /// List what processes and enclaves share.
    #[command(subcommand)]
    Xemem(cmd::xemem::Xemem),
    /// Check whether this host is ready.
    Doctor(cmd::doctor::Doctor),
    /// Run the kernel's self-tests here, and print a report for a bug.
    Selftest(cmd::selftest::Selftest),
    /// Give a running enclave more memory, or take some of it away.
    Update(cmd::update::Update),
    /// Hold an enclave where it is; what it has published stays readable.
    Freeze(cmd::freeze::Freeze),
    /// Let a frozen enclave go on.
    Thaw(cmd::freeze::Thaw),
    /// Boot a fresh kernel in an enclave, which keeps its cores and memory.
    Reset(cmd::reset::Reset),
    /// Stop enclaves and give their cores and memory back.
    #[command(alias = "rm")]
    Destroy(cmd::destroy::Destroy),
    /// Look at or stop the XEMEM broker.
    #[command(subcommand)]
    Broker(cmd::broker::Broker),
    /// Print the script that lets a shell complete verbs, options and names.
    Completion(cmd::completion::Completion),
    /// Write the manual pages, one for each verb, into a directory.
    Man(cmd::completion::Man),
    /// Print versions of program, protocol and ABI.
    Version(cmd::version::Version),
}

impl Command {
    /// Whether it is about this host's enclaves, and so clears up behind those
    /// that were killed.
    const fn looks_at_enclaves(&self) -> bool {
        !matches!(
            self,
            Self::Check(_) | Self::Init(_) | Self::Completion(_) | Self::Man(_) | Self::Version(_)
        )
    }
}

fn main() -> ExitCode {
    CompleteEnv::with_factory(help::command)
        .var(cmd::completion::VARIABLE)
        .complete();
    let matches = help::command().get_matches();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let format = if cli.json { Format::Json } else { Format::Text };
    if cli.command.looks_at_enclaves() {
        cmd::isolate::tidy();
    }
    let result = match &cli.command {
        Command::Create(verb) => verb.run(format),
        Command::Check(verb) => verb.run(format),
        Command::Init(verb) => verb.run(),
        Command::Part(verb) => verb.run(format),
        // Its exit codes are its own: 125, 126, 127 and the program's.
        Command::Run(verb) => return verb.run(format),
        // As run's, where it waits for a program.
        Command::Wait(verb) => return verb.run(format),
        Command::List(verb) => verb.run(format),
        Command::Ps(verb) => verb.run(format),
        Command::Kill(verb) => verb.run(),
        Command::Inspect(verb) => verb.run(),
        Command::Stats(verb) => verb.run(format),
        Command::Top(verb) => verb.run(format),
        Command::Events(verb) => verb.run(format),
        Command::Logs(verb) => verb.run(format),
        Command::Console(verb) => verb.run(),
        Command::Debug(verb) => verb.run(format),
        Command::Gdb(verb) => verb.run(),
        Command::Snap(verb) => verb.run(format),
        Command::Xemem(verb) => verb.run(format),
        Command::Doctor(verb) => verb.run(format),
        Command::Selftest(verb) => return verb.run(format),
        Command::Update(verb) => verb.run(format),
        Command::Freeze(verb) => verb.run(),
        Command::Thaw(verb) => verb.run(),
        Command::Reset(verb) => verb.run(format),
        Command::Destroy(verb) => verb.run(format),
        Command::Broker(verb) => verb.run(format),
        Command::Completion(verb) => verb.run(),
        Command::Man(verb) => verb.run(),
        Command::Version(verb) => verb.run(format),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::failure(&failure);
            ExitCode::from(failure.class.exit_code())
        }
    }
}
