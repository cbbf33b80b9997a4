//! `wheel`: the Python package `xemem`, built by maturin, and its tests.
//!
//! Everything Python needs lives in a virtual environment in the target
//! folder, filled from PyPI once for each change of the lists below; after
//! that no network is needed. The wheel goes to `out/`, beside the programs.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use crate::demo::{self, Kvm};
use crate::failure::Failure;
use crate::image;
use crate::libtest::Totals;
use crate::tool;
use crate::workspace::Workspace;

/// Folder of the package in the source tree.
const PACKAGE: &str = "xemem-host/python";
/// What building the wheel needs.
const TO_BUILD: &[&str] = &["maturin>=1.9.4,<2"];
/// What tests and examples need beside it.
const TO_TEST: &[&str] = &[
    "adios2>=2.11",
    "dask[array]",
    "h5py",
    "matplotlib",
    "numpy",
    "pytest",
    "xarray",
];
/// The tests with an enclave.
const NEEDS_KVM: &str = "test_enclave.py";
/// In the environment: what was installed, so that it is done once.
const STAMP: &str = "xasm-installed";

/// Arguments of `wheel`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Also install it into an environment of its own and run its tests; needs
    /// `cargo xtask image`.
    #[arg(long)]
    test: bool,
}

/// Builds the wheel, and tests it if that is wanted.
///
/// # Errors
/// No Python, no network on the first run, or a build or test that fails.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> anyhow::Result<()> {
    if options.test {
        let totals = test(workspace, demo::kvm()?)?;
        println!("{} passed, {} failed", totals.passed, totals.failed);
        return Ok(());
    }
    let environment = Environment::with(workspace, TO_BUILD)?;
    environment.build(workspace).map(drop)
}

/// Builds the wheel and runs its tests against the programs in `out/`; those
/// that need an enclave only where there can be one.
///
/// # Errors
/// As [`run`].
pub(crate) fn test(workspace: &Workspace, kvm: Kvm) -> anyhow::Result<Totals> {
    let environment = Environment::with(workspace, &[TO_BUILD, TO_TEST].concat())?;
    let wheel = environment.build(workspace)?;
    let mut install = environment.pip(&["install", "--no-index", "--no-deps"]);
    install.args(["--quiet", "--force-reinstall"]).arg(&wheel);
    tool::run("python: install the wheel", &mut install)?;
    let exporter = exporter(workspace)?;
    let tests = workspace.root.join(PACKAGE).join("tests");
    let mut pytest = environment.python();
    if kvm == Kvm::Missing {
        eprintln!("==> python: /dev/kvm is missing, {NEEDS_KVM} is left out");
    }
    pytest
        .args(["-m", "pytest", "-p", "no:cacheprovider", "--durations=5"])
        .arg("--rootdir")
        .arg(workspace.root.join(PACKAGE))
        .arg(&tests)
        .args((kvm == Kvm::Missing).then_some("--ignore"))
        .args((kvm == Kvm::Missing).then(|| tests.join(NEEDS_KVM)))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("XASM_OUT", &workspace.out)
        .env("XASM_TEST_EXPORTER", exporter);
    let mut totals = Totals::default();
    tool::run_lines("python: tests", &mut pytest, |line| {
        println!("{line}");
        if let Some(counts) = summary(line) {
            totals.add(counts);
        }
    })?;
    if totals.passed == 0 || totals.ignored > 0 {
        let why = format!("{} ran, {} were left out", totals.passed, totals.ignored);
        return Err(tool::failed("python: tests", &pytest, &why));
    }
    Ok(totals)
}

/// The program that plays an exporter for the tests.
fn exporter(workspace: &Workspace) -> anyhow::Result<PathBuf> {
    let what = "python: the tests' exporter";
    let arguments = ["build", "--release", "--package", "xemem-host"];
    let arguments = arguments.into_iter().chain(["--example", "exporter"]);
    let arguments: Vec<String> = arguments.map(str::to_owned).collect();
    let files = image::build(workspace, what, &arguments)?;
    let is_exporter = |file: &PathBuf| file.file_name().is_some_and(|name| name == "exporter");
    let mut found = files.into_iter().filter(is_exporter);
    found.next().context("cargo named no exporter")
}

/// A virtual environment.
#[derive(Debug)]
struct Environment {
    folder: PathBuf,
}

impl Environment {
    /// The environment of this checkout with at least `packages` in it.
    fn with(workspace: &Workspace, packages: &[&str]) -> anyhow::Result<Self> {
        let metadata = image::metadata(workspace)?;
        let target = metadata["target_directory"].as_str();
        let target = Path::new(target.context("cargo names no target folder")?);
        let environment = Self {
            folder: target.join("python"),
        };
        let stamp = environment.folder.join(STAMP);
        let installed = fs::read_to_string(&stamp).unwrap_or_default();
        let is_installed = |package: &&str| installed.lines().any(|line| line == *package);
        let missing: Vec<&str> = packages
            .iter()
            .copied()
            .filter(|package| !is_installed(package))
            .collect();
        if missing.is_empty() && tool::succeeds(environment.python().arg("--version")) {
            return Ok(environment);
        }
        environment.make()?;
        environment.install(packages)?;
        fs::write(&stamp, packages.join("\n"))
            .with_context(|| format!("write {}", stamp.display()))?;
        Ok(environment)
    }

    /// Makes the environment anew: half of one is of no use.
    fn make(&self) -> anyhow::Result<()> {
        let mut make = Command::new("python3");
        make.args(["-m", "venv", "--clear"]).arg(&self.folder);
        tool::capture("python: make an environment", &mut make)
            .map(drop)
            .map_err(|error| {
                Failure::error(
                    "python: cannot make a virtual environment",
                    format!("{error:#}"),
                    "sudo apt-get install python3-venv",
                )
            })
    }

    fn install(&self, packages: &[&str]) -> anyhow::Result<()> {
        eprintln!("==> python: install {} from PyPI", packages.join(", "));
        let mut pip = self.pip(&["install", "--quiet"]);
        pip.args(packages);
        let line = tool::line(&pip);
        let installed = tool::capture("python: install from PyPI", &mut pip);
        installed.map(drop).map_err(|error| {
            let why = format!("PyPI is needed once, later runs use what is there: {error:#}");
            Failure::error("python: cannot install packages", why, line)
        })
    }

    fn program(&self, name: &str) -> PathBuf {
        self.folder.join("bin").join(name)
    }

    fn python(&self) -> Command {
        Command::new(self.program("python"))
    }

    fn pip(&self, arguments: &[&str]) -> Command {
        let mut pip = self.python();
        pip.args(["-m", "pip", "--disable-pip-version-check"]);
        pip.args(arguments);
        pip
    }

    /// Builds the wheel into `out/`, in the place of an older one.
    fn build(&self, workspace: &Workspace) -> anyhow::Result<PathBuf> {
        fs::create_dir_all(&workspace.out).context("create out/")?;
        for old in wheels(&workspace.out)? {
            fs::remove_file(&old).with_context(|| format!("remove {}", old.display()))?;
        }
        let mut build = Command::new(self.program("maturin"));
        build
            .args(["build", "--release", "--locked", "--quiet"])
            .arg("--manifest-path")
            .arg(workspace.root.join(PACKAGE).join("Cargo.toml"))
            .arg("--interpreter")
            .arg(self.program("python"))
            .arg("--out")
            .arg(&workspace.out)
            .current_dir(&workspace.root)
            .env("CARGO", workspace.cargo().get_program())
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS");
        tool::run("python: build the wheel", &mut build)?;
        let wheel = wheels(&workspace.out)?.pop();
        let wheel = wheel.context("maturin left no wheel in out/")?;
        eprintln!("==> python: {}", wheel.display());
        Ok(wheel)
    }
}

/// Wheels of our package in `folder`.
fn wheels(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).context("list out/")? {
        let name: OsString = entry?.file_name();
        let text = name.to_string_lossy();
        if text.starts_with("xemem-") && text.ends_with(".whl") {
            found.push(folder.join(&name));
        }
    }
    Ok(found)
}

/// The counts of pytest's last line, such as `= 3 passed, 1 skipped in 2s =`;
/// `None` for any other line.
fn summary(line: &str) -> Option<Totals> {
    let (counts, time) = line.trim_matches(['=', ' ']).rsplit_once(" in ")?;
    if !time.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let mut totals = Totals::default();
    for count in counts.split(", ") {
        let (number, word) = count.split_once(' ')?;
        let number: u64 = number.parse().ok()?;
        match word {
            "passed" => totals.passed += number,
            "failed" | "error" | "errors" => totals.failed += number,
            "warning" | "warnings" => {}
            _ => totals.ignored += number,
        }
    }
    Some(totals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_pytest_is_counted() {
        let line = "=== 1 failed, 12 passed, 2 skipped, 1 warning in 3.14s ===";
        let totals = summary(line).unwrap();
        assert_eq!((totals.passed, totals.failed, totals.ignored), (12, 1, 2));
        assert_eq!(summary("40 passed in 75.00s (0:01:15)").unwrap().passed, 40);
    }

    #[test]
    fn other_lines_are_not_counted() {
        assert_eq!(summary("tests/test_arrays.py ....   [ 20%]"), None);
        assert_eq!(summary("collected 3 items in a folder"), None);
        assert_eq!(summary(""), None);
    }
}
