//! What the machine says about its steps, line by line of its console.
//!
//! `lib.sh` writes three forms: `STEP run NAME` before a step, then
//! `STEP ok NAME` or `STEP FAIL NAME: why`; and `STEP end` when all were run.
//! Everything else on the console is for whoever looks why.

use std::time::{Duration, Instant};

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

    /// The steps that failed, with the reason.
    pub(super) fn failed(&self) -> &[String] {
        &self.failed
    }

    /// Where the machine was when it stopped talking.
    pub(super) fn place(&self) -> String {
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
        assert_eq!(steps.failed(), ["ring3 create: x"]);
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
