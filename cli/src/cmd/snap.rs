//! `snap ls` and `snap read`: published snapshots from the command line.
//!
//! Reading leases a generation, writes it out, and checks afterwards that it
//! stayed whole; a file only gets its name once that is sure.

use std::io::{BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use enclave_abi::arena::{VarDesc, text};
use enclave_vmm::failure::{Class, Failure};
use serde_json::{Value, json};
use xemem_host::{Policy, SegmentInfo, SegmentKind, Snapshot, Stream, placement_name, policy_name};

use super::broker;
use super::pool::PoolOf;
use super::schema::Schema;
use super::store;
use super::xemem::{self, state};
use crate::figures::{Figures, figure};
use crate::npy;
use crate::output::{self, Format};
use crate::whole_file::WholeFile;

/// List, read and describe snapshots.
#[derive(Debug, Subcommand)]
pub(crate) enum Snap {
    /// List the arenas, or the generations of one that can be read now.
    Ls {
        /// Arena.
        name: Option<String>,
    },
    /// Read one snapshot.
    Read(Read),
    /// Show what changed between two generations, without reading them.
    Diff(store::DiffOf),
    /// Show where an arena's copies go and how many frames they took.
    Pool(PoolOf),
    /// Keep the newest generations of an arena although nobody reads them.
    Retain(store::Retain),
    /// Describe the variables of an arena.
    Schema(Schema),
    /// Give up what is kept of arenas that have ended.
    Rm(store::Remove),
}

/// Read one snapshot.
#[derive(Debug, Args)]
pub(crate) struct Read {
    /// Arena.
    name: String,
    /// Which: the newest, or the one of a time step.
    #[arg(long, value_name = "latest|N", default_value = "latest")]
    step: Step,
    /// Which, by its number in "snap ls NAME".
    #[arg(long, value_name = "G", conflicts_with = "step")]
    generation: Option<u64>,
    /// Only this variable.
    #[arg(long, value_name = "V")]
    var: Option<String>,
    /// summary: figures for people; raw: the bytes; npy: a NumPy file.
    #[arg(long, value_enum, default_value_t = Form::Summary)]
    format: Form,
    /// Write to a file instead of standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Seconds to wait for the arena and the snapshot; an arena that has ended
    /// is read after that time if no live one came.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    timeout: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Latest,
    Number(u64),
}

impl FromStr for Step {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "latest" => Ok(Self::Latest),
            number => number
                .parse()
                .map(Self::Number)
                .map_err(|_| "neither \"latest\" nor a number".to_owned()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    Summary,
    Raw,
    Npy,
}

impl Snap {
    pub(crate) fn run(&self, format: Format) -> Result<(), Failure> {
        match self {
            Self::Ls { name: None } => list(format),
            Self::Ls { name: Some(name) } => store::generations(name, format),
            Self::Read(read) => read.run(format),
            Self::Diff(diff) => diff.run(format),
            Self::Pool(pool) => pool.run(format),
            Self::Retain(retain) => retain.run(format),
            Self::Schema(schema) => schema.run(format),
            Self::Rm(remove) => remove.run(format),
        }
    }
}

fn list(format: Format) -> Result<(), Failure> {
    let what = "list snapshots";
    let mut arenas = xemem::segments(what)?;
    arenas.retain(|segment| segment.kind == SegmentKind::Arena);
    if format == Format::Json {
        let arenas: Vec<Value> = arenas.iter().map(arena_json).collect();
        return output::json("arenas", &arenas);
    }
    let rows: Vec<Vec<String>> = arenas
        .iter()
        .map(|arena| {
            vec![
                output::printable(&arena.name),
                output::printable(&arena.enclave),
                state(arena).to_owned(),
                arena.latest_generation.to_string(),
                output::size(arena.size_bytes),
                arena.readers.to_string(),
                arena.leases.to_string(),
                arena.dropped.to_string(),
                arena.discarded.to_string(),
                policy_name(arena.policy).to_owned(),
                placement_name(arena.placement).to_owned(),
                pool(arena),
                output::duration(arena.age_ms),
            ]
        })
        .collect();
    let heading = [
        "NAME",
        "ENCLAVE",
        "STATE",
        "GENERATION",
        "SIZE",
        "READERS",
        "LEASES",
        "DROPPED",
        "DISCARDED",
        "POLICY",
        "PLACEMENT",
        "POOL",
        "AGE",
    ];
    output::table(&heading, &rows)
}

/// Frames of the pool: all banks but the one that the arena starts in.
pub(crate) fn pool_frames(arena: &SegmentInfo) -> u64 {
    let chunks = arena.size_bytes.checked_div(arena.chunk_bytes).unwrap_or(0);
    chunks.saturating_mul(arena.nr_banks.saturating_sub(1).into())
}

/// Frames of the pool that were ever used, of how many.
fn pool(arena: &SegmentInfo) -> String {
    let used = arena
        .high_water
        .map_or_else(|| "?".to_owned(), |used| used.to_string());
    format!("{used}/{}", pool_frames(arena))
}

fn arena_json(arena: &SegmentInfo) -> Value {
    json!({
        "segid": arena.segid.0,
        "name": arena.name,
        "enclave": arena.enclave,
        "state": state(arena),
        "size_bytes": arena.size_bytes,
        "chunk_bytes": arena.chunk_bytes,
        "nr_banks": arena.nr_banks,
        "page_bytes": arena.page_bytes,
        "latest_generation": arena.latest_generation,
        "dropped": arena.dropped,
        "discarded": arena.discarded,
        "waited": arena.waited,
        "policy": policy_name(arena.policy),
        "placement": placement_name(arena.placement),
        "pool_frames": pool_frames(arena),
        "high_water": arena.high_water,
        "readers": arena.readers,
        "leases": arena.leases,
        "retain": arena.retain,
        "end_reason": arena.end_reason.map(|reason| reason.to_string()),
        "retained_ms": arena.retained_ms,
        "owner_uid": arena.owner_uid,
        "age_ms": arena.age_ms,
    })
}

impl Read {
    fn run(&self, format: Format) -> Result<(), Failure> {
        let what = format!("read snapshot {}", self.name);
        let binary = self.format != Form::Summary;
        if binary && format == Format::Json {
            let why = "--json goes with --format summary only";
            return Err(Failure::new(Class::Usage, what, why));
        }
        if binary && self.output.is_none() && std::io::stdout().is_terminal() {
            let why = "binary data does not go to a terminal";
            return Err(Failure::new(Class::Usage, what, why)
                .with_hint(format!("enclavectl snap read {} … -o FILE", self.name)));
        }
        let timeout = Duration::from_secs(self.timeout.into());
        let policy = match self.step {
            Step::Latest => Policy::Latest,
            Step::Number(_) => Policy::Every,
        };
        let mut stream = Stream::attach(&broker::socket()?, &self.name, policy, timeout)
            .map_err(|e| broker::failure(&what, &e))?;
        if let Some(generation) = self.generation {
            let snapshot = stream.at(generation).map_err(|error| {
                let hint = format!("enclavectl snap ls {}", self.name);
                broker::failure(&what, &error).with_hint(hint)
            })?;
            return self.write(&what, &snapshot, format);
        }
        loop {
            let next = stream.next(Some(timeout));
            let next = next.map_err(|e| broker::failure(&what, &e))?;
            let Some(snapshot) = next else {
                let why = "the arena has ended and has no such snapshot";
                return Err(
                    Failure::new(Class::NotFound, what, why).with_hint("enclavectl snap ls")
                );
            };
            match self.step {
                Step::Number(wanted) if snapshot.step() < wanted => {}
                Step::Number(wanted) if snapshot.step() > wanted => {
                    let why = format!(
                        "step {wanted} is gone; {} is the oldest kept",
                        snapshot.step()
                    );
                    return Err(Failure::new(Class::NotFound, what, why)
                        .with_hint(format!("enclavectl snap read {} --step latest", self.name)));
                }
                _ => return self.write(&what, &snapshot, format),
            }
        }
    }

    fn write(&self, what: &str, snapshot: &Snapshot<'_>, format: Format) -> Result<(), Failure> {
        match &self.output {
            Some(path) => {
                let mut file = WholeFile::create(path)?;
                self.write_to(what, snapshot, format, BufWriter::new(&mut file))?;
                still_valid(what, snapshot)?;
                file.finish()
            }
            None => {
                let out = BufWriter::new(std::io::stdout().lock());
                self.write_to(what, snapshot, format, out)?;
                still_valid(what, snapshot)
            }
        }
    }

    fn write_to(
        &self,
        what: &str,
        snapshot: &Snapshot<'_>,
        format: Format,
        mut out: impl Write,
    ) -> Result<(), Failure> {
        let wrote = match self.format {
            Form::Summary => {
                let text = self.summary(snapshot, format)?;
                out.write_all(text.as_bytes())
            }
            Form::Raw => match &self.var {
                Some(name) => out.write_all(self.view(what, snapshot, name)?.bytes),
                None => out.write_all(snapshot.as_slice()),
            },
            Form::Npy => {
                let name = self.single_variable(what, snapshot)?;
                let view = self.view(what, snapshot, &name)?;
                let layout = npy::layout(&view.desc).map_err(|error| {
                    let why = format!("variable {name}: {error}");
                    Failure::new(Class::Failure, what, why)
                        .with_hint(format!("enclavectl snap read {} --format raw", self.name))
                })?;
                out.write_all(&npy::header(&layout)).and_then(|()| {
                    npy::elements(&layout, &view.desc, view.bytes, |piece| {
                        out.write_all(piece)
                    })
                })
            }
        };
        match wrote.and_then(|()| out.flush()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(Failure::io(what, error))
            }
            _ => Ok(()),
        }
    }

    fn view<'a>(
        &self,
        what: &str,
        snapshot: &'a Snapshot<'_>,
        name: &str,
    ) -> Result<xemem_host::VarView<'a>, Failure> {
        snapshot.var(name).map_err(|error| {
            broker::failure(what, &error.into())
                .with_hint(format!("enclavectl snap read {}", self.name))
        })
    }

    /// The variable meant: the one named, or the only one.
    fn single_variable(&self, what: &str, snapshot: &Snapshot<'_>) -> Result<String, Failure> {
        if let Some(name) = &self.var {
            return Ok(name.clone());
        }
        let names: Vec<String> = snapshot
            .variables()
            .iter()
            .filter_map(|var| var.name().map(str::to_owned))
            .collect();
        if let [only] = names.as_slice() {
            return Ok(only.clone());
        }
        let shown: Vec<String> = names.iter().map(|name| output::printable(name)).collect();
        let why = format!("it has {} variables: {}", names.len(), shown.join(", "));
        Err(Failure::new(Class::Usage, what, why).with_hint("--var V"))
    }

    fn summary(&self, snapshot: &Snapshot<'_>, format: Format) -> Result<String, Failure> {
        let mut variables = snapshot.variables();
        if let Some(wanted) = &self.var {
            let what = format!("read snapshot {}", self.name);
            variables = vec![self.view(&what, snapshot, wanted)?.desc];
        }
        let rows: Vec<Value> = variables
            .iter()
            .filter_map(|var| variable_json(snapshot, var))
            .collect();
        let head = json!({
            "name": self.name,
            "generation": snapshot.generation(),
            "step": snapshot.step(),
            "time": snapshot.time(),
            "bytes": snapshot.bytes(),
            "chunks_copied": snapshot.chunks_copied(),
            "runs": snapshot.runs(),
            "valid": snapshot.valid(),
            "variables": rows,
        });
        if format == Format::Json {
            let document = json!({ "schema": output::SCHEMA, "snapshot": head });
            return Ok(format!("{document:#}\n"));
        }
        let mut text = format!(
            "{}: generation {}, step {}, time {}, {} in {} runs\n",
            self.name,
            snapshot.generation(),
            snapshot.step(),
            snapshot.time(),
            output::size(snapshot.bytes()),
            snapshot.runs()
        );
        for row in &rows {
            let number = |key: &str| row[key].as_f64().map_or("-".to_owned(), figure);
            text.push_str(&format!(
                "  {} {} {} min {} max {} mean {} {}\n",
                output::printable(row["name"].as_str().unwrap_or("?")),
                row["dtype"].as_str().unwrap_or("?"),
                row["shape"],
                number("min"),
                number("max"),
                number("mean"),
                output::printable(row["unit"].as_str().unwrap_or("")),
            ));
        }
        Ok(text)
    }
}

/// A reader must not keep what changed under it.
fn still_valid(what: &str, snapshot: &Snapshot<'_>) -> Result<(), Failure> {
    if snapshot.valid() {
        return Ok(());
    }
    let why = "it changed while it was read: the enclave did not keep it";
    Err(Failure::new(Class::Failure, what, why).with_hint("enclavectl snap ls"))
}

fn variable_json(snapshot: &Snapshot<'_>, var: &VarDesc) -> Option<Value> {
    let name = var.name()?;
    let view = snapshot.var(name).ok()?;
    let figures = Figures::of(var, view.bytes);
    let ndim = usize::try_from(var.ndim).ok()?.min(var.shape.len());
    Some(json!({
        "name": name,
        "dtype": npy::type_string(var).unwrap_or_else(|| "other".to_owned()),
        "lanes": var.dtype_lanes,
        "shape": var.shape.get(..ndim)?,
        "strides": var.strides.get(..ndim)?,
        "order": char::from(var.order).to_string(),
        "offset": var.offset,
        "nbytes": var.nbytes,
        "unit": text(&var.unit).unwrap_or(""),
        "axis_labels": text(&var.axis_labels).unwrap_or(""),
        "min": figures.as_ref().map(|f| f.min),
        "max": figures.as_ref().map(|f| f.max),
        "mean": figures.as_ref().map(Figures::mean),
        "nans": figures.as_ref().map(|f| f.nans),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_numbers_or_latest() {
        assert_eq!("latest".parse(), Ok(Step::Latest));
        assert_eq!("17".parse(), Ok(Step::Number(17)));
        assert!("-1".parse::<Step>().is_err());
        assert!("newest".parse::<Step>().is_err());
    }
}
