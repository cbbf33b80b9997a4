//! Where things are: run directory, helper programs, kernel image, an
//! enclave by name.
//!
//! Used by the verbs. A thing that is missing is a failure that says where it
//! was looked for and how to get it.

use std::path::{Path, PathBuf};

use enclave_vmm::failure::{Class, Failure};
use enclave_vmm::ledger::{EnclaveDir, RunDir};

/// The run directory, made if it is not there.
pub(crate) fn run_dir() -> Result<RunDir, Failure> {
    RunDir::create(&RunDir::default_path()?)
}

/// An enclave's directory by name.
pub(crate) fn enclave(run: &RunDir, name: &str) -> Result<EnclaveDir, Failure> {
    run.enclave(name, false)?.ok_or_else(|| {
        let why = format!("there is none in {}", run.path().display());
        Failure::new(Class::NotFound, format!("find enclave {name}"), why)
            .with_hint("enclavectl list")
    })
}

/// A program of this project: next to this executable, else in `$PATH`.
pub(crate) fn program(name: &str) -> Result<PathBuf, Failure> {
    let beside = own_directory().map(|directory| directory.join(name));
    if let Some(path) = beside.as_ref().filter(|path| path.is_file()) {
        return Ok(path.clone());
    }
    if let Some(path) = in_path(name) {
        return Ok(path);
    }
    let place = beside.map_or_else(String::new, |path| format!(" at {} or", path.display()));
    let why = format!("it is not{place} in $PATH");
    Err(Failure::new(Class::NotFound, format!("find {name}"), why)
        .with_hint("cargo build --release"))
}

/// A program next to this executable, if it is there.
pub(crate) fn beside(name: &str) -> Option<PathBuf> {
    own_directory()
        .map(|directory| directory.join(name))
        .filter(|path| path.is_file())
}

/// The first executable file called `name` in `$PATH`.
pub(crate) fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file() && is_executable(candidate))
}

/// Whether this user may execute `path`.
pub(crate) fn is_executable(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// The kernel image: as given, else next to this executable, else where
/// `cargo kernel` puts it.
pub(crate) fn kernel(given: Option<&Path>) -> Result<PathBuf, Failure> {
    let what = "find the kernel image";
    let hint = "cargo kernel, or enclavectl create --kernel PATH …";
    if let Some(path) = given {
        return std::fs::canonicalize(path).map_err(|error| {
            let why = format!("{}: {error}", path.display());
            Failure::new(Class::of_io(&error), what, why).with_hint(hint)
        });
    }
    let directory = own_directory().unwrap_or_default();
    let beside = directory.join("enclave-kernel");
    let built = directory.join("../x86_64-unknown-none/kernel/enclave-kernel");
    for path in [&beside, &built] {
        if let Ok(found) = std::fs::canonicalize(path) {
            return Ok(found);
        }
    }
    let why = format!(
        "neither --kernel nor $ENCLAVE_KERNEL is given, and {} is not there",
        beside.display()
    );
    Err(Failure::new(Class::NotFound, what, why).with_hint(hint))
}

fn own_directory() -> Option<PathBuf> {
    Some(std::env::current_exe().ok()?.parent()?.to_owned())
}
