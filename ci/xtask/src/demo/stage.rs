//! The programs of a demo run and the folder they run in.
//!
//! Called by [`super::perform`] step by step. Every program gets the run
//! directory in its environment, which is also how the warden and the check
//! for leftovers recognise them.

use std::fs::{self, DirBuilder};
use std::io::{BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use super::leftovers::Inventory;
use super::outcome::{self, Outcome, Row};
use super::{INPUT, Ring};
use crate::failure::Failure;
use crate::proc::RUN_DIR_VARIABLE;
use crate::tool;
use crate::workspace::Workspace;

/// Name under which the program publishes.
const SEGMENT: &str = "snap/flux";
/// Key of a deck that says how many steps to compute.
const STEPS_KEY: &str = "nsteps";
/// How long the reader may take after the program has ended.
const READER_PATIENCE: Duration = Duration::from_secs(30);

/// The folder of one run.
#[derive(Debug)]
pub(crate) struct Stage {
    out: PathBuf,
    folder: PathBuf,
    run_dir: PathBuf,
    keep: bool,
}

impl Stage {
    /// Chooses the folder; touches nothing yet, so that the warden can be there
    /// first.
    pub(crate) fn choose(workspace: &Workspace, keep: bool) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // Short, because socket paths may have 107 bytes at most.
        let name = format!("xasm-demo-{}-{count}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        Self {
            out: workspace.out.clone(),
            run_dir: folder.join("run"),
            folder,
            keep,
        }
    }

    /// Makes the private folder with an empty run directory and the input.
    pub(crate) fn set(&self, workspace: &Workspace, steps: u32) -> anyhow::Result<()> {
        for path in [&self.folder, &self.run_dir, &self.data()] {
            DirBuilder::new()
                .mode(0o700)
                .create(path)
                .with_context(|| format!("create {}", path.display()))?;
        }
        let input = workspace.root.join(INPUT);
        let deck =
            fs::read_to_string(&input).with_context(|| format!("read {}", input.display()))?;
        let deck = with_steps(&deck, steps)
            .with_context(|| format!("{} has no {STEPS_KEY}", input.display()))?;
        fs::write(self.data().join("demo.inp"), deck).context("write the input")
    }

    /// The run directory.
    pub(crate) fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// What the warden removes at the end.
    pub(crate) fn to_remove(&self) -> Option<&Path> {
        (!self.keep).then_some(self.folder.as_path())
    }

    /// What stays after the run because the user asked for it.
    pub(crate) fn kept(&self) -> Option<&Path> {
        self.keep.then_some(self.folder.as_path())
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.out.join(name));
        command
            .env(RUN_DIR_VARIABLE, &self.run_dir)
            // The image beside the programs, whatever the caller works on.
            .env_remove("ENCLAVE_KERNEL")
            .env_remove("XEMEM_SOCKET")
            .stdin(Stdio::null());
        command
    }

    fn enclavectl(&self, verb: &str) -> Command {
        let mut command = self.program("enclavectl");
        command.arg(verb);
        command
    }

    /// Creates the enclave with the input folder at `/data`.
    pub(crate) fn create(&self, name: &str, mib: u64, ring: Ring) -> anyhow::Result<()> {
        let mut command = self.enclavectl("create");
        command.arg(name).args(["--cores", "1"]);
        command.args(["--mem", &format!("{mib}M")]);
        command.args(["--ring", ring.argument()]);
        command.arg("--export");
        command.arg(format!("{}=/data", self.data().display()));
        tool::capture("demo: create the enclave", &mut command).map(drop)
    }

    /// Starts the analytics process.
    pub(crate) fn start_reader(&self, steps: u32) -> anyhow::Result<Reader> {
        let mut command = self.program("spectrum");
        command.args([SEGMENT, "--policy", "every", "--json"]);
        let line = tool::line(&command);
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {line}"))?;
        let stdout = child.stdout.take().context("read from the reader")?;
        let (sender, rows) = mpsc::channel();
        std::thread::spawn(move || {
            for text in BufReader::new(stdout).lines().map_while(Result::ok) {
                let parsed = serde_json::from_str::<Value>(&text).ok();
                if let Some(row) = parsed.as_ref().and_then(outcome::row) {
                    progress(&row, steps);
                    if sender.send(row).is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Reader { child, rows, line })
    }

    /// Runs the program to its end and returns its summary.
    pub(crate) fn run_producer(
        &self,
        name: &str,
        inventory: &mut Inventory,
    ) -> anyhow::Result<Value> {
        let mut command = self.enclavectl("run");
        command.arg(name).arg("--").arg(self.out.join("snap-mini"));
        command.args(["--input", "/data/demo.inp", "--json-summary"]);
        let mut summary = Value::Null;
        let mut lines = 0u64;
        tool::run_lines("demo: run snap-mini", &mut command, |line| {
            // Often at first, so that the arena is seen; rarely later, so that
            // the run is not disturbed.
            lines += 1;
            if lines.is_power_of_two() {
                inventory.extend();
            }
            if let Ok(value @ Value::Object(_)) = serde_json::from_str(line) {
                summary = value;
            }
        })?;
        if summary.is_null() {
            return Err(tool::failed(
                "demo: run snap-mini",
                &command,
                "it printed no summary",
            ));
        }
        Ok(summary)
    }

    /// Exact counts of emulated instructions, when the guest that makes them
    /// is there.
    pub(crate) fn count_instructions(&self, name: &str) -> Option<Value> {
        let program = self.out.join("xasm-counts");
        if !program.is_file() {
            return None;
        }
        let mut command = self.enclavectl("run");
        command.arg(name).arg("--").arg(program).arg("--json");
        match tool::capture("demo: count emulated instructions", &mut command) {
            Ok(text) => last_object(&text),
            Err(error) => {
                eprintln!("{error}");
                None
            }
        }
    }

    /// The report of the enclave's machine.
    pub(crate) fn inspect(&self, name: &str) -> anyhow::Result<Value> {
        let mut command = self.enclavectl("inspect");
        command.arg(name).arg("--json");
        let text = tool::capture("demo: inspect the enclave", &mut command)?;
        serde_json::from_str(&text).context("understand the report")
    }

    /// Destroys the enclave.
    pub(crate) fn destroy(&self, name: &str) -> anyhow::Result<()> {
        let mut command = self.enclavectl("destroy");
        command.arg(name);
        tool::capture("demo: destroy the enclave", &mut command).map(drop)
    }

    /// Has the broker give up the last snapshot, which outlives its enclave.
    pub(crate) fn give_up_retained(&self) -> anyhow::Result<()> {
        let mut command = self.enclavectl("snap");
        command.args(["rm", "--all"]);
        tool::capture("demo: give up the last snapshot", &mut command).map(drop)
    }

    /// Copies facts about the machine into the outcome.
    pub(crate) fn fill_in(&self, outcome: &mut Outcome, report: &Value, counts: Option<&Value>) {
        let text = |key: &str| find(report, key).and_then(Value::as_str).map(str::to_owned);
        outcome.kernel_mode = text("kernel_mode");
        outcome.platform = text("platform");
        let count = |key: &str| find(counts?, key).and_then(Value::as_f64);
        outcome.emulated_instructions_per_publish = count("emulated_instructions_per_publish");
        outcome.emulated_instructions_per_cow_fault = count("emulated_instructions_per_cow_fault");
    }
}

/// The deck with another number of steps; `None` when it names none.
fn with_steps(deck: &str, steps: u32) -> Option<String> {
    let (start, end) = value_of(deck, STEPS_KEY)?;
    Some(format!("{}{steps}{}", deck.get(..start)?, deck.get(end..)?))
}

/// Where the number after `key =` stands, comments (from `!`) left out.
fn value_of(deck: &str, key: &str) -> Option<(usize, usize)> {
    let mut line_start = 0;
    for line in deck.split_inclusive('\n') {
        let code = line.split('!').next().unwrap_or_default();
        let found = code.to_ascii_lowercase().find(key);
        if let Some((before, rest)) = found.and_then(|at| code.split_at_checked(at + key.len())) {
            let digits = rest.trim_start().strip_prefix('=')?.trim_start();
            let start = line_start + before.len() + rest.len() - digits.len();
            let count = digits.bytes().take_while(u8::is_ascii_digit).count();
            return (count > 0).then_some((start, start + count));
        }
        line_start += line.len();
    }
    None
}

/// The value of `key` in `value` or in an object inside it.
fn find<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    let object = value.as_object()?;
    object
        .get(key)
        .or_else(|| object.values().find_map(|inner| find(inner, key)))
}

/// The last line that is a JSON object.
fn last_object(text: &str) -> Option<Value> {
    text.lines()
        .rev()
        .find_map(|line| match serde_json::from_str(line) {
            Ok(value @ Value::Object(_)) => Some(value),
            _ => None,
        })
}

/// One line that overwrites itself, on a terminal only.
fn progress(row: &Row, steps: u32) {
    let mut stderr = std::io::stderr().lock();
    if stderr.is_terminal() {
        let end = if row.step >= u64::from(steps) {
            "\n"
        } else {
            ""
        };
        let _ = write!(
            stderr,
            "\r    step {} of {steps}: generation {}{end}",
            row.step, row.generation
        );
    }
}

/// The running analytics process.
#[derive(Debug)]
pub(crate) struct Reader {
    child: Child,
    rows: Receiver<Row>,
    line: String,
}

impl Reader {
    /// Waits until the reader has seen the end of the program.
    pub(crate) fn finish(mut self) -> anyhow::Result<Vec<Row>> {
        let mut rows = Vec::new();
        loop {
            match self.rows.recv_timeout(READER_PATIENCE) {
                Ok(row) => rows.push(row),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    self.child.kill().context("end the reader")?;
                    self.child.wait().context("wait for the reader")?;
                    let why = format!("no end {READER_PATIENCE:?} after the program's");
                    return Err(Failure::error(
                        "demo: the reader hangs",
                        why,
                        self.line.clone(),
                    ));
                }
            }
        }
        let status = self.child.wait().context("wait for the reader")?;
        // A torn snapshot ends the reader with an error too; the verdict on it
        // belongs to the whole run.
        if status.success() || rows.iter().any(|row| row.whole == Some(false)) {
            return Ok(rows);
        }
        Err(Failure::error(
            "demo: the reader failed",
            status.to_string(),
            self.line.clone(),
        ))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // After `finish` both fail, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_fact_is_found_at_any_depth() {
        let report = json!({"name": "demo", "machine": {"kernel_mode": "ring3"}});
        assert_eq!(find(&report, "kernel_mode"), Some(&json!("ring3")));
        assert_eq!(find(&report, "platform"), None);
    }

    #[test]
    fn the_number_of_steps_is_replaced_and_nothing_else() {
        let deck = "! nsteps=7\n&invar\n tf=2.0 NSTEPS = 10 nx=8 ! ten\n/\n";
        let want = "! nsteps=7\n&invar\n tf=2.0 NSTEPS = 345 nx=8 ! ten\n/\n";
        assert_eq!(with_steps(deck, 345).as_deref(), Some(want));
        assert_eq!(with_steps("&invar nsteps=\n/\n", 3), None);
        assert_eq!(with_steps("&invar\n/\n", 3), None);
    }

    #[test]
    fn the_summary_is_the_last_object_among_other_lines() {
        let text = "starting\n{\"steps\": 1}\n{\"steps\": 2}\n[1]\ndone\n";
        assert_eq!(last_object(text), Some(json!({"steps": 2})));
        assert_eq!(last_object("done"), None);
    }
}
