//! The proof that a run left nothing behind.
//!
//! While the enclave lives, [`Inventory::take`] notes the memory objects its
//! processes hold. After destroy, [`Inventory::leftovers`] looks for processes,
//! memory, locks and files. Everything is looked up by what belongs to this run
//! alone, so other enclaves on the same host do not disturb the verdict.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::proc::{self, Object};

/// How long the last processes may take to end after destroy.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What may stay in a run directory: lock files that nobody holds (removing one
/// would race with its next owner), the broker's log, and what happened to
/// enclaves, which outlives them.
fn stays_by_design(path: &Path) -> bool {
    let is = |ending| {
        path.extension()
            .is_some_and(|extension| extension == ending)
    };
    let folder = path.parent().and_then(Path::file_name);
    let in_ledger = folder.is_some_and(|name| name == "ledger");
    let of_broker = path.file_stem().is_some_and(|stem| stem == "xemem");
    let of_events = path
        .file_name()
        .is_some_and(|name| name == "events.jsonl" || name == "events.jsonl.1");
    (is("lock") && (in_ledger || of_broker)) || (is("log") && of_broker) || of_events
}

/// What a run held while it lived.
#[derive(Debug)]
pub(crate) struct Inventory {
    run_dir: PathBuf,
    objects: BTreeSet<Object>,
}

impl Inventory {
    /// Notes what the processes of `run_dir` hold now.
    pub(crate) fn take(run_dir: &Path) -> Self {
        Self {
            run_dir: run_dir.to_owned(),
            objects: proc::objects(&proc::of_run(run_dir)),
        }
    }

    /// Notes further objects of processes that started later.
    pub(crate) fn extend(&mut self) {
        let more = proc::objects(&proc::of_run(&self.run_dir));
        self.objects.extend(more);
    }

    /// Number of memory objects seen.
    pub(crate) fn objects(&self) -> usize {
        self.objects.len()
    }

    /// Everything of the run that is still there, one sentence each.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        self.leftovers_after(PATIENCE)
    }

    fn leftovers_after(&self, patience: Duration) -> Vec<String> {
        let mut found = Vec::new();
        for process in wait_for_processes(&self.run_dir, patience) {
            found.push(format!("process {process} runs"));
        }
        for process in proc::holders(&self.objects) {
            found.push(format!("{} holds memory of the run", proc::name(&process)));
        }
        let locked = proc::locked_files(&self.run_dir);
        for path in &locked {
            found.push(format!("{} is locked", path.display()));
        }
        for path in proc::files_below(&self.run_dir) {
            if !locked.contains(&path) && !stays_by_design(&path) {
                found.push(format!("{} exists", path.display()));
            }
        }
        found
    }
}

/// The processes that do not end by themselves.
fn wait_for_processes(run_dir: &Path, patience: Duration) -> Vec<String> {
    let deadline = Instant::now() + patience;
    loop {
        let processes = proc::of_run(run_dir);
        if processes.is_empty() || Instant::now() > deadline {
            return processes.iter().map(proc::name).collect();
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};

    #[test]
    fn files_and_locks_are_found_and_an_empty_directory_is_nothing() {
        let folder = std::env::temp_dir().join(format!("xtask-leftovers-{}", std::process::id()));
        fs::create_dir_all(folder.join("parts")).unwrap();
        let inventory = Inventory::take(&folder);
        let clean = inventory.leftovers();
        let locked = File::create(folder.join("parts/core-1")).unwrap();
        locked.lock().unwrap();
        File::create(folder.join("socket")).unwrap();
        fs::create_dir(folder.join("ledger")).unwrap();
        File::create(folder.join("ledger/core-2.lock")).unwrap();
        File::create(folder.join("events.jsonl")).unwrap();
        let found = inventory.leftovers();
        drop(locked);
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(clean, Vec::<String>::new());
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].ends_with("parts/core-1 is locked"), "{found:?}");
        assert!(found[1].ends_with("socket exists"), "{found:?}");
    }

    #[test]
    fn a_process_and_its_memory_are_found_until_it_ends() {
        let folder = std::env::temp_dir().join(format!("xtask-memory-{}", std::process::id()));
        let program = "import os, sys\nfd = os.memfd_create('arena')\nprint('up', flush=True)\nsys.stdin.read()";
        let mut child = Command::new("python3")
            .args(["-c", program])
            .env(proc::RUN_DIR_VARIABLE, &folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut up = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut up)
            .unwrap();
        let inventory = Inventory::take(&folder);
        let alive = inventory.leftovers_after(Duration::ZERO);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(inventory.objects(), 1);
        assert_eq!(alive.len(), 2, "{alive:?}");
        assert!(alive[0].ends_with("runs"), "{alive:?}");
        assert!(alive[1].ends_with("holds memory of the run"), "{alive:?}");
        assert_eq!(
            inventory.leftovers_after(Duration::ZERO),
            Vec::<String>::new()
        );
    }
}
