//! The janitor: a process of its own that cleans up after a run, however the
//! run ends.
//!
//! Started first by [`crate::session`], which holds its standard input open.
//! The janitor reserves huge pages, says how many it got, and waits. When its
//! input ends, because the run is done, failed or was killed, it destroys the
//! run's enclaves, stops the broker, ends whatever else belongs to the run,
//! gives the huge pages back and removes the run's folder. It has a process
//! group of its own, so that Ctrl-C at the terminal does not reach it.

use crate::{hugepages, session};
use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// How long ended processes may take to disappear.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often to look again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// First line of a janitor.
#[derive(Debug, Serialize, Deserialize)]
struct Ready {
    hugepages: u64,
}

/// Last line of a janitor: what it had to do by force.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Programs that did not end when asked.
    pub(crate) killed: Vec<String>,
    /// Huge pages that the pool did not give back.
    pub(crate) hugepages_left: u64,
}

/// The run's side of its janitor.
#[derive(Debug)]
pub(crate) struct Janitor {
    child: Child,
    hold: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
    /// Huge pages it got.
    pub(crate) hugepages: u64,
}

impl Janitor {
    /// Starts a janitor for `run_dir`.
    ///
    /// # Errors
    /// When it cannot be started or does not report.
    pub(crate) fn start(run_dir: &Path, programs: &Path, hugepages: u64) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe().context("find this program")?)
            .arg("--janitor")
            .arg(run_dir)
            .arg("--programs")
            .arg(programs)
            .args(["--hugepages", &hugepages.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("start the janitor")?;
        let hold = child.stdin.take();
        let stdout = child.stdout.take().context("read from the janitor")?;
        let mut lines = BufReader::new(stdout);
        let ready: Ready = read_line(&mut lines)?;
        Ok(Self {
            child,
            hold,
            lines,
            hugepages: ready.hugepages,
        })
    }

    /// Lets the janitor clean up and returns what it had to do by force.
    ///
    /// # Errors
    /// When it does not report.
    pub(crate) fn dismiss(mut self) -> anyhow::Result<Report> {
        self.hold.take();
        read_line(&mut self.lines)
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        // Its work is done, well or badly, before anybody goes on.
        self.hold.take();
        let _ = self.child.wait();
    }
}

fn read_line<T: for<'a> Deserialize<'a>>(lines: &mut BufReader<ChildStdout>) -> anyhow::Result<T> {
    let mut line = String::new();
    lines
        .read_line(&mut line)
        .context("read from the janitor")?;
    serde_json::from_str(&line).context("understand the janitor")
}

/// The janitor itself: reserve, wait for the end of input, clean up.
///
/// # Errors
/// When the run's folder cannot be removed.
pub(crate) fn serve(run_dir: &Path, programs: &Path, hugepages: u64) -> anyhow::Result<()> {
    let granted = hugepages::reserve(hugepages);
    say(&Ready { hugepages: granted });
    // Any end of the input, an error included, means that the run is over.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    for words in [
        ["destroy", "--all"].as_slice(),
        &["broker", "stop", "--force"],
    ] {
        // What this does not end is killed below.
        let _ = session::program(programs, run_dir, "enclavectl")
            .args(words)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
    let killed = kill_processes(run_dir);
    let hugepages_left = hugepages::give_back(granted);
    let removed = match fs::remove_dir_all(run_dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", run_dir.display()))
        }
        _ => Ok(()),
    };
    say(&Report {
        killed,
        hugepages_left,
    });
    removed
}

/// Prints one line; nobody may be left to read it.
fn say<T: Serialize>(message: &T) {
    let Ok(line) = serde_json::to_string(message) else {
        return;
    };
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

/// Kills every process of the run that does not end by itself within half of
/// the patience, and waits until none is left.
fn kill_processes(run_dir: &Path) -> Vec<String> {
    let start = Instant::now();
    let mut killed = Vec::new();
    loop {
        let processes = of_run(run_dir);
        if processes.is_empty() || start.elapsed() > PATIENCE {
            return killed;
        }
        if start.elapsed() > PATIENCE / 2 {
            for (pid, exe) in processes {
                // It may be gone by now, which is what is wanted.
                let _ = kill_process(pid, Signal::KILL);
                let name = format!("{} (pid {})", exe.display(), pid.as_raw_nonzero());
                if !killed.contains(&name) {
                    killed.push(name);
                }
            }
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Processes started with `run_dir` as their run directory.
fn of_run(run_dir: &Path) -> Vec<(Pid, PathBuf)> {
    let mut wanted = format!("{}=", session::RUN_DIR_VARIABLE).into_bytes();
    wanted.extend_from_slice(run_dir.as_os_str().as_bytes());
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ
                .split(|&byte| byte == 0)
                .any(|entry| entry == wanted)
        })
        .filter_map(|pid| {
            let exe = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
            Some((Pid::from_raw(pid)?, exe))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_the_run_is_found_until_it_ends() {
        let run_dir = std::env::temp_dir().join(format!("bench-janitor-{}", std::process::id()));
        let mut child = Command::new("cat")
            .env(session::RUN_DIR_VARIABLE, &run_dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Its environment is there when it runs, not when it is spawned.
        let (to, from) = (
            child.stdin.as_mut().unwrap(),
            child.stdout.as_mut().unwrap(),
        );
        to.write_all(b"x").unwrap();
        from.read_exact(&mut [0]).unwrap();
        let found: Vec<Pid> = of_run(&run_dir).into_iter().map(|(pid, _)| pid).collect();
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(found, [Pid::from_child(&child)]);
        assert!(kill_processes(&run_dir).is_empty());
    }
}
