//! The Linux kernels that the lanes boot, out of Debian's packages.
//!
//! A package is downloaded once, compared with the SHA-256 of the signed index,
//! and only its image and the KVM modules are kept, uncompressed, with their
//! checksums; every later use checks those. Nothing is installed. What is kept
//! lies in `target/hw-lane/linux-RELEASE`; remove it to get the newest kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use clap::ValueEnum;

use super::remove;
use crate::failure::Failure;
use crate::{setup, tool};

/// Which kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Release {
    /// Debian 12's own.
    #[value(name = "6.1")]
    V6_1,
    /// The later one that Debian 12 offers; it knows remote cpuset partitions.
    #[value(name = "6.12")]
    V6_12,
}

impl Release {
    /// The package whose dependency is the newest kernel of this release; names
    /// with a version vanish from the archive.
    fn meta_package(self) -> &'static str {
        match self {
            Self::V6_1 => "linux-image-cloud-amd64",
            Self::V6_12 => "linux-image-6.12-cloud-amd64",
        }
    }

    /// The release as one writes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }
}

/// Modules that are kept, below the `kernel` folder of a package's modules.
const MODULES: [&str; 4] = [
    "virt/lib/irqbypass",
    "arch/x86/kvm/kvm",
    "arch/x86/kvm/kvm-amd",
    "arch/x86/kvm/kvm-intel",
];
/// Checksums of what is kept.
const SUMS: &str = "SHA256SUMS";

/// An unpacked kernel.
#[derive(Debug)]
pub(super) struct Linux {
    folder: PathBuf,
}

impl Linux {
    /// The kernel's image (bzImage).
    pub(super) fn image(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// A module by its name, such as `kvm-amd`.
    pub(super) fn module(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.ko"))
    }
}

/// The kernel kept in `folder`, else a fresh one.
///
/// # Errors
/// When it cannot be downloaded or is not what the archive's index says.
pub(super) fn get(folder: &Path, release: Release) -> anyhow::Result<Linux> {
    let place = folder.join(format!("linux-{}", release.name()));
    if place.join(SUMS).is_file() {
        if is_whole(&place) {
            return Ok(Linux { folder: place });
        }
        eprintln!(
            "==> hw-lane: {} differs from its checksums and is fetched again",
            place.display()
        );
    }
    remove(&place)?;
    let download = folder.join("download");
    remove(&download)?;
    fs::create_dir_all(&download)?;
    let package = fetch(&download, release)?;
    let unpacked = download.join("unpacked");
    let mut unpack = Command::new("dpkg");
    unpack.arg("-x").arg(&package).arg(&unpacked);
    tool::run("hw-lane: unpack the kernel", &mut unpack)?;
    let fresh = download.join("kept");
    keep(&unpacked, &fresh)?;
    fs::rename(&fresh, &place).context("keep the kernel")?;
    remove(&download)?;
    Ok(Linux { folder: place })
}

/// Is everything that is kept what it was when it came?
fn is_whole(place: &Path) -> bool {
    let mut command = Command::new("sha256sum");
    command.args(["--check", "--status", "--strict", SUMS]);
    tool::succeeds(command.current_dir(place))
}

/// What the archive's index says about a package.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    package: String,
    sha256: String,
}

/// Downloads the package into `download` and compares it with the index.
fn fetch(download: &Path, release: Release) -> anyhow::Result<PathBuf> {
    for program in ["apt-get", "apt-cache", "dpkg", "sha256sum", "xz"] {
        if !tool::on_path(program) {
            return Err(Failure::error(
                "hw-lane: no Linux kernel to boot",
                format!("it comes out of a Debian package, and {program} was not found"),
                "docker run --rm -it -v \"$PWD\":/xasm -w /xasm debian:12",
            ));
        }
    }
    let entry = match look_up(release) {
        // A fresh machine has no index yet.
        Err(_) if setup::is_root() => {
            tool::run(
                "hw-lane: apt-get update",
                Command::new("apt-get").args(["-q", "update"]),
            )?;
            look_up(release)
        }
        found => found,
    }?;
    let mut command = Command::new("apt-get");
    command.args(["-q", "download", &entry.package]);
    tool::capture(
        &format!("hw-lane: download {}", entry.package),
        command.current_dir(download),
    )
    .map_err(|error| {
        Failure::error(
            "hw-lane: no Linux kernel to boot",
            format!("{error:#}").replace('\n', "; "),
            "sudo apt-get update && cargo xtask hw-lane",
        )
    })?;
    let file = only_entry(download)?;
    let mut sum = Command::new("sha256sum");
    let found = tool::capture("hw-lane: checksum", sum.arg(&file))?;
    if found.split_whitespace().next() == Some(entry.sha256.as_str()) {
        return Ok(file);
    }
    Err(Failure::error(
        format!("hw-lane: {} is not what it should be", entry.package),
        format!("SHA-256 {} expected, {} found", entry.sha256, found.trim()),
        "sudo apt-get update && cargo xtask hw-lane",
    ))
}

fn look_up(release: Release) -> anyhow::Result<Entry> {
    let missing = |why: String| {
        Failure::error(
            format!("hw-lane: no Linux {} to boot", release.name()),
            why,
            "sudo apt-get update",
        )
    };
    let mut query = Command::new("apt-cache");
    query.args(["depends", release.meta_package()]);
    let text = tool::capture("hw-lane: look for a kernel", &mut query)
        .map_err(|_| missing(format!("apt does not know {}", release.meta_package())))?;
    let package = dependency(&text)
        .ok_or_else(|| missing(format!("{} depends on nothing", release.meta_package())))?;
    let mut query = Command::new("apt-cache");
    query.args(["show", "--no-all-versions", package]);
    let text = tool::capture("hw-lane: look for a kernel", &mut query)?;
    let sha256 = field(&text, "SHA256")
        .ok_or_else(|| missing(format!("the index has no SHA-256 of {package}")))?;
    Ok(Entry {
        package: package.to_owned(),
        sha256: sha256.to_owned(),
    })
}

/// The first package that `apt-cache depends` names as needed.
fn dependency(text: &str) -> Option<&str> {
    text.lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
}

/// The value of a field of `apt-cache show`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        .map(str::trim)
}

/// Copies image and modules of an unpacked package and notes their checksums.
fn keep(unpacked: &Path, fresh: &Path) -> anyhow::Result<()> {
    fs::create_dir(fresh)?;
    let modules = only_entry(&unpacked.join("lib/modules"))?;
    let version = modules.file_name().context("kernel without a version")?;
    let image = format!("boot/vmlinuz-{}", version.to_string_lossy());
    fs::copy(unpacked.join(&image), fresh.join("vmlinuz"))
        .with_context(|| format!("copy {image} of the package"))?;
    for module in MODULES {
        let from = modules.join("kernel").join(format!("{module}.ko"));
        let name = from.file_name().context("module without a name")?;
        let packed = from.with_extension("ko.xz");
        if packed.is_file() {
            let mut unpack = Command::new("xz");
            unpack.arg("--decompress").arg(&packed);
            tool::capture("hw-lane: unpack a module", &mut unpack)?;
        }
        fs::copy(&from, fresh.join(name)).with_context(|| format!("copy {module}"))?;
    }
    let mut sums = Command::new("sh");
    sums.args(["-c", "sha256sum vmlinuz *.ko"])
        .current_dir(fresh);
    let text = tool::capture("hw-lane: checksums", &mut sums)?;
    fs::write(fresh.join(SUMS), text).context("note the checksums")
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

    #[test]
    fn the_checksum_is_a_field_of_its_own() {
        let text = "Package: a\nDescription: SHA256: no\nSHA256: 0123\nSHA256: 4567\n";
        assert_eq!(field(text, "SHA256"), Some("0123"));
        assert_eq!(field(text, "SHA512"), None);
    }

    #[test]
    fn a_kept_kernel_that_changed_is_not_used() {
        let folder = std::env::temp_dir().join(format!("xtask-sums-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("vmlinuz"), "image").unwrap();
        let sum = "6105d6cc76af400325e94d588ce511be5bfdbb73b437dc51eca43917d7a43e3d";
        fs::write(folder.join(SUMS), format!("{sum}  vmlinuz\n")).unwrap();
        let whole = is_whole(&folder);
        fs::write(folder.join("vmlinuz"), "imagf").unwrap();
        let changed = is_whole(&folder);
        fs::remove_dir_all(&folder).unwrap();
        assert!(whole);
        assert!(!changed);
    }
}
