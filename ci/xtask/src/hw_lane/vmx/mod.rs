//! `hw-lane --vmx`: enclaves under the semantics of Intel's virtualisation.
//!
//! Bochs emulates a processor with VMX and EPT, a Debian kernel with kvm_intel
//! boots on it from a disc, and a selection of `steps/` runs there, with one
//! processor. Bochs executes exactly, instruction by instruction, so this lane
//! also counts those of the Ring0 hot paths and compares them with the table.
//! Its times mean nothing. Run on demand and before a release.
//!
//! ```text
//!  tools    Debian packages → bochs, genisoimage, isolinux ┐
//!  disc     kernel, initramfs → ISO image                  ┴→ bochs ┬ serial line ─→ steps
//!                                                                   └ debugger ─→ trace ─→ figures
//! ```

mod figures;
mod tools;
mod trace;

use std::fs::{self, File};
use std::io::BufReader;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use self::figures::{Figure, Paths};
use self::tools::{MODEL, Tools};
use super::console::{self, End};
use super::linux::{self, Linux, Release};
use super::root::{HOST_TARGET, Root};
use super::steps::Steps;
use super::{Place, remove, require_memory, require_programs};
use crate::workspace::Workspace;
use crate::{setup, tool};

/// Programs the lane needs, with their packages; Bochs comes apart ([`tools`]).
const NEEDS: [(&str, &str); 6] = [
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("musl-gcc", "musl-tools"),
    ("setpriv", "util-linux"),
    ("sha256sum", "coreutils"),
    ("xz", "xz-utils"),
];
/// In the order they are loaded.
const MODULES: [&str; 3] = ["irqbypass", "kvm", "kvm-intel"];
/// The files of `steps/` that one processor and this memory suffice for;
/// `*.vmx.sh` belong to this lane alone.
const STEPS: [&str; 8] = [
    "10-programs.sh",
    "12-unchanged.sh",
    "20-snapshots.sh",
    "22-doorbells.sh",
    "30-features.sh",
    "30-hostile.sh",
    "30-selftest.sh",
    "40-kills.sh",
];
/// A run takes four minutes on a machine with nothing else to do.
const LIMIT: Duration = Duration::from_secs(1800);
/// Memory of the machine in MiB.
const MEMORY_MIB: u64 = 1024;
/// What Bochs itself needs beside it.
const BOCHS_MIB: u64 = 256;
/// Pairs of marks that the debugger has commands for.
const PAIRS: usize = 1000;

/// Kernel parameters. `reboot=t`: a panic ends in a triple fault, which ends
/// Bochs. `lpj`: no calibration. `clearcpuid`, `cryptomgr.notests`: a register
/// that Bochs lacks, and half of the boot.
const PARAMETERS: &str = "console=ttyS0,115200 quiet panic=-1 reboot=t mitigations=off nokaslr \
    lpj=400000 clearcpuid=aperfmperf cryptomgr.notests printk.devkmsg=on printk.time=0 \
    LANE_KMSG=1 LANE_HUGE=240 LANE_PCID=1 LANE_CREATE=--share-cores";

/// Builds, boots, judges steps and figures.
///
/// # Errors
/// When something cannot be had or built, a step fails in the machine, or a
/// path costs something else than the table says.
pub(super) fn run(workspace: &Workspace, only: &str) -> anyhow::Result<()> {
    require_memory(MEMORY_MIB + BOCHS_MIB)?;
    require_programs(&NEEDS)?;
    setup::add_target(HOST_TARGET)?;
    let place = Place::take(workspace)?;
    let tools = Tools::get(&place.folder)?;
    let linux = linux::get(&place.folder, Release::V6_1)?;
    let root = Root::new(workspace, place.folder.join("root"))?;
    root.add_modules(&linux, &MODULES)?;
    root.add_programs(workspace)?;
    root.add_steps(|name| {
        (STEPS.contains(&name) || name.ends_with(".vmx.sh")) && name.contains(only)
    })?;
    root.add_init()?;
    let machine = Machine::new(&tools, place.folder.join("vmx"))?;
    machine.make_disc(&linux, root)?;
    eprintln!("==> hw-lane: boot Linux {}, VMX", Release::V6_1.name());
    let start = Instant::now();
    let (steps, paths) = machine.run()?;
    let seconds = start.elapsed().as_secs();
    let figures = machine.figures(&paths)?;
    if only.is_empty() || !figures.is_empty() {
        let text = fs::read_to_string(workspace.root.join("ci/counts.json"))?;
        let table = serde_json::from_str(&text).context("parse ci/counts.json")?;
        figures::compare(&figures, &table).map_err(|error| machine.with_trace(error))?;
    }
    remove(&machine.folder)?;
    println!("{} in {seconds} s (VMX)", steps.summary());
    Ok(())
}

/// The emulated machine; everything of it lies in one folder.
#[derive(Debug)]
struct Machine<'a> {
    tools: &'a Tools,
    folder: PathBuf,
}

impl<'a> Machine<'a> {
    fn new(tools: &'a Tools, folder: PathBuf) -> anyhow::Result<Self> {
        remove(&folder)?;
        fs::create_dir_all(folder.join("disc/isolinux"))?;
        Ok(Self { tools, folder })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Makes the disc that the machine boots from.
    fn make_disc(&self, linux: &Linux, root: Root) -> anyhow::Result<()> {
        let disc = self.file("disc");
        root.pack(&disc.join("initrd"))?;
        let mut files = vec![(linux.image(), "vmlinuz")];
        for (path, name) in [
            ("usr/lib/ISOLINUX/isolinux.bin", "isolinux/isolinux.bin"),
            (
                "usr/lib/syslinux/modules/bios/ldlinux.c32",
                "isolinux/ldlinux.c32",
            ),
        ] {
            files.push((self.tools.file(path), name));
        }
        for (file, name) in &files {
            fs::copy(file, disc.join(name)).with_context(|| format!("copy {}", file.display()))?;
        }
        let menu = format!(
            "default lane\nprompt 0\ntimeout 0\nlabel lane\n kernel /vmlinuz\n \
             append initrd=/initrd {PARAMETERS}\n"
        );
        fs::write(disc.join("isolinux/isolinux.cfg"), menu)?;
        let mut command = self.tools.genisoimage();
        command
            .args(["-quiet", "-R", "-o"])
            .arg(self.file("disc.iso"));
        command.args(["-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat"]);
        command.args(["-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"]);
        tool::capture("hw-lane: make the disc", command.arg(&disc))?;
        remove(&disc)
    }

    /// Boots and follows the steps to their end.
    fn run(&self) -> anyhow::Result<(Steps, Paths)> {
        fs::write(self.file("bochsrc"), self.settings())?;
        fs::write(self.file("commands"), commands())?;
        let console = self.file("console.log");
        let mut command = self.tools.bochs(&self.file("trace"));
        command.args(["-q", "-f"]).arg(self.file("bochsrc"));
        command.arg("-rc").arg(self.file("commands"));
        let (mut steps, mut paths) = (Steps::new(), Paths::default());
        let end = console::watch(&mut command, &console, LIMIT, |line| {
            if let Some(shown) = steps.take(line) {
                println!("{shown}");
            }
            paths.take(line);
        })?;
        if matches!(end, End::Exited(_)) && steps.all_passed() {
            return Ok((steps, paths));
        }
        Err(steps.failure(end, LIMIT, &console))
    }

    /// Bochs' settings. The display is one that needs no screen; errors of the
    /// emulated machine (registers it lacks) are the kernel's business.
    fn settings(&self) -> String {
        let bios = self.tools.file("usr/share/bochs");
        let bios = bios.display();
        let folder = self.folder.display();
        format!(
            "config_interface: textconfig\n\
             display_library: term\n\
             cpu: model={MODEL}, count=1, ips=100000000, reset_on_triple_fault=0\n\
             memory: guest={MEMORY_MIB}, host={MEMORY_MIB}\n\
             romimage: file=\"{bios}/BIOS-bochs-latest\", options=fastboot\n\
             vgaromimage: file=\"{bios}/VGABIOS-lgpl-latest\"\n\
             pci: enabled=1, chipset=i440fx\n\
             ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
             ata0-master: type=cdrom, path=\"{folder}/disc.iso\", status=inserted\n\
             boot: cdrom\n\
             clock: sync=none\n\
             log: \"{folder}/bochs.log\"\n\
             panic: action=fatal\n\
             error: action=ignore\n\
             info: action=ignore\n\
             debug: action=ignore\n\
             speaker: enabled=0\n\
             magic_break: enabled=1\n\
             com1: enabled=1, mode=file, dev=/dev/fd/3\n"
        )
    }

    /// Reads the trace, shows what each path costs.
    fn figures(&self, paths: &Paths) -> anyhow::Result<Vec<Figure>> {
        let trace = File::open(self.file("trace")).context("open the trace")?;
        let samples = trace::samples(BufReader::new(trace)).context("read the trace")?;
        let figures = paths
            .figures(&samples)
            .map_err(|error| self.with_trace(error))?;
        for figure in &figures {
            println!("     {figure}");
        }
        Ok(figures)
    }

    /// Names the trace, which is kept, beside the error.
    fn with_trace(&self, error: anyhow::Error) -> anyhow::Error {
        eprintln!("the instructions: {}", self.file("trace").display());
        error
    }
}

/// The debugger's commands: go; at each first mark begin to write down the
/// instructions, at each second stop it.
fn commands() -> String {
    let mut text = "c\n".to_owned();
    for _ in 0..PAIRS {
        text += "trace on\nc\ntrace off\nc\n";
    }
    text
}
