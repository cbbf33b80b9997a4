//! `hw-lane`: enclaves under the semantics of AMD hardware virtualisation.
//!
//! QEMU emulates a processor with SVM and nested paging, a Debian kernel boots
//! on it from memory, and `init.sh` runs both privilege modes there. Ring 0 is
//! native in that machine, so this sees what a host that interprets ring 0
//! hides. It needs no /dev/kvm. Its times mean nothing.
//!
//! Everything it makes lies in `target/hw-lane`; the Debian kernel stays there
//! for the next run, the console only when the run failed.

mod machine;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use crate::failure::Failure;
use crate::workspace::Workspace;
use crate::{image, setup, tool};

/// Programs the lane needs and the packages they come in.
const NEEDS: [(&str, &str); 5] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("musl-gcc", "musl-tools"),
    ("timeout", "coreutils"),
];
/// Always the newest 6.1 kernel; names with a version vanish from the archive.
const KERNEL_META_PACKAGE: &str = "linux-image-cloud-amd64";
/// In the order they are loaded, relative to the modules' `kernel` folder.
const MODULES: [&str; 3] = [
    "virt/lib/irqbypass.ko",
    "arch/x86/kvm/kvm.ko",
    "arch/x86/kvm/kvm-amd.ko",
];
/// Host programs are linked statically: the machine has no C library.
const HOST_TARGET: &str = "x86_64-unknown-linux-musl";
/// C programs for the enclaves.
const GUESTS: [&str; 3] = ["tls", "segv", "spin"];

/// Builds, boots, judges.
///
/// # Errors
/// When something cannot be had or built, or a step fails in the machine.
pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<()> {
    require_programs()?;
    setup::add_target(HOST_TARGET)?;
    let folder = workspace.root.join("target/hw-lane");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let kernel = linux(&folder)?;
    let root = folder.join("root");
    remove(&root)?;
    fill(workspace, &kernel, &root)?;
    let packed = pack(&root, &folder);
    remove(&root)?;
    let initrd = packed?;
    let verdict = machine::boot(&kernel.image, &initrd, &folder.join("console.log"));
    fs::remove_file(&initrd).context("remove the initramfs")?;
    verdict
}

/// Installs what is missing as root, else says what to install.
fn require_programs() -> anyhow::Result<()> {
    let missing: Vec<_> = NEEDS
        .iter()
        .filter(|(program, _)| !tool::on_path(program))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    if setup::is_root() {
        return setup::install(&packages);
    }
    let programs: Vec<&str> = missing.iter().map(|(program, _)| *program).collect();
    Err(Failure::error(
        "hw-lane: programs are missing",
        format!("not found: {}", programs.join(", ")),
        format!("sudo sh -c '{}'", setup::apt_line(&packages)),
    ))
}

/// An unpacked Debian kernel.
#[derive(Debug)]
struct Linux {
    image: PathBuf,
    modules: PathBuf,
}

/// The kernel of an earlier run, else the newest, unpacked and not installed.
fn linux(folder: &Path) -> anyhow::Result<Linux> {
    let place = folder.join("linux");
    if !place.is_dir() {
        download(folder, &place)?;
    }
    let modules = only_entry(&place.join("lib/modules"))?;
    let version = modules.file_name().context("kernel without a version")?;
    let image = place
        .join("boot")
        .join(format!("vmlinuz-{}", version.to_string_lossy()));
    Ok(Linux {
        image,
        modules: modules.join("kernel"),
    })
}

fn download(folder: &Path, place: &Path) -> anyhow::Result<()> {
    let mut query = Command::new("apt-cache");
    query.args(["depends", KERNEL_META_PACKAGE]);
    let text = tool::capture("hw-lane: look for a kernel", &mut query)?;
    let package = dependency(&text).ok_or_else(|| {
        tool::failed(
            "hw-lane: look for a kernel",
            &query,
            "it names no dependency",
        )
    })?;
    let archive = folder.join("download");
    remove(&archive)?;
    fs::create_dir_all(&archive)?;
    let mut fetch = Command::new("apt-get");
    fetch
        .args(["-q", "download", package])
        .current_dir(&archive);
    tool::run("hw-lane: download a kernel", &mut fetch)?;
    let fresh = folder.join("linux.new");
    remove(&fresh)?;
    let mut unpack = Command::new("dpkg");
    unpack.arg("-x").arg(only_entry(&archive)?).arg(&fresh);
    tool::run("hw-lane: unpack the kernel", &mut unpack)?;
    remove(&archive)?;
    fs::rename(&fresh, place).context("keep the kernel")
}

/// The first package that `apt-cache depends` names as needed.
fn dependency(text: &str) -> Option<&str> {
    text.lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
}

/// The one entry of a folder.
fn only_entry(folder: &Path) -> anyhow::Result<PathBuf> {
    let shown = folder.display();
    let mut entries = fs::read_dir(folder).with_context(|| format!("read {shown}"))?;
    let first = entries
        .next()
        .with_context(|| format!("{shown} is empty"))??;
    Ok(first.path())
}

fn remove(folder: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Puts the machine's root directory together.
fn fill(workspace: &Workspace, kernel: &Linux, root: &Path) -> anyhow::Result<()> {
    let (bin, modules, programs) = (
        root.join("bin"),
        root.join("modules"),
        root.join("programs"),
    );
    for folder in [
        "bin", "modules", "programs", "proc", "sys", "dev", "run", "tmp",
    ] {
        fs::create_dir_all(root.join(folder))?;
    }
    for module in MODULES {
        copy(&kernel.modules.join(module), &modules)?;
    }
    let busybox = tool::capture(
        "hw-lane: find busybox",
        Command::new("sh").args(["-c", "command -v busybox"]),
    )?;
    copy(Path::new(busybox.trim()), &bin)?;
    std::os::unix::fs::symlink("busybox", bin.join("sh"))?;
    let host = ["build", "--release", "--bins", "--target", HOST_TARGET];
    let packages = image::HOST_PACKAGES.map(str::to_owned);
    let mut files = image::kernel_and_guests(workspace)?;
    let all = image::arguments(&host, &packages);
    files.extend(image::build(workspace, "hw-lane: host programs", &all)?);
    for file in &files {
        copy(file, &programs)?;
    }
    let sources = workspace.root.join("ci/xtask/src/hw_lane");
    copy(&sources.join("tiny.inp"), &programs)?;
    compile(&sources.join("verdict.c"), &bin.join("verdict"))?;
    for name in GUESTS {
        let source = workspace.root.join(format!("guests/programs/c/{name}.c"));
        compile(&source, &programs.join(name))?;
    }
    fs::write(root.join("init"), include_str!("init.sh"))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(root.join("init"), mode).context("make init executable")
}

fn copy(file: &Path, folder: &Path) -> anyhow::Result<()> {
    let name = file.file_name().context("file without a name")?;
    fs::copy(file, folder.join(name)).with_context(|| format!("copy {}", file.display()))?;
    Ok(())
}

fn compile(source: &Path, program: &Path) -> anyhow::Result<()> {
    let mut command = Command::new("musl-gcc");
    command.args(["-O1", "-static", "-no-pie", "-o"]);
    command.arg(program).arg(source);
    tool::capture("hw-lane: compile", &mut command).map(drop)
}

/// Packs the root directory, without debug information.
fn pack(root: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let initrd = folder.join("initrd");
    let script = "find programs -type f -exec strip -g {} + 2>/dev/null; \
                  find . | cpio --quiet -o -H newc -R 0:0 > \"$1\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "pack"]).arg(&initrd);
    command.current_dir(root);
    tool::capture("hw-lane: pack the initramfs", &mut command)?;
    Ok(initrd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_package_is_what_the_meta_package_depends_on() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-1-cloud-amd64\n  \
                    Suggests: x\n";
        assert_eq!(dependency(text), Some("linux-image-6.1.0-1-cloud-amd64"));
        assert_eq!(dependency("linux-image-cloud-amd64\n"), None);
    }
}
