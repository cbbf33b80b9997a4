//! The warden: a process of its own that cleans up after a demo, however the
//! demo ends.
//!
//! `demo` starts it first and holds its standard input open. The warden
//! reserves huge pages, says how many it got, and waits. When its input ends,
//! because the demo is done, failed, or was killed, it ends every process of
//! the run, removes the run's directory and gives the huge pages back. It runs
//! in a process group of its own, so that Ctrl-C at the terminal does not
//! reach it. One path for success and failure: nothing else cleans up.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::demo::hugepages;
use crate::proc;

/// How long ended processes may take to disappear.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often to look again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Arguments of the hidden `warden` command.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Directory of the run.
    #[arg(long)]
    run_dir: PathBuf,
    /// Folder to remove at the end.
    #[arg(long)]
    remove: Option<PathBuf>,
    /// Huge pages of 2 MiB to reserve.
    #[arg(long, default_value_t = 0)]
    hugepages: u64,
}

/// First line of a warden.
#[derive(Debug, Serialize, Deserialize)]
struct Ready {
    hugepages: u64,
}

/// Last line of a warden: what it had to do.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Processes it had to end.
    pub(crate) ended: Vec<String>,
    /// Huge pages that the pool did not give back.
    pub(crate) hugepages_left: u64,
}

/// The demo's side of its warden.
#[derive(Debug)]
pub(crate) struct Warden {
    child: Child,
    hold: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
    /// Huge pages it got.
    pub(crate) hugepages: u64,
}

impl Warden {
    /// Starts a warden for `run_dir` that will remove `remove`.
    ///
    /// # Errors
    /// When it cannot be started or does not report.
    pub(crate) fn start(
        run_dir: &Path,
        remove: Option<&Path>,
        hugepages: u64,
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe().context("find this program")?);
        command.arg("warden").arg("--run-dir").arg(run_dir);
        if let Some(folder) = remove {
            command.arg("--remove").arg(folder);
        }
        command.args(["--hugepages", &hugepages.to_string()]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("start the warden")?;
        let hold = child.stdin.take();
        let stdout = child.stdout.take().context("read from the warden")?;
        let mut lines = BufReader::new(stdout);
        let ready: Ready = read_line(&mut lines)?;
        Ok(Self {
            child,
            hold,
            lines,
            hugepages: ready.hugepages,
        })
    }

    /// Lets the warden clean up and returns what it had to do.
    ///
    /// # Errors
    /// When it does not report.
    pub(crate) fn dismiss(mut self) -> anyhow::Result<Report> {
        drop(self.hold.take());
        let report = read_line(&mut self.lines);
        self.child.wait().context("wait for the warden")?;
        report
    }
}

fn read_line<T: for<'a> Deserialize<'a>>(lines: &mut BufReader<ChildStdout>) -> anyhow::Result<T> {
    let mut line = String::new();
    lines.read_line(&mut line).context("read from the warden")?;
    serde_json::from_str(&line).context("understand the warden")
}

/// The warden itself: reserve, wait for the end of input, clean up.
///
/// # Errors
/// When the run's directory cannot be removed.
pub(crate) fn serve(options: &Options) -> anyhow::Result<()> {
    let granted = hugepages::reserve(options.hugepages);
    say(&Ready { hugepages: granted });
    let mut ignored = Vec::new();
    // Any end of the input, an error included, means that the demo is gone.
    let _ = std::io::stdin().read_to_end(&mut ignored);
    let ended = end_processes(&options.run_dir);
    let hugepages_left = hugepages::give_back(granted);
    let removed = match &options.remove {
        Some(folder) if folder.exists() => {
            std::fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    };
    say(&Report {
        ended,
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

/// Ends every process of the run and waits until they are gone.
fn end_processes(run_dir: &Path) -> Vec<String> {
    let mut ended = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let processes = proc::of_run(run_dir);
        if processes.is_empty() || Instant::now() > deadline {
            return ended;
        }
        for process in &processes {
            let name = proc::name(process);
            if !ended.contains(&name) {
                ended.push(name);
            }
            // The shell's own kill: always there, no package needed.
            let _ = Command::new("sh")
                .args(["-c", "kill -KILL \"$0\"", &process.pid.to_string()])
                .stderr(Stdio::null())
                .status();
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}
