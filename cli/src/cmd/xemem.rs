//! `xemem ls`: every segment the broker knows, arenas and plain ones.

use clap::Subcommand;
use enclave_vmm::failure::{Class, Failure};
use serde_json::{Value, json};
use xemem_host::wire::NO_GROUP;
use xemem_host::{SegmentInfo, SegmentKind, SegmentState};

use super::broker;
use crate::output::{self, Format};

/// List what processes and enclaves share.
#[derive(Debug, Subcommand)]
pub(crate) enum Xemem {
    /// List the segments: arenas, and plain ones of Linux processes.
    Ls,
}

impl Xemem {
    pub(crate) fn run(&self, format: Format) -> Result<(), Failure> {
        match self {
            Self::Ls => list(format),
        }
    }
}

/// All segments; none if there is no broker.
pub(crate) fn segments(what: &str) -> Result<Vec<SegmentInfo>, Failure> {
    match broker::connect(what) {
        Ok(mut broker) => broker.list().map_err(|e| broker::failure(what, &e)),
        Err(failure) if failure.class == Class::NotFound => Ok(Vec::new()),
        Err(failure) => Err(failure),
    }
}

pub(super) fn state(segment: &SegmentInfo) -> &'static str {
    match segment.state {
        SegmentState::Making => "making",
        SegmentState::Live => "live",
        SegmentState::Ended => "ended",
        SegmentState::Retained => "retained",
    }
}

fn list(format: Format) -> Result<(), Failure> {
    let segments = segments("list segments")?;
    if format == Format::Json {
        let segments: Vec<Value> = segments.iter().map(segment_json).collect();
        return output::json("segments", &segments);
    }
    let rows: Vec<Vec<String>> = segments.iter().map(row).collect();
    let heading = [
        "SEGID",
        "NAME",
        "KIND",
        "ENCLAVE",
        "STATE",
        "SIZE",
        "MODE",
        "UID",
        "ATTACHED",
        "SIGNALS",
        "THROTTLED",
        "AGE",
    ];
    output::table(&heading, &rows)
}

fn row(segment: &SegmentInfo) -> Vec<String> {
    vec![
        segment.segid.0.to_string(),
        dash(output::printable(&segment.name)),
        kind(segment).to_owned(),
        dash(output::printable(&segment.enclave)),
        state(segment).to_owned(),
        output::size(segment.size_bytes),
        format!("{:04o}", segment.mode),
        segment.owner_uid.to_string(),
        segment.readers.to_string(),
        segment.signals.to_string(),
        segment.throttled.to_string(),
        output::duration(segment.age_ms),
    ]
}

/// A cell that is not empty: columns are counted by scripts.
fn dash(cell: String) -> String {
    if cell.is_empty() {
        "-".to_owned()
    } else {
        cell
    }
}

fn kind(segment: &SegmentInfo) -> &'static str {
    match segment.kind {
        SegmentKind::Arena => "arena",
        SegmentKind::Plain => "plain",
    }
}

fn segment_json(segment: &SegmentInfo) -> Value {
    json!({
        "segid": segment.segid.0,
        "name": segment.name,
        "kind": kind(segment),
        "enclave": segment.enclave,
        "state": state(segment),
        "end_reason": segment.end_reason.map(|reason| reason.to_string()),
        "size_bytes": segment.size_bytes,
        "page_bytes": segment.page_bytes,
        "mode": format!("{:04o}", segment.mode),
        "owner_uid": segment.owner_uid,
        "gid": (segment.gid != NO_GROUP).then_some(segment.gid),
        "attached": segment.readers,
        "signals": segment.signals,
        "throttled": segment.throttled,
        "age_ms": segment.age_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use xemem_host::{EndReason, SegId};

    fn segment() -> SegmentInfo {
        SegmentInfo {
            segid: SegId(7),
            kind: SegmentKind::Plain,
            name: "a\x1bb".to_owned(),
            enclave: String::new(),
            state: SegmentState::Ended,
            end_reason: Some(EndReason::ExporterGone),
            size_bytes: 2 << 20,
            chunk_bytes: 0,
            nr_banks: 0,
            page_bytes: 4096,
            latest_generation: 0,
            dropped: 0,
            discarded: 0,
            waited: 0,
            policy: 0,
            placement: 0,
            high_water: None,
            signals: 9,
            throttled: 1,
            readers: 2,
            leases: 0,
            owner_uid: 1000,
            gid: NO_GROUP,
            mode: 0o640,
            age_ms: 61_000,
            retain: 0,
            retained_ms: 0,
        }
    }

    #[test]
    fn every_column_has_something_in_it() {
        let wanted = [
            "7", "a?b", "plain", "-", "ended", "2M", "0640", "1000", "2", "9", "1", "1m01s",
        ];
        assert_eq!(row(&segment()), wanted);
    }

    #[test]
    fn json_says_mode_in_octal_and_no_group_as_null() {
        let json = segment_json(&segment());
        assert_eq!(json["mode"], "0640");
        assert_eq!(json["gid"], Value::Null);
        assert_eq!(json["end_reason"], "exporter gone");
    }
}
