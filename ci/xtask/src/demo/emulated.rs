//! The demo for a host without /dev/kvm: the same one, in the SVM lane.
//!
//! Called by [`super::run`] and `test` there. Every figure comes from inside;
//! what is printed is labelled, because the times are those of an emulator.

use super::{GET_KVM, Options};
use crate::failure::Failure;
use crate::hw_lane;
use crate::workspace::Workspace;

/// Most time steps: an emulated one takes a fraction of a second.
const MAX_STEPS: u32 = 200;

/// Runs the demo in the emulated machine and prints what it printed there.
///
/// # Errors
/// When the machine cannot be had or the demo fails in it.
pub(super) fn run(workspace: &Workspace, options: &Options) -> anyhow::Result<()> {
    if options.steps > MAX_STEPS {
        return Err(Failure::error(
            format!("demo: {} time steps are too many here", options.steps),
            format!("/dev/kvm is missing; the emulated machine does {MAX_STEPS} at most"),
            GET_KVM,
        ));
    }
    eprintln!("==> demo: /dev/kvm is missing; to have it: {GET_KVM}");
    eprintln!("==> demo: the same demo runs in an emulated AMD machine, with smaller sizes");
    if options.keep {
        eprintln!("==> demo: nothing can be kept of a run in there");
    }
    let steps = options.steps.to_string();
    let ring = options.ring.argument();
    let arguments = ["--json", "--steps", &steps, "--ring", ring];
    let lines = hw_lane::demo(workspace, &arguments)?;
    let (json, text): (Vec<&String>, Vec<&String>) =
        lines.iter().partition(|line| line.starts_with('{'));
    println!("EMULATED (QEMU, AMD SVM): the times are the emulator's and mean nothing");
    for line in text {
        println!("{line}");
    }
    match json.as_slice() {
        [json] => {
            if options.json {
                println!("{json}");
            }
            Ok(())
        }
        _ => Err(Failure::error(
            "demo: the emulated machine told no result",
            format!("{} lines came, {} of them JSON", lines.len(), json.len()),
            "cargo xtask hw-lane",
        )),
    }
}
