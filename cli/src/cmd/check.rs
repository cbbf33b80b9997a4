//! `check`: whether a part file is right, and `init`: one to begin with.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use enclave_vmm::config::{ConfigError, check_name};
use enclave_vmm::failure::{Class, Failure};
use enclave_vmm::topology::Topology;
use serde_json::json;

use crate::output::{self, Format};
use crate::part_file::{PartFile, Problem, template};

/// Check a part file, without looking at the host.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The file.
    file: PathBuf,
}

/// Write a part file for this host, with comments.
#[derive(Debug, Args)]
pub(crate) struct Init {
    /// Name of the enclave in it.
    #[arg(default_value = "sim")]
    name: String,
    /// File to make (default: standard output).
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Check {
    pub(crate) fn run(&self, format: Format) -> Result<(), Failure> {
        let problems = match PartFile::load(&self.file)? {
            Ok(file) => file.missing().into_iter().collect(),
            Err(problems) => problems,
        };
        if format == Format::Json {
            let document = json!({
                "file": self.file.display().to_string(),
                "problems": problems,
            });
            output::json("check", &document)?;
        } else if problems.is_empty() {
            output::line(&format!("{}: ok", self.file.display()))?;
        }
        match problems.first() {
            None => Ok(()),
            Some(first) => {
                let hint = format!("${{EDITOR:-vi}} +{} {}", first.line, self.file.display());
                Err(failure("check", &self.file, &problems).with_hint(hint))
            }
        }
    }
}

/// The part file at `path`, which must be right.
pub(crate) fn part_file(path: &Path) -> Result<PartFile, Failure> {
    PartFile::load(path)?.map_err(|problems| {
        let hint = format!("enclavectl check {}", path.display());
        failure("use", path, &problems).with_hint(hint)
    })
}

fn failure(verb: &str, path: &Path, problems: &[Problem]) -> Failure {
    let what = format!("{verb} part file {}", path.display());
    let lines: Vec<String> = problems.iter().map(|problem| problem.at(path)).collect();
    Failure::new(Class::Usage, what, lines.join("\n"))
}

impl Init {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let what = "write a part file";
        check_name(&self.name).map_err(|e: ConfigError| e.into_failure(what))?;
        let host = Topology::read(Path::new("/"))
            .map_err(|error| Failure::new(Class::Failure, what, error))?;
        let text = template::text(&self.name, &host);
        let Some(path) = &self.output else {
            return output::bytes(text.as_bytes());
        };
        let file = OpenOptions::new().write(true).create_new(true).open(path);
        let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|error| {
            let class = match error.kind() {
                std::io::ErrorKind::AlreadyExists => Class::Busy,
                _ => Class::of_io(&error),
            };
            let why = format!("{}: {error}", path.display());
            Failure::new(class, what, why).with_hint("enclavectl init --output FILE")
        })
    }
}
