//! `image`: kernel, host programs and guests side by side in `out/`.
//!
//! `enclavectl` looks for `enclave-vmm`, `xemem-broker` and `enclave-kernel`
//! next to itself, so this one folder is a complete installation. Several cargo
//! runs and not one: kernel and host crates built together would share the
//! features of their common dependencies, and guests need their own flags.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;
use serde::Deserialize;

use crate::tool;
use crate::workspace::Workspace;

/// Packages of the host side.
pub(crate) const HOST_PACKAGES: [&str; 4] = ["enclavectl", "enclave-vmm", "xemem-host", "spectrum"];
/// Packages that make shared libraries for C programs on Linux, and their files;
/// programs load these under the name with [`SONAME_SUFFIX`].
const SHARED_LIBRARIES: [(&str, &str); 2] = [("xpmem", "libxpmem.so"), ("xemem-c", "libxemem.so")];
const SONAME_SUFFIX: &str = ".0";
/// Folder of programs that run inside an enclave (and one that does not).
const GUEST_FOLDER: &str = "guests";
/// Target of guest programs: never the kernel's, which has no floating point.
const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";
/// Static executables at fixed addresses, the form the kernel loads.
const GUEST_FLAGS: &str = "target.x86_64-unknown-linux-gnu.rustflags=\
    [\"-Ctarget-feature=+crt-static\",\"-Crelocation-model=static\"]";

/// Builds everything and copies it to `out/`.
///
/// # Errors
/// When a build fails or `out/` cannot be written.
pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<()> {
    let mut files = kernel_and_guests(workspace)?;
    let host = ["build", "--release", "--bins"];
    let packages = HOST_PACKAGES.map(str::to_owned);
    files.extend(build(
        workspace,
        "image: host programs",
        &arguments(&host, &packages),
    )?);
    files.extend(guest_library(workspace)?);
    fs::create_dir_all(&workspace.out).context("create out/")?;
    for file in &files {
        install(file, &workspace.out)?;
    }
    install_libraries(workspace)?;
    install_headers(workspace)?;
    eprintln!(
        "==> image: {} files in {}",
        files.len(),
        workspace.out.display()
    );
    Ok(())
}

/// The kernel and the programs that run in enclaves: the same files whatever
/// C library the host programs use.
///
/// # Errors
/// When a build fails.
pub(crate) fn kernel_and_guests(workspace: &Workspace) -> anyhow::Result<Vec<PathBuf>> {
    let metadata = metadata(workspace)?;
    let mut files = build(workspace, "image: kernel", &["kernel".to_owned()])?;
    let programs = guest_packages(&metadata, "bin");
    if !programs.is_empty() {
        let flags = ["build", "--release", "--bins"];
        let target = ["--target", GUEST_TARGET, "--config", GUEST_FLAGS];
        let all = arguments(&[&flags[..], &target[..]].concat(), &programs);
        files.extend(build(workspace, "image: guest programs", &all)?);
    }
    Ok(files)
}

/// The static library that C programs of enclaves link.
///
/// # Errors
/// When a build fails.
pub(crate) fn guest_library(workspace: &Workspace) -> anyhow::Result<Vec<PathBuf>> {
    let libraries = guest_packages(&metadata(workspace)?, "staticlib");
    if libraries.is_empty() {
        return Ok(Vec::new());
    }
    let all = arguments(&["build", "--profile", "guest", "--lib"], &libraries);
    build(workspace, "image: guest library", &all)
}

/// `first`, then `--package` for each of `packages`.
pub(crate) fn arguments(first: &[&str], packages: &[String]) -> Vec<String> {
    let named = packages
        .iter()
        .flat_map(|package| ["--package".to_owned(), package.clone()]);
    first
        .iter()
        .map(|word| (*word).to_owned())
        .chain(named)
        .collect()
}

/// Builds the libraries for programs on Linux. A shared one is copied under the
/// name that programs load, with a link under the name that compilers look for;
/// a static one beside it if there is one.
fn install_libraries(workspace: &Workspace) -> anyhow::Result<()> {
    for (package, library) in SHARED_LIBRARIES {
        let all = arguments(&["build", "--release", "--lib"], &[package.to_owned()]);
        let built = build(workspace, &format!("image: {library}"), &all)?;
        let is_shared = |file: &&PathBuf| file.ends_with(library);
        let shared = built.iter().find(is_shared).context("no shared library")?;
        let soname = format!("{library}{SONAME_SUFFIX}");
        install_as(shared, &workspace.out, soname.as_ref())?;
        let link = workspace.out.join(library);
        // Nothing to remove the first time.
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(&soname, &link).with_context(|| format!("link {library}"))?;
        let archive = Path::new(library).with_extension("a");
        if let Some(archive) = built.iter().find(|file| file.ends_with(&archive)) {
            install(archive, &workspace.out)?;
        }
    }
    Ok(())
}

/// Runs one cargo build and returns the executables, static and shared C
/// libraries it made, as cargo itself names them.
pub(crate) fn build(
    workspace: &Workspace,
    what: &str,
    arguments: &[String],
) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut command = workspace.cargo();
    if let Some(tree) = built_from(workspace) {
        // For the report of `enclavectl selftest`.
        command.env("XASM_BUILT_FROM", tree);
    }
    command
        .args(arguments)
        .arg("--message-format=json-render-diagnostics");
    tool::run_lines(what, &mut command, |line| files.extend(artifacts(line)))?;
    Ok(files)
}

/// Which commit the tree is at, and whether it was changed since; none
/// without git or its data.
fn built_from(workspace: &Workspace) -> Option<String> {
    let output = Command::new("git")
        .args(["describe", "--always", "--dirty", "--tags"])
        .current_dir(&workspace.root)
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_owned())
}

/// One message of cargo's JSON output, as far as it matters here.
#[derive(Deserialize)]
struct Message {
    reason: String,
    executable: Option<PathBuf>,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

/// Executables and libraries named by one line of cargo's JSON output.
fn artifacts(line: &str) -> Vec<PathBuf> {
    let Ok(message) = serde_json::from_str::<Message>(line) else {
        return Vec::new();
    };
    if message.reason != "compiler-artifact" {
        return Vec::new();
    }
    let is_own = |path: &PathBuf| {
        let shared = SHARED_LIBRARIES
            .iter()
            .any(|(_, name)| path.ends_with(name));
        shared || path.extension().is_some_and(|ext| ext == "a")
    };
    let libraries = message.filenames.into_iter().filter(is_own);
    message.executable.into_iter().chain(libraries).collect()
}

/// What `cargo metadata` says about the workspace.
pub(crate) fn metadata(workspace: &Workspace) -> anyhow::Result<serde_json::Value> {
    let mut command = workspace.cargo();
    command.args(["metadata", "--format-version=1"]);
    let text = tool::capture("read the crate graph", &mut command)?;
    serde_json::from_str(&text).context("parse cargo metadata")
}

/// Workspace packages below `guests/` that are built for enclaves and have a
/// target of `kind`.
fn guest_packages(metadata: &serde_json::Value, kind: &str) -> Vec<String> {
    let has_kind = |package: &serde_json::Value| {
        let targets = package["targets"].as_array().into_iter().flatten();
        let mut kinds = targets
            .filter_map(|target| target["kind"].as_array())
            .flatten();
        kinds.any(|found| found == kind)
    };
    let root = metadata["workspace_root"].as_str().unwrap_or_default();
    let folder = Path::new(root).join(GUEST_FOLDER);
    metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|package| {
            let manifest = package["manifest_path"].as_str().unwrap_or_default();
            Path::new(manifest).starts_with(&folder) && has_kind(package)
        })
        .filter_map(|package| package["name"].as_str())
        .filter(|name| !HOST_PACKAGES.contains(name))
        .map(str::to_owned)
        .collect()
}

/// Copies `file` into `folder`; a program that runs from there is replaced, not
/// overwritten.
fn install(file: &Path, folder: &Path) -> anyhow::Result<()> {
    let name = file.file_name().context("artifact without a name")?;
    install_as(file, folder, name)
}

/// As [`install`], under another name.
fn install_as(file: &Path, folder: &Path, name: &OsStr) -> anyhow::Result<()> {
    let mut fresh = name.to_owned();
    fresh.push(".new");
    let fresh = folder.join(fresh);
    fs::copy(file, &fresh).with_context(|| format!("copy {}", file.display()))?;
    fs::rename(&fresh, folder.join(name)).with_context(|| format!("install {}", file.display()))
}

/// Copies C headers, the Fortran module and pkg-config files next to the
/// libraries.
fn install_headers(workspace: &Workspace) -> anyhow::Result<()> {
    for folder in [
        "guests/libxasm/include",
        "guests/libxasm/fortran",
        "xemem-host/capi/include",
        "xemem-host/xpmem/include",
    ] {
        let Ok(entries) = fs::read_dir(workspace.root.join(folder)) else {
            continue;
        };
        for entry in entries {
            let path = entry?.path();
            let wanted = |ext: &OsStr| ext == "h" || ext == "hpp" || ext == "f90" || ext == "pc";
            if path.extension().is_some_and(wanted) {
                install(&path, &workspace.out)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn executables_and_archives_are_picked_from_cargo_messages() {
        let line = json!({
            "reason": "compiler-artifact",
            "executable": "/t/release/snap-mini",
            "filenames": [
                "/t/release/snap-mini", "/t/libxasm.a", "/t/libxasm.rlib",
                "/t/libxpmem.so", "/t/libserde_derive.so",
            ],
        });
        assert_eq!(
            artifacts(&line.to_string()),
            [
                Path::new("/t/release/snap-mini"),
                Path::new("/t/libxasm.a"),
                Path::new("/t/libxpmem.so"),
            ]
        );
    }

    #[test]
    fn other_messages_name_nothing() {
        assert!(artifacts(r#"{"reason":"build-finished","success":true}"#).is_empty());
        assert!(artifacts("warning: something").is_empty());
    }

    #[test]
    fn guests_are_the_members_below_guests_without_the_host_program() {
        let bin = json!([{"kind": ["bin"]}]);
        let lib = json!([{"kind": ["staticlib"]}]);
        let metadata = json!({
            "workspace_root": "/w",
            "packages": [
                {"name": "snap-mini", "manifest_path": "/w/guests/snap-mini/Cargo.toml", "targets": bin},
                {"name": "xasm-c", "manifest_path": "/w/guests/libxasm/c/Cargo.toml", "targets": lib},
                {"name": "spectrum", "manifest_path": "/w/guests/spectrum/Cargo.toml", "targets": bin},
                {"name": "enclave-vmm", "manifest_path": "/w/vmm/Cargo.toml", "targets": bin},
            ],
        });
        assert_eq!(guest_packages(&metadata, "bin"), ["snap-mini"]);
        assert_eq!(guest_packages(&metadata, "staticlib"), ["xasm-c"]);
    }
}
