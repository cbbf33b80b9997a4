//! `hw-lane`: enclaves under the semantics of hardware virtualisation.
//!
//! QEMU emulates a processor with SVM and nested paging, a Debian kernel boots
//! on it from memory, and the files of `steps/` run there in both privilege
//! modes. Ring 0 is native in that machine, so this sees what a host that
//! interprets ring 0 hides. It needs no /dev/kvm. Its times mean nothing.
//! [`vmx`] does the like for Intel's virtualisation, with Bochs.
//!
//! ```text
//!  linux    Debian package → image, modules      ┐
//!  root     programs, init.sh, steps/*.sh → cpio ┴→ machine (QEMU) ─ console ─→ steps
//! ```
//!
//! Everything it makes lies in `target/hw-lane`; the Debian kernel stays there
//! for the next run, the console only when the run failed.

mod archive;
mod console;
mod demo;
mod linux;
mod machine;
mod root;
mod steps;
mod vmx;

pub(crate) use self::demo::demo;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use self::linux::Release;
use self::machine::{Machine, NODE_MIB};
use self::root::{HOST_TARGET, Root};
use self::steps::Steps;
use crate::failure::Failure;
use crate::workspace::Workspace;
use crate::{setup, tool};

/// Arguments of `hw-lane`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Also run everything with shadow paging and on the later kernel.
    #[arg(long, conflicts_with_all = ["linux", "shadow"])]
    long: bool,
    /// Linux release inside.
    #[arg(long, value_enum, default_value = "6.1")]
    linux: Release,
    /// KVM with shadow paging instead of nested paging.
    #[arg(long)]
    shadow: bool,
    /// Bochs with VMX and one processor instead of QEMU with SVM; compares the
    /// instruction counts of the hot paths with `ci/counts.json`.
    #[arg(long, conflicts_with_all = ["long", "linux", "shadow"])]
    vmx: bool,
    /// Only the files of `steps/` whose names contain this.
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
}

/// Programs the lane needs and the packages they come in.
const NEEDS: [(&str, &str); 7] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("musl-gcc", "musl-tools"),
    ("setpriv", "util-linux"),
    ("sha256sum", "coreutils"),
    ("xz", "xz-utils"),
];
/// In the order they are loaded.
const MODULES: [&str; 3] = ["irqbypass", "kvm", "kvm-amd"];
/// A run takes one to two minutes on an idle machine.
const LIMIT: Duration = Duration::from_secs(1200);
/// What QEMU itself needs beside the machine's memory, in MiB.
const QEMU_MIB: u64 = 256;

/// One boot of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Boot {
    release: Release,
    shadow: bool,
}

impl Boot {
    /// What is booted when nothing else is asked for.
    const fn usual() -> Self {
        Self {
            release: Release::V6_1,
            shadow: false,
        }
    }

    fn title(self) -> String {
        let paging = if self.shadow { "shadow" } else { "nested" };
        format!("Linux {}, {paging} paging", self.release.name())
    }
}

impl Options {
    /// The boots asked for, the usual one first.
    fn boots(&self) -> Vec<Boot> {
        let boot = |release, shadow| Boot { release, shadow };
        let mut boots = vec![boot(self.linux, self.shadow)];
        if self.long {
            boots.push(boot(Release::V6_1, true));
            boots.push(boot(Release::V6_12, false));
        }
        boots
    }
}

/// Builds, boots, judges.
///
/// # Errors
/// When something cannot be had or built, or a step fails in the machine.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> anyhow::Result<()> {
    if options.vmx {
        return vmx::run(workspace, &options.only);
    }
    select(workspace, &options.boots(), &options.only)
}

/// The usual selection, for `test`.
///
/// # Errors
/// As [`run`].
pub(crate) fn check(workspace: &Workspace) -> anyhow::Result<()> {
    select(workspace, &[Boot::usual()], "")
}

/// Runs the steps whose files' names contain `only`, once for each boot.
fn select(workspace: &Workspace, boots: &[Boot], only: &str) -> anyhow::Result<()> {
    require_memory(2 * NODE_MIB + QEMU_MIB)?;
    require_programs(&NEEDS)?;
    setup::add_target(HOST_TARGET)?;
    let place = Place::take(workspace)?;
    for boot in boots {
        let fill = |root: &Root| {
            root.add_programs(workspace)?;
            root.add_steps(|name| !name.ends_with(".vmx.sh") && name.contains(only))?;
            root.add_init()
        };
        let start = Instant::now();
        let steps = place.boot(*boot, &MODULES, fill, "", |_, shown| {
            if let Some(shown) = shown {
                println!("{shown}");
            }
        })?;
        let seconds = start.elapsed().as_secs();
        println!("{} in {seconds} s ({})", steps.summary(), boot.title());
    }
    Ok(())
}

/// The lane's folder, held by one run at a time.
#[derive(Debug)]
struct Place<'a> {
    workspace: &'a Workspace,
    folder: PathBuf,
    _lock: File,
}

impl<'a> Place<'a> {
    /// Makes the folder; waits while another run has it.
    fn take(workspace: &'a Workspace) -> anyhow::Result<Self> {
        let folder = workspace.root.join("target/hw-lane");
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let lock = File::create(folder.join("lock")).context("open the lane's lock")?;
        if lock.try_lock().is_err() {
            eprintln!("==> hw-lane: another run is going on; waiting for its end");
            lock.lock().context("wait for the other run")?;
        }
        Ok(Self {
            workspace,
            folder,
            _lock: lock,
        })
    }

    /// Boots QEMU once on a root directory that `fill` completes.
    fn boot(
        &self,
        boot: Boot,
        modules: &[&str],
        fill: impl FnOnce(&Root) -> anyhow::Result<()>,
        parameters: &str,
        on_line: impl FnMut(&str, Option<&str>),
    ) -> anyhow::Result<Steps> {
        let linux = linux::get(&self.folder, boot.release)?;
        let root = Root::new(self.workspace, self.folder.join("root"))?;
        root.add_modules(&linux, modules)?;
        fill(&root)?;
        let initrd = self.folder.join("initrd");
        root.pack(&initrd)?;
        eprintln!("==> hw-lane: boot {}", boot.title());
        let machine = Machine {
            linux: &linux,
            initrd: &initrd,
            parameters: format!("LANE_NPT={} {parameters}", u8::from(!boot.shadow)),
            console: self.folder.join("console.log"),
            limit: LIMIT,
        };
        let ran = machine.run(on_line);
        fs::remove_file(&initrd).context("remove the initramfs")?;
        ran
    }
}

/// Installs what is missing as root, else says what to install.
fn require_programs(needs: &[(&str, &str)]) -> anyhow::Result<()> {
    let missing: Vec<_> = needs
        .iter()
        .filter(|(program, _)| !tool::on_path(program))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    let programs: Vec<&str> = missing.iter().map(|(program, _)| *program).collect();
    let names = programs.join(", ");
    if setup::is_root() && tool::on_path("apt-get") {
        return setup::install(&packages).map_err(|error| {
            Failure::error(
                "hw-lane: programs are missing",
                format!("not found: {names}; {error:#}").replace('\n', "; "),
                setup::apt_line(&packages),
            )
        });
    }
    Err(Failure::error(
        "hw-lane: programs are missing",
        format!("not found: {names}"),
        format!("sudo sh -c '{}'", setup::apt_line(&packages)),
    ))
}

/// Is there enough free memory for a machine that needs so many MiB?
fn require_memory(needed: u64) -> anyhow::Result<()> {
    let text = fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    match available_mib(&text) {
        Some(mib) => check_memory(mib, needed),
        None => Ok(()),
    }
}

fn check_memory(available_mib: u64, needed: u64) -> anyhow::Result<()> {
    if available_mib >= needed {
        return Ok(());
    }
    Err(Failure::error(
        "hw-lane: too little memory for the emulated machine",
        format!("{needed} MiB are needed, {available_mib} MiB are available"),
        "ps -eo rss,pid,comm --sort=-rss | head  (and end what is not needed)",
    ))
}

/// MemAvailable of /proc/meminfo.
fn available_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

/// Removes a folder that may not be there.
fn remove(folder: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_memory_is_refused_with_both_figures() {
        let meminfo = "MemTotal: 4096000 kB\nMemAvailable:     409600 kB\n";
        assert_eq!(available_mib(meminfo), Some(400));
        let error = check_memory(400, 4352).unwrap_err().to_string();
        assert!(error.contains("4352 MiB are needed, 400 MiB are available"));
        check_memory(4352, 4352).unwrap();
        assert_eq!(available_mib("MemTotal: 4096000 kB\n"), None);
    }

    #[test]
    fn the_long_selection_adds_shadow_paging_and_the_later_kernel() {
        let mut options = Options {
            long: false,
            linux: Release::V6_1,
            shadow: false,
            vmx: false,
            only: String::new(),
        };
        assert_eq!(options.boots().len(), 1);
        options.long = true;
        let titles: Vec<String> = options.boots().into_iter().map(Boot::title).collect();
        assert_eq!(
            titles,
            [
                "Linux 6.1, nested paging",
                "Linux 6.1, shadow paging",
                "Linux 6.12, nested paging"
            ]
        );
    }
}
