//! Whole demo runs with stand-ins for the programs, good and bad ones.
//!
//! The stand-ins speak as the real programs do and one of them holds a memory
//! object while the "enclave" lives. What is tested is the verdict: a run that
//! should fail must fail.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use super::stage::Stage;
use super::*;

/// A folder that looks like `out/`, with the stand-ins of `ci/xtask/fakes`.
struct Fakes {
    workspace: Workspace,
}

impl Fakes {
    /// Stand-ins with one fault, or none; the fault is the name of a file.
    fn new(fault: Option<&str>) -> Self {
        let name = format!(
            "xtask-fakes-{}-{}",
            std::process::id(),
            fault.unwrap_or("none")
        );
        let out = std::env::temp_dir().join(name);
        let package = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        fs::create_dir_all(&out).unwrap();
        // Links: a file written here and run at once could still be open for
        // writing in a child that another test is about to start.
        for program in ["enclavectl", "spectrum"] {
            symlink(package.join("fakes").join(program), out.join(program)).unwrap();
        }
        if let Some(fault) = fault {
            fs::write(out.join(fault), "").unwrap();
        }
        let root = package.join("../..");
        Self {
            workspace: Workspace { root, out },
        }
    }

    fn perform(&self) -> (Stage, Outcome) {
        let options = Options {
            json: false,
            steps: 2,
            ring: Ring::Auto,
            keep: false,
            installed: None,
        };
        let stage = Stage::choose(&self.workspace, false);
        stage.set(&self.workspace, options.steps).unwrap();
        let mut outcome = perform(&stage, &options, SMALL).unwrap();
        outcome.leftovers = outcome.leftovers_found.len();
        (stage, outcome)
    }
}

impl Drop for Fakes {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.workspace.out);
    }
}

fn remove(stage: &Stage) {
    fs::remove_dir_all(stage.run_dir().parent().unwrap()).unwrap();
}

#[test]
fn a_good_run_is_joined_and_accepted() {
    let fakes = Fakes::new(None);
    let (stage, outcome) = fakes.perform();
    remove(&stage);
    assert_eq!(outcome.leftovers_found, Vec::<String>::new());
    assert_eq!((outcome.steps, outcome.snapshots_verified), (2, 2));
    assert_eq!(outcome.publish_us_median, Some(15.0));
    assert_eq!(outcome.kernel_mode.as_deref(), Some("ring3"));
    assert_eq!(outcome.emulated_instructions_per_publish, None);
    judge(&outcome).unwrap();
}

#[test]
fn a_torn_snapshot_fails_the_run() {
    let fakes = Fakes::new(Some("torn"));
    let (stage, outcome) = fakes.perform();
    remove(&stage);
    assert_eq!(outcome.snapshots_torn, 1);
    assert!(judge(&outcome).unwrap_err().to_string().contains("torn"));
}

#[test]
fn an_enclave_that_survives_destroy_fails_the_run() {
    let fakes = Fakes::new(Some("stubborn"));
    let (stage, outcome) = fakes.perform();
    fs::remove_file(stage.run_dir().join("vmm")).unwrap();
    while !crate::proc::of_run(stage.run_dir()).is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    remove(&stage);
    let found = outcome.leftovers_found.join("; ");
    assert_eq!(outcome.leftovers, 3, "{found}");
    assert!(found.contains("holds memory of the run"), "{found}");
    assert!(
        judge(&outcome)
            .unwrap_err()
            .to_string()
            .contains("left behind")
    );
}

#[test]
fn a_missing_kvm_is_no_error_and_one_that_cannot_be_used_is() {
    assert_eq!(kvm_at(Path::new("/dev/none")).unwrap(), Kvm::Missing);
    assert_eq!(kvm_at(Path::new("/dev/null")).unwrap(), Kvm::Usable);
    let error = kvm_at(Path::new("/dev")).unwrap_err().to_string();
    assert!(error.contains("no enclave can run"), "{error}");
    assert!(error.contains("modprobe"), "{error}");
}
