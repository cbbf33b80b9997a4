//! A simulation that publishes each step, and a reader of what it publishes.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use serde_json::Value;

use crate::stage::{Program, Stage};
use crate::support::lock;

/// Name of the arena.
const SEGMENT: &str = "snap/flux";

/// snap-mini as an enclave runs it: from `$XASM_OUT`, where `cargo xtask image`
/// has put it, else built here.
fn snap_mini() -> PathBuf {
    static BUILDING: Mutex<()> = Mutex::new(());
    if let Some(out) = std::env::var_os("XASM_OUT") {
        return Path::new(&out).join("snap-mini");
    }
    let _one_at_a_time = lock(&BUILDING);
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests");
    let status = Command::new(env!("CARGO"))
        .args(["rustc", "--quiet", "--release", "--package", "snap-mini"])
        .args(["--bin", "snap-mini", "--target-dir"])
        .arg(&target)
        .args(["--", "-C", "target-feature=+crt-static"])
        .args(["-C", "relocation-model=static"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "snap-mini could not be built"
    );
    target.join("release/snap-mini")
}

/// Starts `steps` steps of a few milliseconds in the enclave `t`.
pub(crate) fn simulate(stage: &Stage, steps: u32) -> Program {
    let mut program = stage.start("t", &snap_mini(), &["--input", "-"]);
    program.send(&format!(
        "&invar\n ndimen=3 nx=10 ny=10 nz=10 lx=8.0 ly=8.0 lz=8.0\n nang=3 ng=4\n \
         epsi=1.0D-4 iitm=10 oitm=40\n timedep=1 tf=2.0 nsteps={steps}\n \
         mat_opt=1 src_opt=1 fixup=1\n/\n"
    ));
    drop(program.stdin.take());
    program
}

/// Waits for the ends of `count` steps: the next one runs when this returns.
#[track_caller]
pub(crate) fn await_steps(program: &Program, count: u32) {
    for _ in 0..count {
        program.await_line("solve");
    }
}

/// Generations published and publishes refused, from the report's end.
#[track_caller]
pub(crate) fn published(report: &[String]) -> (u64, u64) {
    let line = report
        .iter()
        .find(|line| line.trim_start().starts_with("published "));
    let line = line.unwrap_or_else(|| panic!("no totals: {report:#?}"));
    let numbers: Vec<u64> = line
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    (numbers[0], numbers[1])
}

/// Starts the reader, which may be there before the simulation.
pub(crate) fn read(stage: &Stage) -> Program {
    let spectrum = Path::new(env!("CARGO_BIN_EXE_enclavectl")).with_file_name("spectrum");
    let shown = spectrum.display();
    assert!(
        spectrum.is_file(),
        "{shown} is missing; try: cargo build -p spectrum"
    );
    let mut command = Command::new(spectrum);
    command
        .args([SEGMENT, "--json"])
        .env("ENCLAVE_RUNDIR", stage.run_dir())
        .env_remove("XEMEM_SOCKET")
        .stderr(Stdio::piped());
    Program::start(command)
}

/// The summary that ends the reader's output.
#[track_caller]
pub(crate) fn summary(output: &[String]) -> Value {
    let last = output.last().expect("some output");
    let value: Value = serde_json::from_str(last).unwrap();
    assert_eq!(value["type"], "summary", "{last}");
    value
}
