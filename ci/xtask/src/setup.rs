//! `setup`: looks for what building and testing need and adds what is missing.
//!
//! Quick and without effect when nothing is missing: it looks for files and
//! programs first and calls rustup or apt only for what it did not find. As
//! another user than root it installs no packages but prints the command.

use std::path::Path;
use std::process::Command;

use crate::failure::Failure;
use crate::tool;
use crate::workspace::Workspace;

/// What the tools are wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Building and running.
    Build,
    /// All checks, guests in other languages included.
    Test,
}

/// A program, or a file by its full path, that comes in a Debian package.
#[derive(Debug)]
struct Need {
    program: &'static str,
    package: &'static str,
    purpose: Purpose,
}

const NEEDS: &[Need] = &[
    Need {
        program: "gcc",
        package: "gcc",
        purpose: Purpose::Build,
    },
    Need {
        program: "/usr/include/stdio.h",
        package: "libc6-dev",
        purpose: Purpose::Build,
    },
    Need {
        program: "objdump",
        package: "binutils",
        purpose: Purpose::Test,
    },
    Need {
        program: "gdb",
        package: "gdb",
        purpose: Purpose::Test,
    },
    Need {
        program: "g++",
        package: "g++",
        purpose: Purpose::Test,
    },
    Need {
        program: "gfortran",
        package: "gfortran",
        purpose: Purpose::Test,
    },
    Need {
        program: "musl-gcc",
        package: "musl-tools",
        purpose: Purpose::Test,
    },
    Need {
        program: "busybox",
        package: "busybox-static",
        purpose: Purpose::Test,
    },
    Need {
        program: "python3",
        package: "python3-venv",
        purpose: Purpose::Test,
    },
];

/// Target the kernel is built for.
const KERNEL_TARGET: &str = "x86_64-unknown-none";

/// Adds what is missing and returns the programs that still are.
///
/// # Errors
/// When rustup or apt fail.
pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<Vec<&'static str>> {
    add_target(KERNEL_TARGET)?;
    add_component(workspace, "clippy", "clippy")?;
    add_component(workspace, "fmt", "rustfmt")?;
    let missing = missing_needs();
    if missing.is_empty() {
        eprintln!("==> setup: nothing is missing");
        return Ok(Vec::new());
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    if is_root() && tool::on_path("apt-get") {
        install(&packages)?;
    } else {
        eprintln!(
            "==> setup: missing programs; as root: {}",
            apt_line(&packages)
        );
    }
    Ok(missing_needs().iter().map(|need| need.program).collect())
}

/// Runs setup and fails when something that `purpose` needs is still missing.
///
/// # Errors
/// As [`run`], or names the missing programs and the command that adds them.
pub(crate) fn require(workspace: &Workspace, purpose: Purpose) -> anyhow::Result<()> {
    let missing = run(workspace)?;
    let needed: Vec<&Need> = NEEDS
        .iter()
        .filter(|need| missing.contains(&need.program))
        .filter(|need| purpose == Purpose::Test || need.purpose == Purpose::Build)
        .collect();
    if needed.is_empty() {
        return Ok(());
    }
    let programs: Vec<&str> = needed.iter().map(|need| need.program).collect();
    let packages: Vec<&str> = needed.iter().map(|need| need.package).collect();
    Err(Failure::error(
        "setup: programs are missing",
        format!("not found: {}", programs.join(", ")),
        format!("sudo sh -c '{}'", apt_line(&packages)),
    ))
}

fn missing_needs() -> Vec<&'static Need> {
    NEEDS
        .iter()
        .filter(|need| {
            if need.program.starts_with('/') {
                !Path::new(need.program).exists()
            } else {
                !tool::on_path(need.program)
            }
        })
        .collect()
}

pub(crate) fn apt_line(packages: &[&str]) -> String {
    format!(
        "apt-get update && apt-get install -y --no-install-recommends {}",
        packages.join(" ")
    )
}

pub(crate) fn install(packages: &[&str]) -> anyhow::Result<()> {
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").arg("-q");
        command
    };
    tool::run("setup: apt-get update", apt().arg("update"))?;
    tool::run(
        "setup: apt-get install",
        apt()
            .args(["install", "-y", "--no-install-recommends"])
            .args(packages),
    )
}

/// Is the effective user root? (The owner of a process's own /proc folder.)
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// Adds a target's standard library when it is missing.
///
/// # Errors
/// When rustc or rustup fail.
pub(crate) fn add_target(target: &str) -> anyhow::Result<()> {
    let mut query = Command::new("rustc");
    query.args(["--print", "target-libdir", "--target", target]);
    let folder = tool::capture("setup: ask rustc for its targets", &mut query)?;
    if Path::new(folder.trim()).is_dir() {
        return Ok(());
    }
    tool::run(
        &format!("setup: add the target {target}"),
        Command::new("rustup").args(["target", "add", target]),
    )
}

fn add_component(workspace: &Workspace, command: &str, component: &str) -> anyhow::Result<()> {
    if tool::succeeds(workspace.cargo().args([command, "--version"])) {
        return Ok(());
    }
    tool::run(
        &format!("setup: add {component}"),
        Command::new("rustup").args(["component", "add", component]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn building_needs_less_than_testing() {
        let build = NEEDS.iter().filter(|need| need.purpose == Purpose::Build);
        let packages: Vec<_> = build.map(|need| need.package).collect();
        assert_eq!(packages, ["gcc", "libc6-dev"]);
    }

    #[test]
    fn the_printed_command_names_every_package() {
        assert_eq!(
            apt_line(&["gcc", "binutils"]),
            "apt-get update && apt-get install -y --no-install-recommends gcc binutils"
        );
    }
}
