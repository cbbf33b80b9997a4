//! `test`: everything that continuous integration runs, in order.
//!
//! Stops at the first failure and prints the command that repeats it. What
//! needs the least time comes first. A machine without /dev/kvm is an error,
//! not a reason to skip: a green run means that enclaves ran.

use std::collections::BTreeSet;
use std::process::Command;

use crate::demo;
use crate::failure::Failure;
use crate::image;
use crate::libtest::{self, Totals};
use crate::lint;
use crate::proc::{self, Process};
use crate::setup::{self, Purpose};
use crate::tool;
use crate::workspace::Workspace;

/// Arguments of `test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only what needs neither image nor /dev/kvm: format, lints, documents,
    /// unit tests.
    #[arg(long)]
    quick: bool,
}

/// Arguments of the host's clippy run.
const CLIPPY_HOST: &[&str] = &[
    "clippy",
    "--workspace",
    "--exclude",
    "enclave-kernel",
    "--all-targets",
    "--",
    "-D",
    "warnings",
];
/// Arguments of the kernel's clippy run: the host's never compiles its code.
const CLIPPY_KERNEL: &[&str] = &[
    "clippy",
    "--package",
    "enclave-kernel",
    "--target",
    "x86_64-unknown-none",
    "--profile",
    "kernel",
    "--",
    "-D",
    "warnings",
];

/// Runs the checks.
///
/// # Errors
/// The first check that fails.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> anyhow::Result<()> {
    if !options.quick {
        demo::require_kvm()?;
    }
    setup::require(workspace, Purpose::Test)?;
    static_checks(workspace)?;
    let before = proc::from_folder(&workspace.out);
    let totals = if options.quick {
        let mut command = workspace.cargo();
        command.args(["test", "--lib", "--bins"]);
        cargo_test("unit tests", command)?
    } else {
        image::run(workspace)?;
        lint::kernel(&workspace.kernel())?;
        let mut command = workspace.cargo();
        command
            .arg("test")
            .env("ENCLAVE_KERNEL", workspace.kernel())
            .env("XASM_OUT", &workspace.out);
        let totals = cargo_test("all tests", command)?;
        demo::check(workspace)?;
        figures(workspace)?;
        totals
    };
    nothing_left(workspace, &before)?;
    println!("{} passed, {} failed", totals.passed, totals.failed);
    Ok(())
}

/// The promised figures, with their bounds; also written to
/// `out/figures.jsonl`.
fn figures(workspace: &Workspace) -> anyhow::Result<()> {
    let mut command = workspace.cargo();
    command
        .args(["run", "--quiet", "--release", "--package", "bench"])
        .args(["--", "--programs"])
        .arg(&workspace.out);
    tool::run("promised figures", &mut command)
}

/// Format, lints, documents, licences: no test runs yet.
fn static_checks(workspace: &Workspace) -> anyhow::Result<()> {
    let cargo = |arguments: &[&str]| {
        let mut command = workspace.cargo();
        command.args(arguments);
        command
    };
    tool::run("format", &mut cargo(&["fmt", "--all", "--check"]))?;
    lint::sources(workspace)?;
    tool::run("clippy: host", &mut cargo(CLIPPY_HOST))?;
    tool::run("clippy: kernel", &mut cargo(CLIPPY_KERNEL))?;
    let mut doc = cargo(&["doc", "--no-deps"]);
    tool::run("documents", doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    if tool::succeeds(&mut cargo(&["deny", "--version"])) {
        let deny = ["deny", "--offline", "check", "licenses", "bans"];
        tool::run("licences and bans", &mut cargo(&deny))
    } else {
        eprintln!("==> licences and bans: not checked, cargo-deny is not installed");
        Ok(())
    }
}

/// Runs `cargo test`, shows what it prints and adds the results up.
fn cargo_test(what: &str, mut command: Command) -> anyhow::Result<Totals> {
    let mut totals = Totals::default();
    let ran = tool::run_lines(what, &mut command, |line| {
        println!("{line}");
        if let Some(counts) = libtest::parse(line) {
            totals.add(counts);
        }
    });
    if let Err(error) = ran {
        println!("{} passed, {} failed", totals.passed, totals.failed.max(1));
        return Err(error);
    }
    if totals.ignored > 0 || totals.passed == 0 {
        let why = format!("{} ran, {} were left out", totals.passed, totals.ignored);
        return Err(tool::failed(what, &command, &why));
    }
    Ok(totals)
}

/// No program from `out/` that started during the tests still runs.
fn nothing_left(workspace: &Workspace, before: &BTreeSet<Process>) -> anyhow::Result<()> {
    let now = proc::from_folder(&workspace.out);
    let left: Vec<String> = now.difference(before).map(proc::name).collect();
    if left.is_empty() {
        return Ok(());
    }
    Err(Failure::error(
        "test: processes were left behind",
        left.join(", "),
        "cargo test -- --test-threads 1",
    ))
}
