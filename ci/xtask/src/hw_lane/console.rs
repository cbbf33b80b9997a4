//! Runs an emulator, hands on its console line by line, and ends it.
//!
//! Called by each lane with the emulator's command. Promises that the emulator
//! is gone when this returns, and that it dies with this process even when that
//! is killed: the kernel sends it a signal at its parent's death. Keeps every
//! byte of the console in a file.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// How an emulator came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// By itself.
    Exited(ExitStatus),
    /// It did not, within the time limit.
    Hung,
}

/// A command for `program` that dies when the thread that starts it does.
pub(super) fn bound(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}

/// Runs `command` until it ends or `limit` is over; its standard output goes to
/// `on_line` and into the file `kept`, its standard error beside that.
///
/// # Errors
/// When it cannot be started or the files cannot be written.
pub(super) fn watch(
    command: &mut Command,
    kept: &Path,
    limit: Duration,
    mut on_line: impl FnMut(&str),
) -> anyhow::Result<End> {
    let deadline = Instant::now() + limit;
    let mut log = File::create(kept).context("keep the console")?;
    let errors = File::create(kept.with_extension("err")).context("keep the warnings")?;
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = Emulator(
        command
            .stderr(errors)
            .spawn()
            .context("start the emulator")?,
    );
    let output = child.0.stdout.take().context("read the console")?;
    let lines = lines(output);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) => {
                log.write_all(&line).context("keep the console")?;
                on_line(&String::from_utf8_lossy(&line));
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => return Ok(End::Hung),
        }
    }
    // It has closed its output; what is left of it is its end.
    loop {
        if let Some(status) = child.0.try_wait().context("wait for the emulator")? {
            return Ok(End::Exited(status));
        }
        if Instant::now() > deadline {
            return Ok(End::Hung);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Lines of `output`, ends of line included, read in a thread of its own so
/// that waiting for one can have an end.
fn lines(output: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut output = BufReader::new(output);
        loop {
            let mut line = Vec::new();
            match output.read_until(b'\n', &mut line) {
                Ok(count) if count > 0 => {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
                _ => return,
            }
        }
    });
    receiver
}

/// A running emulator; ended when dropped.
struct Emulator(Child);

impl Drop for Emulator {
    fn drop(&mut self) {
        // After an exit that was waited for both fail, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc;

    /// Set in the process that plays the killed parent.
    const PARENT: &str = "XTASK_TEST_PARENT";

    fn shell(script: &str) -> Command {
        let mut command = bound("sh");
        command.args(["-c", script]);
        command
    }

    fn folder(name: &str) -> std::path::PathBuf {
        let folder = std::env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn the_console_is_handed_on_and_kept() {
        let folder = folder("console");
        let mut seen = Vec::new();
        let end = watch(
            &mut shell("echo one; printf two; exit 43"),
            &folder.join("log"),
            Duration::from_secs(60),
            |line| seen.push(line.to_owned()),
        );
        let kept = std::fs::read_to_string(folder.join("log")).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        let End::Exited(status) = end.unwrap() else {
            panic!("it ended by itself");
        };
        assert_eq!(status.code(), Some(43));
        assert_eq!(seen, ["one\n", "two"]);
        assert_eq!(kept, "one\ntwo");
    }

    #[test]
    fn an_emulator_that_hangs_is_ended() {
        let folder = folder("hang");
        let mut pid = 0;
        let end = watch(
            &mut shell("echo $$; exec sleep 1000"),
            &folder.join("log"),
            Duration::from_secs(1),
            |line| pid = line.trim().parse().unwrap(),
        );
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(end.unwrap(), End::Hung);
        assert!(!proc::is_running(pid), "{pid} still runs");
    }

    /// Plays both sides: started again with [`PARENT`] set it is the process
    /// that has an emulator and is killed.
    #[test]
    fn an_emulator_dies_with_a_parent_that_is_killed() {
        if let Some(place) = std::env::var_os(PARENT) {
            let end = watch(
                &mut shell("echo $$ > pid.new && mv pid.new pid; exec sleep 1000"),
                Path::new(&place),
                Duration::from_secs(600),
                |_| (),
            );
            panic!("the emulator ended before its parent: {end:?}");
        }
        let folder = folder("killed");
        let name = "hw_lane::console::tests::an_emulator_dies_with_a_parent_that_is_killed";
        let mut parent = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(PARENT, folder.join("log"))
            .current_dir(&folder)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let pid: u32 = wait_for(|| {
            let text = std::fs::read_to_string(folder.join("pid")).ok()?;
            text.trim().parse().ok()
        });
        let before = proc::is_running(pid);
        parent.kill().unwrap();
        parent.wait().unwrap();
        wait_for(|| (!proc::is_running(pid)).then_some(()));
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(before);
    }

    /// Looks until there is something; fails after a minute.
    fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(Instant::now() < deadline, "nothing came");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
