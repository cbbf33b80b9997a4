//! The Linux kernels that the lanes boot, out of Debian's packages.
//!
//! A package is downloaded once, and only its image and the KVM modules are
//! kept, uncompressed; see [`super::archive`]. What is kept lies in
//! `target/hw-lane/linux-RELEASE`; remove it to get the newest kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use clap::ValueEnum;

use super::{archive, remove};
use crate::failure::Failure;
use crate::tool;

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
    if archive::is_kept(&place) {
        return Ok(Linux { folder: place });
    }
    archive::require("Linux kernel to boot")?;
    remove(&place)?;
    let download = folder.join("download");
    remove(&download)?;
    fs::create_dir_all(&download)?;
    let package = archive::look_up(|| newest(release))?;
    archive::unpack(&[package], "Linux kernel to boot", &download)?;
    let fresh = download.join("kept");
    keep(&download.join("unpacked"), &fresh)?;
    fs::rename(&fresh, &place).context("keep the kernel")?;
    remove(&download)?;
    Ok(Linux { folder: place })
}

/// The package of the newest kernel of `release`.
fn newest(release: Release) -> anyhow::Result<String> {
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
    dependency(&text)
        .map(str::to_owned)
        .ok_or_else(|| missing(format!("{} depends on nothing", release.meta_package())))
}

/// The first package that `apt-cache depends` names as needed.
fn dependency(text: &str) -> Option<&str> {
    text.lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
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
    archive::note_sums(fresh)
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
}
