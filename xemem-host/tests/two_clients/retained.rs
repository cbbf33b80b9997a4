//! Reading arenas whose exporter is gone, and what that costs memory.

use crate::broker_process::{BrokerProcess, SOON};
use crate::exporter::Exporter;
use crate::streams::check;
use rustix::io::Errno;
use std::time::Duration;
use xemem_host::{EndReason, Policy, SegmentState, Stream};

/// Memory objects that `process` holds.
fn memfds(process: &BrokerProcess) -> usize {
    let dir = format!("/proc/{}/fd", process.child.id());
    let entries = std::fs::read_dir(dir).expect("a process");
    let links = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let is_arena = |link: &std::path::PathBuf| link.to_string_lossy().contains("xemem-arena");
    links.filter(is_arena).count()
}

#[test]
fn the_last_generation_is_read_after_its_exporter_died() {
    let process = BrokerProcess::start();
    let mut exporter = Exporter::new(&process, "flux", 4);
    for _ in 0..7 {
        exporter.publish().expect("published");
    }
    // Half of the next step is written when it dies.
    exporter.write_chunks();
    drop(exporter);
    let mut tool = process.connect();
    while tool.list().expect("a list")[0].state != SegmentState::Retained {
        std::thread::yield_now();
    }
    for policy in [Policy::Latest, Policy::Every] {
        // Who gives time would be given a live one, should it come.
        let attached = Stream::attach(&process.socket(), "flux", policy, Duration::ZERO);
        let mut stream = attached.expect("retained");
        let snapshot = stream.next(Some(SOON)).expect("no error");
        let snapshot = snapshot.expect("the last one");
        assert_eq!(snapshot.generation(), 7);
        check(&snapshot);
        drop(snapshot);
        assert!(stream.next(Some(SOON)).expect("no error").is_none());
        assert_eq!(stream.end_reason(), Some(EndReason::ExporterGone));
    }
    let live = Stream::attach_live(&process.socket(), "flux", Policy::Latest, Duration::ZERO);
    let refused = live.expect_err("none is live").refusal();
    assert_eq!(refused, Some(Errno::NOENT));
    let segid = tool.lookup("flux", None).expect("retained");
    assert!(memfds(&process) > 0);
    tool.remove(segid).expect("given up");
    assert_eq!(memfds(&process), 0);
    assert!(tool.list().expect("a list").is_empty());
}

#[test]
fn retained_arenas_are_bounded_in_time_and_bytes() {
    // One object of this size has 3 MiB and a bit.
    let limits = ["--retain-ms", "300", "--retain-bytes", "20000000"];
    let process = BrokerProcess::with(&limits);
    let mut tool = process.connect();
    for run in 0..10 {
        let mut exporter = Exporter::new(&process, &format!("run{run}"), 2);
        exporter.publish().expect("published");
        let bytes = exporter.geometry.object_bytes;
        drop(exporter);
        let status = loop {
            let status = tool.status().expect("a status");
            if status.enclaves == 0 {
                break status;
            }
        };
        assert!(status.retained_bytes <= 20_000_000, "{status:?}");
        assert!(u64::from(status.retained) * bytes == status.retained_bytes);
    }
    while tool.status().expect("a status").segments > 0 {
        std::thread::yield_now();
    }
    assert_eq!(memfds(&process), 0);
}

#[test]
fn nothing_is_retained_where_that_is_switched_off() {
    let process = BrokerProcess::with(&["--retain-ms", "0"]);
    let mut exporter = Exporter::new(&process, "flux", 2);
    exporter.publish().expect("published");
    exporter.end();
    assert!(process.connect().list().expect("a list").is_empty());
    assert_eq!(memfds(&process), 0);
}
