//! `test`: everything that continuous integration runs, in order.
//!
//! Stops at the first failure and prints the command that repeats it. What
//! needs the least time comes first. A green run means that enclaves ran: on a
//! machine without /dev/kvm in the SVM lane alone, and then the last lines say
//! what was left out. `.ci/run` refuses such a machine.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;

use crate::demo::{self, GET_KVM, Kvm};
use crate::failure::Failure;
use crate::hw_lane;
use crate::image;
use crate::libtest::{self, Totals};
use crate::lint;
use crate::proc::{self, Process};
use crate::setup::{self, Purpose};
use crate::tool;
use crate::wheel;
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

/// What the header of a test program says when it needs enclaves.
const NEEDS_KVM: &str = "/dev/kvm";

/// Runs the checks.
///
/// # Errors
/// The first check that fails.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> anyhow::Result<()> {
    let kvm = if options.quick {
        Kvm::Missing
    } else {
        demo::kvm()?
    };
    setup::require(workspace, Purpose::Test)?;
    static_checks(workspace)?;
    let before = proc::from_folder(&workspace.out);
    let mut left_out = Vec::new();
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
        let mut totals = if kvm == Kvm::Usable {
            cargo_test("all tests", command)?
        } else {
            let (totals, not_run) = without_kvm(workspace, command)?;
            left_out = not_run;
            totals
        };
        totals.add(wheel::test(workspace, kvm)?);
        demo::check(workspace, kvm)?;
        if kvm == Kvm::Usable {
            figures(workspace)?;
        }
        hw_lane::check(workspace)?;
        totals
    };
    nothing_left(workspace, &before)?;
    if !left_out.is_empty() {
        println!("not covered, because /dev/kvm is missing:");
        for what in left_out {
            println!("  {what}");
        }
        println!("enclaves ran in the emulated machine; to have all: {GET_KVM}");
    }
    println!("{} passed, {} failed", totals.passed, totals.failed);
    Ok(())
}

/// Every test that needs no enclave; `test` is the command to add to. Returns
/// what was left out, too.
fn without_kvm(workspace: &Workspace, mut test: Command) -> anyhow::Result<(Totals, Vec<String>)> {
    eprintln!("==> test: /dev/kvm is missing; enclaves run in the emulated machine only");
    let mut left_out = Vec::new();
    test.args(["--lib", "--bins"]);
    for program in programs(&image::metadata(workspace)?) {
        let text = fs::read_to_string(&program.source)
            .with_context(|| format!("read {}", program.source.display()))?;
        match need_of_kvm(&text) {
            Some(what) => left_out.push(format!("--test {}: {what}", program.name)),
            None => {
                test.args(["--test", &program.name]);
            }
        }
    }
    let mut totals = cargo_test("tests without enclaves", test)?;
    let mut command = workspace.cargo();
    command.args(["test", "--doc"]);
    totals.add(cargo_test("examples in documents", command)?);
    left_out.push("the Python package with an enclave, and its examples".to_owned());
    left_out.push("the promised figures: times and ratios on this machine".to_owned());
    left_out.push("a host that interprets ring 0 (docs/platforms.md)".to_owned());
    Ok((totals, left_out))
}

/// An integration test.
#[derive(Debug, PartialEq, Eq)]
struct Program {
    name: String,
    source: PathBuf,
}

/// The integration tests of the workspace.
fn programs(metadata: &serde_json::Value) -> Vec<Program> {
    let packages = metadata["packages"].as_array().into_iter().flatten();
    packages
        // What has a source comes from elsewhere.
        .filter(|package| package["source"].is_null())
        .filter_map(|package| package["targets"].as_array())
        .flatten()
        .filter(|target| target["kind"][0] == "test")
        .filter_map(|target| {
            Some(Program {
                name: target["name"].as_str()?.to_owned(),
                source: PathBuf::from(target["src_path"].as_str()?),
            })
        })
        .collect()
}

/// The first sentence of a test program's header, if the header says that it
/// needs /dev/kvm.
fn need_of_kvm(source: &str) -> Option<String> {
    let header: Vec<&str> = source
        .lines()
        .map_while(|line| line.strip_prefix("//!"))
        .map(str::trim)
        .collect();
    let header = header.join(" ");
    let first = header.split(". ").next().unwrap_or_default();
    header
        .contains(NEEDS_KVM)
        .then(|| first.trim_end_matches('.').to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn integration_tests_of_the_workspace_are_found() {
        let metadata = json!({"packages": [
            {"source": null, "targets": [
                {"kind": ["lib"], "name": "vmm", "src_path": "/w/lib.rs"},
                {"kind": ["test"], "name": "counts", "src_path": "/w/counts.rs"}]},
            {"source": "registry", "targets": [
                {"kind": ["test"], "name": "theirs", "src_path": "/r/theirs.rs"}]},
        ]});
        let want = Program {
            name: "counts".to_owned(),
            source: PathBuf::from("/w/counts.rs"),
        };
        assert_eq!(programs(&metadata), [want]);
    }

    #[test]
    fn a_header_tells_whether_a_test_needs_kvm() {
        let text =
            "//! Real programs, in\n//! an enclave. More.\n//!\n//! Needs /dev/kvm.\nuse a;\n";
        let want = Some("Real programs, in an enclave".to_owned());
        assert_eq!(need_of_kvm(text), want);
        assert_eq!(
            need_of_kvm("//! Pure.\n\n/// opens /dev/kvm\nfn f() {}\n"),
            None
        );
    }
}
