//! `bench`: the figures the project promises, measured on this machine.
//!
//! Uses the programs in `out/` as a user would: creates enclaves in a private
//! run directory, drives `xasm-bench` inside one line by line, reads snapshots
//! through `xemem_host`, and prints one table. Times are only ever compared
//! within one run, block against block in turn, by the ratio of their medians;
//! a ratio over its bound is measured anew up to three times before it counts
//! as missed. Counts are exact and have one try.
//!
//! | module     | what it holds                                        |
//! |------------|------------------------------------------------------|
//! | `figures`  | a figure, its bound and verdict; table and JSON      |
//! | `stats`    | medians and ratios                                   |
//! | `session`  | run directory, enclaves, programs; cleans up         |
//! | `janitor`  | the process that cleans up, however this one ends    |
//! | `hugepages` | the 2 MiB pages reserved for a run                  |
//! | `guest`    | a running `xasm-bench`                               |
//! | `forks`    | `fork` of a process with memory                      |
//! | `raw`      | plain mappings and the processor's clock             |
//! | `bare`     | the least virtual machine                            |
//! | `measure`  | the measurements                                     |
//!
//! Does not build anything and knows no other clock than the monotonic one.

mod bare;
mod figures;
mod forks;
mod guest;
mod hugepages;
mod janitor;
mod measure;
mod raw;
mod session;
mod stats;

use anyhow::Context as _;
use clap::Parser;
use figures::Figures;
use measure::{Effort, Plan};
use session::{Pages, Session};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Measures the figures the project promises and says which bounds are met.
#[derive(Debug, Parser)]
#[command(name = "bench", after_help = EXAMPLES)]
struct Options {
    /// Fewer blocks, shorter runs: to see that everything works.
    #[arg(long)]
    quick: bool,
    /// Use 4 KiB pages for everything, as on a host without huge pages.
    #[arg(long)]
    small_pages: bool,
    /// Only these measurements.
    #[arg(long, value_name = "NAME", value_enum)]
    only: Vec<measure::Name>,
    /// Folder with enclavectl, the kernel and the guests [default: out/ of
    /// this checkout].
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// File for the figures, one JSON object a line [default: figures.jsonl
    /// beside the programs].
    #[arg(long, value_name = "FILE")]
    figures: Option<PathBuf>,
    /// Clean up DIR when standard input ends (started by this program).
    #[arg(long, value_name = "DIR", hide = true)]
    janitor: Option<PathBuf>,
    /// Huge pages the janitor reserves.
    #[arg(long, default_value_t = 0, hide = true)]
    hugepages: u64,
}

/// Longest run, with every try used on a busy machine; beyond it something
/// hangs.
const LIMIT: Duration = Duration::from_secs(900);

const EXAMPLES: &str = "\
Examples:
  cargo run --release -p bench              everything, under six minutes
  cargo run --release -p bench -- --quick   fewer blocks
  cargo run --release -p bench -- --only storm

The programs come from `cargo xtask image`. Exit codes: 0 every bound is met,
1 a bound is missed or a measurement failed, 2 wrong usage.";

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            eprintln!("try: cargo xtask image && cargo run --release -p bench -- --quick");
            ExitCode::FAILURE
        }
    }
}

/// Ends this process when it takes too long; the janitor does the rest.
fn end_after(limit: Duration) {
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        eprintln!("bench: not done after {limit:?}: something hangs");
        eprintln!("try: cargo run --release -p bench -- --only NAME");
        std::process::exit(1);
    });
}

/// Measures; returns whether every bound is met.
fn run(options: &Options) -> anyhow::Result<bool> {
    let programs = match &options.programs {
        Some(folder) => folder.clone(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../out"),
    };
    let programs = std::path::absolute(&programs).context("find the programs")?;
    if let Some(run_dir) = &options.janitor {
        return janitor::serve(run_dir, &programs, options.hugepages).map(|()| true);
    }
    let plan = Plan {
        effort: if options.quick {
            Effort::Quick
        } else {
            Effort::Full
        },
        only: options.only.clone(),
    };
    end_after(LIMIT);
    let mut figures = Figures::default();
    let pages = if options.small_pages {
        Pages::Small
    } else {
        Pages::Huge(measure::hugepages_wanted())
    };
    let session = Session::open(&programs, pages)?;
    let measured = measure::all(&plan, &session, &mut figures);
    let closed = session.close();
    print!("{}", figures.table());
    let file = options
        .figures
        .clone()
        .unwrap_or_else(|| programs.join("figures.jsonl"));
    std::fs::write(&file, figures.json_lines()?)
        .with_context(|| format!("write {}", file.display()))?;
    measured?;
    closed?;
    println!("{}", figures.summary());
    Ok(figures.all_met())
}
