//! What the machine says about its steps, line by line of its console.
//!
//! `lib.sh` writes three forms: `STEP run NAME` before a step, then
//! `STEP ok NAME` or `STEP FAIL NAME: why`; and `STEP end` when all were run.
//! Everything else on the console is for whoever looks why.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::console::End;
use crate::failure::Failure;
use crate::tool;

/// Steps seen so far.
#[derive(Debug)]
pub(super) struct Steps {
    passed: u32,
    failed: Vec<String>,
    running: Option<String>,
    since: Instant,
    ended: bool,
}

impl Steps {
    /// Nothing seen yet.
    pub(super) fn new() -> Self {
        Self {
            passed: 0,
            failed: Vec::new(),
            running: None,
            since: Instant::now(),
            ended: false,
        }
    }

    /// Takes a line of the console; returns what to show of it.
    pub(super) fn take(&mut self, line: &str) -> Option<String> {
        let (word, name) = line.trim_end().strip_prefix("STEP ")?.split_once(' ')?;
        let name = name.trim();
        let took = self.since.elapsed();
        match word {
            "run" => {
                self.running = Some(name.to_owned());
                self.since = Instant::now();
                return None;
            }
            "end" => {
                self.ended = true;
                self.running = None;
                return None;
            }
            "ok" => self.passed += 1,
            "FAIL" => self.failed.push(name.to_owned()),
            _ => return None,
        }
        self.running = None;
        self.since = Instant::now();
        Some(shown(word, took, name))
    }

    /// Did the machine run everything it had, and did all of it pass?
    pub(super) fn all_passed(&self) -> bool {
        self.ended && self.failed.is_empty() && self.passed > 0
    }

    /// Says what went wrong with a machine that came to `end`: the last lines of
    /// its `console` first, then the step.
    pub(super) fn failure(&self, end: End, limit: Duration, console: &Path) -> anyhow::Error {
        for file in [console.with_extension("err"), console.to_owned()] {
            let text = fs::read(&file).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            eprintln!("{}", tool::last_lines(&text, 20));
        }
        let (what, why) = match (self.failed.first(), end) {
            (_, End::Hung) => (
                "hw-lane: the machine hangs".to_owned(),
                format!("no end within {limit:?}; it was {}", self.place()),
            ),
            (Some(first), _) => (
                format!("hw-lane: {} of its steps failed", self.failed.len()),
                first.clone(),
            ),
            (None, End::Exited(status)) => (
                "hw-lane: the machine stopped".to_owned(),
                format!("{}; the emulator: {status}", self.place()),
            ),
        };
        Failure::error(what, why, format!("less -R {}", console.display()))
    }

    /// Where the machine was when it stopped talking.
    fn place(&self) -> String {
        match (&self.running, self.ended) {
            (Some(name), _) => format!("in step \"{name}\""),
            (None, true) => "after the last step".to_owned(),
            (None, false) if self.passed == 0 => "before the first step".to_owned(),
            (None, false) => format!("after {} steps", self.passed),
        }
    }

    /// One line on the whole run.
    pub(super) fn summary(&self) -> String {
        format!("{} steps passed, {} failed", self.passed, self.failed.len())
    }
}

fn shown(word: &str, took: Duration, name: &str) -> String {
    format!("{word:<4} {:>5.1} s  {name}", took.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(console: &str) -> Steps {
        let mut steps = Steps::new();
        for line in console.lines() {
            steps.take(line);
        }
        steps
    }

    #[test]
    fn only_lines_that_begin_with_a_result_count() {
        let steps = read(
            "STEP ok   ring0 create\r\nSTEP FAIL ring3 create: x\r\n\
             a program says STEP ok yes\nSTEP maybe x\nSTEP end -\n",
        );
        assert_eq!(steps.passed, 1);
        assert_eq!(steps.failed, ["ring3 create: x"]);
        assert!(!steps.all_passed());
        assert_eq!(steps.summary(), "1 steps passed, 1 failed");
    }

    #[test]
    fn a_run_without_its_end_has_not_passed() {
        assert!(!read("STEP ok   a\n").all_passed());
        assert!(read("STEP ok   a\nSTEP end -\n").all_passed());
        assert!(!read("STEP end -\n").all_passed());
    }

    #[test]
    fn the_place_of_a_hang_is_known() {
        assert_eq!(read("").place(), "before the first step");
        let steps = read("STEP run  ring0 create\nSTEP ok   ring0 create\nSTEP run  ring0 boot\n");
        assert_eq!(steps.place(), "in step \"ring0 boot\"");
        assert_eq!(read("STEP ok   a\n").place(), "after 1 steps");
    }
}
