//! `snap ls NAME`, `snap diff`, `snap retain` and `snap rm`: the generations of
//! one arena, and its end.

use std::time::Duration;

use clap::Args;
use enclave_vmm::failure::{Class, Failure};
use rustix::io::Errno;
use serde_json::{Value, json};
use xemem_host::wire::Role;
use xemem_host::{
    Broker, ClientError, Diff, DiffSource, Generation, Policy, SegId, SegmentState, Stream,
};

use super::{broker, xemem};
use crate::output::{self, Format};

/// Show what changed between two generations.
#[derive(Debug, Args)]
pub(crate) struct DiffOf {
    /// Arena.
    name: String,
    /// A generation.
    a: u64,
    /// Another one.
    b: u64,
}

/// Keep the newest generations although nobody reads them.
#[derive(Debug, Args)]
pub(crate) struct Retain {
    /// Arena.
    name: String,
    /// How many, at most one less than it has banks.
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
}

/// Give up what is kept of arenas that have ended.
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Arena; NAME@SEGID for an earlier one of that name.
    #[arg(required_unless_present = "all")]
    name: Option<String>,
    /// All that are retained.
    #[arg(long, conflicts_with_all = ["name", "force"])]
    all: bool,
    /// Even one that is live: take it away from its readers.
    #[arg(long)]
    force: bool,
}

impl Remove {
    pub(crate) fn run(&self, format: Format) -> Result<(), Failure> {
        let removed = match &self.name {
            Some(name) => vec![self.remove(name)?],
            None => remove_all()?,
        };
        let segids: Vec<u64> = removed.iter().map(|segid| segid.0).collect();
        match format {
            Format::Json => output::json("removed", &segids),
            Format::Text => Ok(()),
        }
    }

    fn remove(&self, name: &str) -> Result<SegId, Failure> {
        let what = format!("remove {name}");
        let failed = |error: ClientError| broker::failure(&what, &error);
        let mut broker = broker::connect(&what)?;
        let segid = broker.lookup(name, None).map_err(failed)?;
        let info = broker.info(segid).map_err(failed)?;
        if info.state == SegmentState::Live && !self.force {
            let why = "it is live: its program still publishes";
            let hint = format!("enclavectl snap rm --force {name}");
            return Err(Failure::new(Class::Busy, what, why).with_hint(hint));
        }
        broker.remove(segid).map_err(failed)?;
        Ok(segid)
    }
}

/// Gives up all retained arenas that this user may; one that goes by itself
/// meanwhile is no error.
fn remove_all() -> Result<Vec<SegId>, Failure> {
    let what = "remove what is retained";
    let mut removed = Vec::new();
    let segments = xemem::segments(what)?;
    let retained = segments
        .iter()
        .filter(|s| s.state == SegmentState::Retained);
    for segment in retained {
        match broker::connect(what)?.remove(segment.segid) {
            Ok(()) => removed.push(segment.segid),
            Err(error) if matches!(error.refusal(), Some(Errno::NOENT | Errno::IDRM)) => {}
            Err(error) => return Err(broker::failure(what, &error)),
        }
    }
    Ok(removed)
}

/// Lists the generations of `name` that can be read now.
pub(crate) fn generations(name: &str, format: Format) -> Result<(), Failure> {
    let what = format!("list the generations of {name}");
    let failed = |error: ClientError| broker::failure(&what, &error);
    let socket = broker::socket()?;
    let mut broker = Broker::connect_as(&socket, Role::Consumer).map_err(failed)?;
    let segid = broker.lookup(name, None).map_err(failed)?;
    let all = broker.generations(segid).map_err(failed)?;
    if format == Format::Json {
        let all: Vec<Value> = all.iter().map(generation_json).collect();
        return output::json("generations", &all);
    }
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|one| {
            vec![
                one.generation.to_string(),
                one.record.step.to_string(),
                f64::from_bits(one.record.time_bits).to_string(),
                one.record.chunks_copied.to_string(),
                if one.is_leased { "leased" } else { "kept" }.to_owned(),
            ]
        })
        .collect();
    output::table(&["GENERATION", "STEP", "TIME", "COPIED", "HELD"], &rows)
}

fn generation_json(one: &Generation) -> Value {
    json!({
        "generation": one.generation,
        "step": one.record.step,
        "time": f64::from_bits(one.record.time_bits),
        "chunks_copied": one.record.chunks_copied,
        "unix_ns": one.record.unix_ns,
        "leased": one.is_leased,
    })
}

impl DiffOf {
    pub(crate) fn run(&self, format: Format) -> Result<(), Failure> {
        let what = format!(
            "compare generations {} and {} of {}",
            self.a, self.b, self.name
        );
        let diff = self.diff().map_err(|error| {
            let hint = format!("enclavectl snap ls {}", self.name);
            broker::failure(&what, &error).with_hint(hint)
        })?;
        if format == Format::Json {
            return output::json("diff", &diff_json(&self.name, &diff));
        }
        let rows: Vec<Vec<String>> = diff
            .ranges
            .iter()
            .map(|range| vec![range.offset.to_string(), range.len.to_string()])
            .collect();
        output::table(&["OFFSET", "BYTES"], &rows)
    }

    /// With the later generation leased the answer is sure; without, it may
    /// not be known any more.
    fn diff(&self) -> Result<Diff, ClientError> {
        let socket = broker::socket().map_err(|_| ClientError::BrokerGone)?;
        let mut stream = Stream::attach(&socket, &self.name, Policy::Latest, Duration::ZERO)?;
        let (from, to) = (self.a.min(self.b), self.a.max(self.b));
        match stream.at(to) {
            Ok(snapshot) => return Ok(snapshot.diff(from)?),
            Err(error) if error.refusal() == Some(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        stream.diff(from, to)
    }
}

fn diff_json(name: &str, diff: &Diff) -> Value {
    let ranges = diff.ranges.iter();
    let ranges: Vec<Value> = ranges
        .map(|range| json!({ "offset": range.offset, "bytes": range.len }))
        .collect();
    json!({
        "name": name,
        "from": diff.from,
        "to": diff.to,
        "source": match diff.source {
            DiffSource::ChangeLog => "change log",
            DiffSource::Births => "births",
        },
        "changed_bytes": diff.bytes(),
        "ranges": ranges,
    })
}

impl Retain {
    pub(crate) fn run(&self, format: Format) -> Result<(), Failure> {
        let what = format!("retain {} generations of {}", self.count, self.name);
        let failed = |error: ClientError| broker::failure(&what, &error);
        let mut broker = broker::connect(&what)?;
        let segid = broker.lookup(&self.name, None).map_err(failed)?;
        broker.retain(segid, self.count).map_err(failed)?;
        match format {
            Format::Json => output::json(
                "arena",
                &json!({ "name": self.name, "segid": segid.0, "retain": self.count }),
            ),
            Format::Text => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xemem_host::ByteRange;

    #[test]
    fn a_diff_in_json_says_where_and_how_much() {
        let ranges = vec![
            ByteRange {
                offset: 0,
                len: 8192,
            },
            ByteRange {
                offset: 16384,
                len: 4096,
            },
        ];
        let diff = Diff {
            from: 3,
            to: 5,
            ranges,
            source: DiffSource::Births,
        };
        let json = diff_json("flux", &diff);
        assert_eq!(json["changed_bytes"], 12288);
        assert_eq!(json["ranges"][1]["offset"], 16384);
        assert_eq!(json["source"], "births");
    }
}
