//! The report: one line per test as they end, and the document of all of it.
//!
//! Everything goes through [`Scrub`] on its way out. In text form the parts
//! are written as they come, so that a self-test that is cut off leaves what
//! it knew; in JSON form it is one document at the end.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use enclave_vmm::failure::{Class, Failure};
use enclave_vmm::machine::MachineReport;
use serde::Serialize;
use serde_json::json;

use super::facts::Facts;
use super::scrub::Scrub;
use crate::cmd::doctor::{self, Check};
use crate::output::{self, Format, SCHEMA};
use crate::whole_file::WholeFile;

/// How one test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Verdict {
    Passed,
    Failed,
    /// This machine lacks what it is about.
    NotCovered,
    /// There was no time left.
    NotRun,
}

/// One test in one mode.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    /// "ring0", "ring3"; "auto" before that is known.
    pub(super) ring: String,
    /// The kernel's number; none for tests of the whole.
    pub(super) number: Option<u32>,
    pub(super) name: String,
    pub(super) verdict: Verdict,
    /// Why it failed, is not covered or was not run.
    pub(super) why: String,
    pub(super) milliseconds: u64,
    /// What the kernel's console said, of a failed test only.
    pub(super) console: String,
}

/// The document.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) facts: Facts,
    pub(super) checks: Vec<Check>,
    /// What a machine of each mode reports of itself.
    pub(super) machines: BTreeMap<String, MachineReport>,
    pub(super) tests: Vec<Row>,
}

impl Report {
    pub(super) fn count(&self, verdict: Verdict) -> usize {
        self.tests
            .iter()
            .filter(|row| row.verdict == verdict)
            .count()
    }

    fn summary(&self) -> String {
        let total: u64 = self.tests.iter().map(|row| row.milliseconds).sum();
        format!(
            "{} passed, {} failed, {} not covered, {} not run; {:.1} s",
            self.count(Verdict::Passed),
            self.count(Verdict::Failed),
            self.count(Verdict::NotCovered),
            self.count(Verdict::NotRun),
            seconds(total)
        )
    }

    /// What the exit code has to say.
    pub(super) fn verdict(&self) -> Result<(), Failure> {
        let what = "self-test of this machine";
        let hint = "enclavectl selftest --output report.txt, and file it with the bug";
        let of = |verdict| {
            let rows = self.tests.iter().filter(move |row| row.verdict == verdict);
            let names: Vec<String> = rows
                .map(|row| format!("{} {}", row.ring, title(row)))
                .collect();
            names.join("; ")
        };
        if self.count(Verdict::Failed) > 0 {
            let failed = self.count(Verdict::Failed);
            let why = format!(
                "{failed} of {} failed: {}",
                self.tests.len(),
                of(Verdict::Failed)
            );
            return Err(Failure::new(Class::Failure, what, why).with_hint(hint));
        }
        if self.count(Verdict::NotRun) > 0 {
            let why = format!("the time was up before: {}", of(Verdict::NotRun));
            return Err(Failure::new(Class::Timeout, what, why)
                .with_hint("enclavectl selftest --timeout 600"));
        }
        Ok(())
    }
}

impl Row {
    fn line(&self) -> String {
        let verdict = match self.verdict {
            Verdict::Passed => "ok",
            Verdict::Failed => "FAIL",
            Verdict::NotCovered => "not covered",
            Verdict::NotRun => "not run",
        };
        let time = seconds(self.milliseconds);
        // A failure may quote several lines of a console.
        let why: Vec<String> = self.why.lines().map(output::printable).collect();
        let why = if why.is_empty() {
            String::new()
        } else {
            format!(": {}", why.join(" | "))
        };
        let number = self
            .number
            .map_or_else(String::new, |number| number.to_string());
        format!(
            "{verdict:<11} {} {number:>3} {} ({time:.2} s){why}",
            self.ring, self.name
        )
    }
}

fn title(row: &Row) -> String {
    row.number.map_or_else(
        || row.name.clone(),
        |number| format!("{number} {}", row.name),
    )
}

#[expect(clippy::cast_precision_loss, reason = "shown with two digits")]
fn seconds(milliseconds: u64) -> f64 {
    milliseconds as f64 / 1000.0
}

/// Where the report goes.
#[derive(Debug)]
pub(super) struct Paper {
    format: Format,
    file: Option<WholeFile>,
    path: PathBuf,
    scrub: Scrub,
}

impl Paper {
    /// Opens `output`, if there is one, so that a self-test is not run for a
    /// report that cannot be written.
    pub(super) fn new(
        format: Format,
        output: Option<&Path>,
        scrub: Scrub,
    ) -> Result<Self, Failure> {
        let file = output.map(WholeFile::create).transpose()?;
        Ok(Self {
            format,
            file,
            path: output.unwrap_or(Path::new("")).to_owned(),
            scrub,
        })
    }

    /// What is known before the first test.
    pub(super) fn head(&mut self, report: &Report) -> Result<(), Failure> {
        self.report_line("enclavectl self-test report")?;
        for line in report.facts.lines() {
            self.report_line(&line)?;
        }
        self.report_line("")?;
        for line in report.checks.iter().flat_map(doctor::lines) {
            self.report_line(&line)?;
        }
        self.report_line("")
    }

    /// One test, at once on the terminal as well.
    pub(super) fn row(&mut self, row: &Row) -> Result<(), Failure> {
        self.both_line(&row.line())
    }

    /// What is known at the end; puts the file in its place.
    pub(super) fn finish(mut self, report: &Report) -> Result<(), Failure> {
        if self.format == Format::Json {
            self.document(report)?;
        } else {
            self.tail(report)?;
        }
        let Some(file) = self.file.take() else {
            return Ok(());
        };
        file.finish()?;
        match self.format {
            Format::Json => Ok(()),
            Format::Text => output::line(&format!("report: {}", self.path.display())),
        }
    }

    fn tail(&mut self, report: &Report) -> Result<(), Failure> {
        self.report_line("")?;
        for (ring, machine) in &report.machines {
            self.report_line(&format!(
                "{ring}: platform {}, flush by {}, {} KiB pages, features {}",
                machine.platform,
                machine.flush,
                machine.backing_page_bytes >> 10,
                machine.cpu_features.join(" ")
            ))?;
        }
        let failed = report
            .tests
            .iter()
            .filter(|row| row.verdict == Verdict::Failed);
        for row in failed {
            self.report_line(&format!("\nconsole of {} {}:", row.ring, title(row)))?;
            for line in row.console.lines() {
                self.report_line(&format!("  | {}", output::printable(line)))?;
            }
        }
        self.report_line("")?;
        self.both_line(&report.summary())
    }

    fn document(&mut self, report: &Report) -> Result<(), Failure> {
        let failed = |e| Failure::new(Class::Failure, "print JSON", e);
        let mut value = serde_json::to_value(report).map_err(failed)?;
        self.scrub.document(&mut value);
        value["summary"] = json!({
            "passed": report.count(Verdict::Passed),
            "failed": report.count(Verdict::Failed),
            "not_covered": report.count(Verdict::NotCovered),
            "not_run": report.count(Verdict::NotRun),
        });
        match self.file {
            None => output::json("selftest", &value),
            Some(_) => {
                let document = json!({ "schema": SCHEMA, "selftest": value });
                let text = serde_json::to_string_pretty(&document).map_err(failed)?;
                self.file_line(&text)
            }
        }
    }

    fn file_line(&mut self, text: &str) -> Result<(), Failure> {
        let written = self.file.as_mut().map(|file| writeln!(file, "{text}"));
        written
            .unwrap_or(Ok(()))
            .map_err(|e| Failure::io(format!("write {}", self.path.display()), e))
    }

    /// A line of the report alone.
    fn report_line(&mut self, text: &str) -> Result<(), Failure> {
        if self.format == Format::Json {
            return Ok(());
        }
        let text = self.scrub.text(text);
        match self.file {
            Some(_) => self.file_line(&text),
            None => output::line(&text),
        }
    }

    /// A line for whoever waits, too.
    fn both_line(&mut self, text: &str) -> Result<(), Failure> {
        self.report_line(text)?;
        if self.file.is_some() && self.format == Format::Text {
            return output::line(&self.scrub.text(text));
        }
        Ok(())
    }
}
