//! The emulated AMD machine: QEMU with SVM, nested paging and two NUMA nodes.
//!
//! Called with an initramfs; boots it, follows its steps, judges. The machine
//! ends itself and tells the verdict by its exit code; see [`super::console`]
//! for one that hangs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use super::console::{self, End};
use super::linux::Linux;
use super::steps::Steps;

/// QEMU's exit code for the 21 that `init` gives when no step failed. A panic,
/// a power-off and a kill all give another.
const PASSED: i32 = 2 * 21 + 1;
/// Memory of each of the two nodes in MiB; see [`super::require_memory`].
pub(super) const NODE_MIB: u64 = 1024;
/// Four processors on two nodes. One emulating thread: with several, QEMU loses
/// interrupts and the machine stands still.
const MACHINE: &[&str] = &[
    "-accel",
    "tcg,thread=single",
    "-cpu",
    "EPYC-Rome,+svm,+npt",
    "-smp",
    "4,sockets=2,cores=2",
    "-nodefaults",
    "-display",
    "none",
    "-serial",
    "stdio",
    "-monitor",
    "none",
    "-no-reboot",
    "-device",
    "isa-debug-exit,iobase=0xf4,iosize=1",
];
/// Kernel parameters. `tsc=reliable`: emulated time is no reason for another
/// clock source.
const PARAMETERS: &str = "console=ttyS0 panic=-1 quiet tsc=reliable mitigations=off nokaslr";

/// What to boot.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    /// The kernel.
    pub(super) linux: &'a Linux,
    /// Packed root directory.
    pub(super) initrd: &'a Path,
    /// Further kernel parameters; `NAME=VALUE` becomes a variable of `init`.
    pub(super) parameters: String,
    /// File that the console is kept in.
    pub(super) console: PathBuf,
    /// Longest time.
    pub(super) limit: Duration,
}

impl Machine<'_> {
    /// Boots, hands every line to `on_line`, with a step's result in words where
    /// it is one. The console is kept when something failed, else removed.
    ///
    /// # Errors
    /// When a step failed or the machine did not come to its end.
    pub(super) fn run(&self, mut on_line: impl FnMut(&str, Option<&str>)) -> anyhow::Result<Steps> {
        let mut command = console::bound("qemu-system-x86_64");
        command.args(MACHINE);
        command.args(["-m", &format!("{}M", 2 * NODE_MIB)]);
        for (node, cpus) in ["0-1", "2-3"].iter().enumerate() {
            let backend = format!("memory-backend-ram,id=m{node},size={NODE_MIB}M");
            let node = format!("node,nodeid={node},cpus={cpus},memdev=m{node}");
            command.args(["-object", &backend, "-numa", &node]);
        }
        command.arg("-kernel").arg(self.linux.image());
        command.arg("-initrd").arg(self.initrd);
        command.args(["-append", &format!("{PARAMETERS} {}", self.parameters)]);
        let mut steps = Steps::new();
        let end = console::watch(&mut command, &self.console, self.limit, |line| {
            let shown = steps.take(line);
            on_line(line, shown.as_deref());
        })?;
        let passed = matches!(end, End::Exited(status) if status.code() == Some(PASSED));
        if passed && steps.all_passed() {
            fs::remove_file(&self.console).context("remove the console")?;
            fs::remove_file(self.console.with_extension("err"))?;
            return Ok(steps);
        }
        Err(steps.failure(end, self.limit, &self.console))
    }
}
