//! Boots the emulated machine and reads its verdict.
//!
//! Called by [`super::run`] with everything built. The machine ends itself; an
//! outer time limit ends one that hangs.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context as _;

use crate::failure::Failure;
use crate::tool;

/// QEMU's exit code for the 21 that `init.sh` gives when no step failed. A
/// panic, a power-off and the time limit all give another.
const PASSED: i32 = 2 * 21 + 1;
/// A run takes a quarter of a minute.
const SECONDS: &str = "180";
/// One emulating thread: with several, QEMU loses interrupts.
const MACHINE: &[&str] = &[
    "-accel",
    "tcg,thread=single",
    "-cpu",
    "EPYC-Rome,+svm,+npt",
    "-smp",
    "4,sockets=2,cores=2",
    "-m",
    "4G",
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
    "-append",
    "console=ttyS0 panic=-1 quiet tsc=reliable mitigations=off nokaslr",
];

/// Runs the machine, prints each step's result, keeps the whole console in
/// `console` when something failed.
///
/// # Errors
/// When a step failed or the machine did not come to an end.
pub(super) fn boot(kernel: &Path, initrd: &Path, console: &Path) -> anyhow::Result<()> {
    eprintln!("==> hw-lane: boot");
    let errors = File::create(console.with_extension("err")).context("keep QEMU's warnings")?;
    let mut log = File::create(console).context("keep the console")?;
    let mut command = Command::new("timeout");
    command.args(["-k", "5", SECONDS, "qemu-system-x86_64"]);
    command.args(MACHINE).arg("-kernel").arg(kernel);
    command.arg("-initrd").arg(initrd);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.stderr(errors).spawn().context("start QEMU")?;
    let mut steps = Steps::default();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).split(b'\n') {
            let line = line.context("read the console")?;
            log.write_all(&line)?;
            log.write_all(b"\n")?;
            if let Some(shown) = steps.take(&String::from_utf8_lossy(&line)) {
                println!("{shown}");
            }
        }
    }
    let status = child.wait().context("wait for QEMU")?;
    println!("{} steps passed, {} failed", steps.passed, steps.failed);
    if status.code() == Some(PASSED) && steps.failed == 0 && steps.passed > 0 {
        std::fs::remove_file(console)?;
        std::fs::remove_file(console.with_extension("err"))?;
        return Ok(());
    }
    let text = std::fs::read_to_string(console).unwrap_or_default();
    eprintln!("{}", tool::last_lines(&text, 20));
    Err(Failure::error(
        "hw-lane: failed",
        format!("{} steps failed, QEMU ended with {status}", steps.failed),
        format!("less {}", console.display()),
    ))
}

/// Results seen so far.
#[derive(Debug, Default, PartialEq, Eq)]
struct Steps {
    passed: u32,
    failed: u32,
}

impl Steps {
    /// Counts a line of the console; returns what to show of it.
    fn take<'a>(&mut self, line: &'a str) -> Option<&'a str> {
        let result = line.trim_end().strip_prefix("STEP ")?;
        if result.starts_with("ok ") {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_that_begin_with_a_result_count() {
        let mut steps = Steps::default();
        assert_eq!(
            steps.take("STEP ok   ring0 create\r"),
            Some("ok   ring0 create")
        );
        assert_eq!(
            steps.take("STEP FAIL ring3 create: x"),
            Some("FAIL ring3 create: x")
        );
        assert_eq!(steps.take("a program says STEP ok"), None);
        assert_eq!(
            steps,
            Steps {
                passed: 1,
                failed: 1
            }
        );
    }
}
