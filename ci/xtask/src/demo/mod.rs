//! `demo`: one enclave from create to destroy, watched from Linux.
//!
//! Builds everything, creates an enclave in a private run directory, runs
//! `snap-mini` in it while `spectrum` reads each snapshot from a process of
//! its own, destroys the enclave and proves that nothing is left. Uses only
//! the programs in `out/`, as a user would. Whatever happens, the
//! [`crate::warden`] cleans up. Where there is no /dev/kvm all of this happens
//! in an emulated machine ([`emulated`]), and says so.

mod emulated;
pub(crate) mod hugepages;
mod leftovers;
mod outcome;
mod stage;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::ValueEnum;

use crate::failure::Failure;
use crate::image;
use crate::setup::{self, Purpose};
use crate::warden::Warden;
use crate::workspace::Workspace;

use self::leftovers::Inventory;
use self::outcome::Outcome;
use self::stage::Stage;

/// Input deck in the source tree.
pub(crate) const INPUT: &str = "guests/snap-mini/inputs/demo.inp";
/// Usual sizes.
const USUAL: Sizes = Sizes {
    enclave_mib: 512,
    arena_mib: 256,
};
/// Sizes for an emulated machine.
const SMALL: Sizes = Sizes {
    enclave_mib: 64,
    arena_mib: 64,
};
/// Steps of the run that `test` makes.
const CHECK_STEPS: u32 = 10;
/// What gives a machine its /dev/kvm.
pub(crate) const GET_KVM: &str = "sudo modprobe kvm_intel || sudo modprobe kvm_amd  (in a \
    virtual machine: switch nested virtualisation on; on a bare machine: virtualisation in \
    the firmware)";
/// Name of the enclave.
const ENCLAVE: &str = "demo";

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Print one JSON object as the last line of standard output.
    #[arg(long)]
    json: bool,
    /// Time steps to compute.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    steps: u32,
    /// Privilege mode of the kernel.
    #[arg(long, value_enum, default_value_t = Ring::Auto)]
    ring: Ring,
    /// Keep the run directory (logs, input) for a look at it.
    #[arg(long)]
    keep: bool,
    /// Inside the emulated machine: below this folder are the programs
    /// (`programs`) and the input; the sizes are small ones.
    #[arg(long, hide = true)]
    installed: Option<PathBuf>,
}

impl Options {
    /// Is everything built already, below a folder?
    pub(crate) fn is_installed(&self) -> bool {
        self.installed.is_some()
    }
}

/// How large the enclave is.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    /// Its memory in MiB.
    enclave_mib: u64,
    /// Room for its arenas in MiB.
    arena_mib: u64,
}

/// Privilege mode wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Ring {
    /// What fits the host.
    Auto,
    /// Kernel in ring 0.
    #[value(name = "0")]
    Zero,
    /// Kernel in ring 3.
    #[value(name = "3")]
    Three,
}

impl Ring {
    /// The value as `enclavectl create --ring` takes it.
    fn argument(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Zero => "0",
            Self::Three => "3",
        }
    }
}

/// Builds, runs, shows.
///
/// # Errors
/// When a step fails, a snapshot is torn, or something is left behind.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> anyhow::Result<()> {
    let kvm = kvm()?;
    setup::require(workspace, Purpose::Build)?;
    match kvm {
        Kvm::Usable => {
            image::run(workspace)?;
            show(workspace, options)
        }
        Kvm::Missing => emulated::run(workspace, options),
    }
}

/// A short run on the image that is there, for `test`; in the emulated machine
/// where there is no KVM.
///
/// # Errors
/// As [`run`].
pub(crate) fn check(workspace: &Workspace, kvm: Kvm) -> anyhow::Result<()> {
    let options = Options {
        json: false,
        steps: CHECK_STEPS,
        ring: Ring::Auto,
        keep: false,
        installed: None,
    };
    match kvm {
        Kvm::Usable => show(workspace, &options),
        Kvm::Missing => emulated::run(workspace, &options),
    }
}

/// The run inside the emulated machine.
///
/// # Errors
/// As [`run`].
pub(crate) fn installed(options: &Options) -> anyhow::Result<()> {
    let root = options
        .installed
        .clone()
        .context("where is it installed?")?;
    let out = root.join("programs");
    show(&Workspace { root, out }, options)
}

/// Runs, prints, judges.
fn show(workspace: &Workspace, options: &Options) -> anyhow::Result<()> {
    let outcome = play(workspace, options)?;
    print!("{}", outcome.table());
    println!("{}", outcome.summary());
    if options.json {
        println!("{}", serde_json::to_string(&outcome)?);
    }
    judge(&outcome)
}

/// What the host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kvm {
    /// A KVM that this user may use.
    Usable,
    /// None: there is no /dev/kvm.
    Missing,
}

/// Is there a KVM?
///
/// # Errors
/// When there is one that cannot be used; says why and what to do about it.
pub(crate) fn kvm() -> anyhow::Result<Kvm> {
    kvm_at(Path::new("/dev/kvm"))
}

fn kvm_at(device: &Path) -> anyhow::Result<Kvm> {
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(device);
    let Err(error) = opened else {
        return Ok(Kvm::Usable);
    };
    let fix = match error.kind() {
        std::io::ErrorKind::NotFound => return Ok(Kvm::Missing),
        std::io::ErrorKind::PermissionDenied => "sudo usermod -aG kvm $USER  (then log in again)",
        _ => GET_KVM,
    };
    Err(Failure::error(
        "no enclave can run on this machine",
        format!("{}: {error}", device.display()),
        fix,
    ))
}

/// The run itself, between the start and the end of the warden.
fn play(workspace: &Workspace, options: &Options) -> anyhow::Result<Outcome> {
    let stage = Stage::choose(workspace, options.keep);
    let sizes = if options.is_installed() { SMALL } else { USUAL };
    let wanted = if setup::is_root() {
        (sizes.enclave_mib + sizes.arena_mib) * (1 << 20) / hugepages::PAGE_BYTES
    } else {
        0
    };
    let warden = Warden::start(stage.run_dir(), stage.to_remove(), wanted)?;
    if warden.hugepages < wanted || wanted == 0 {
        eprintln!(
            "==> demo: {} of {wanted} huge pages reserved ({} free); the rest falls back to 4 KiB",
            warden.hugepages,
            hugepages::free(),
        );
    }
    let played = stage
        .set(workspace, options.steps)
        .and_then(|()| perform(&stage, options, sizes));
    let report = warden.dismiss();
    if let Some(kept) = stage.kept() {
        eprintln!("==> demo: {} was kept", kept.display());
    }
    let mut outcome = played?;
    let report = report?;
    for process in report.ended {
        outcome
            .leftovers_found
            .push(format!("{process} had to be ended"));
    }
    if report.hugepages_left > 0 {
        let message = format!("{} huge pages did not go back", report.hugepages_left);
        outcome.leftovers_found.push(message);
    }
    outcome.leftovers = outcome.leftovers_found.len();
    Ok(outcome)
}

/// Create, publish, read, inspect, destroy, look for leftovers.
fn perform(stage: &Stage, options: &Options, sizes: Sizes) -> anyhow::Result<Outcome> {
    stage.create(ENCLAVE, sizes.enclave_mib, options.ring)?;
    let mut inventory = Inventory::take(stage.run_dir());
    let reader = stage.start_reader(options.steps)?;
    let summary = stage.run_producer(ENCLAVE, &mut inventory)?;
    let rows = reader.finish()?;
    let mut outcome = Outcome::join(rows, &summary);
    // KVM's counts in an emulated machine are not those of hardware.
    let counts = if options.is_installed() {
        None
    } else {
        stage.count_instructions(ENCLAVE)
    };
    let report = stage.inspect(ENCLAVE).context("inspect the enclave")?;
    stage.fill_in(&mut outcome, &report, counts.as_ref());
    outcome.is_emulated = options.is_installed();
    inventory.extend();
    stage.destroy(ENCLAVE)?;
    stage.give_up_retained()?;
    if inventory.objects() == 0 {
        return Err(Failure::error(
            "demo: the check for leftovers would prove nothing",
            "no memory object of the enclave was seen while it lived",
            "cargo xtask demo --keep",
        ));
    }
    outcome.leftovers_found = inventory.leftovers();
    Ok(outcome)
}

/// A run that showed a torn snapshot or left something behind has failed.
fn judge(outcome: &Outcome) -> anyhow::Result<()> {
    if outcome.snapshots_torn > 0 {
        return Err(Failure::error(
            "demo: torn snapshots",
            format!("{} of {}", outcome.snapshots_torn, outcome.snapshots.len()),
            "cargo xtask demo --keep",
        ));
    }
    if outcome.snapshots_verified == 0 {
        return Err(Failure::error(
            "demo: no snapshot was verified",
            format!("{} were read", outcome.snapshots.len()),
            "cargo xtask demo --keep",
        ));
    }
    if outcome.leftovers > 0 {
        return Err(Failure::error(
            "demo: something was left behind",
            outcome.leftovers_found.join("; "),
            "cargo xtask demo --keep",
        ));
    }
    Ok(())
}
