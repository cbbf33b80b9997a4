//! `xemem ls` and `snap ls` against a real broker that has both kinds of
//! segments: an arena and plain ones.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use xemem_host::broker::Retention;
use xemem_host::server::{Options, Server};
use xemem_host::{ArenaRequest, Broker, Hugetlb, SegmentRequest, Target};

/// A broker in a run directory of its own; both go at the end of the test.
struct Serving {
    run_dir: PathBuf,
    server: Option<JoinHandle<()>>,
}

impl Serving {
    fn new() -> Self {
        let name = format!("enclavectl-segments-{}", std::process::id());
        let run_dir = std::env::temp_dir().join(name);
        fs::create_dir(&run_dir).unwrap();
        let options = Options {
            linger: Duration::from_secs(3600),
            rings_per_second: 1000,
            retention: Retention::NONE,
            owner_uid: None,
        };
        let server = Server::start(&run_dir.join("xemem.sock"), options);
        let server = server.unwrap().expect("the only one");
        Self {
            run_dir,
            server: Some(std::thread::spawn(move || server.run().unwrap())),
        }
    }

    fn connect(&self) -> Broker {
        Broker::connect(&self.run_dir.join("xemem.sock")).unwrap()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.connect().shutdown(true).unwrap();
        if let Some(server) = self.server.take() {
            server.join().unwrap();
        }
        drop(fs::remove_dir_all(&self.run_dir));
    }
}

fn ctl(run_dir: &Path, args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_enclavectl"))
        .args(args)
        .env("ENCLAVE_RUNDIR", run_dir)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn names(document: &str, key: &str) -> Vec<(String, Value)> {
    let document: Value = serde_json::from_str(document).unwrap();
    let rows = document[key].as_array().unwrap().iter();
    rows.map(|row| {
        (
            row["name"].as_str().unwrap().to_owned(),
            row["kind"].clone(),
        )
    })
    .collect()
}

#[test]
fn segments_of_both_kinds_are_listed_and_snapshots_are_arenas_only() {
    let serving = Serving::new();
    let mut broker = serving.connect();
    broker.register_enclave("a1").unwrap();
    let arena = ArenaRequest {
        slot: 0,
        name: "flux".to_owned(),
        size_bytes: 4096,
        chunk_bytes: 4096,
        nr_banks: 2,
        hugetlb: Hugetlb::No,
        reader_gid: None,
        retain: 1,
    };
    let arena = broker.arena_make(&arena).unwrap();
    broker.arena_mapped(arena.segid).unwrap();
    let mut linux = serving.connect();
    linux.for_enclave("a2").unwrap();
    let request = SegmentRequest {
        name: "grid".to_owned(),
        size_bytes: 8192,
        mode: 0o640,
        gid: Some(4242),
        signallable: true,
        ..SegmentRequest::default()
    };
    let segment = linux.make_segment(&request).unwrap();
    broker.signal(Target::Segment(segment.segid)).unwrap();

    let run_dir = &serving.run_dir;
    let all = [("flux", "arena"), ("grid", "plain")];
    let all = all.map(|(name, kind)| (name.to_owned(), json!(kind)));
    let listed = ctl(run_dir, &["xemem", "ls", "--json"]);
    assert_eq!(names(&listed, "segments"), all);
    let row = &serde_json::from_str::<Value>(&listed).unwrap()["segments"][1];
    assert_eq!((&row["mode"], &row["gid"]), (&json!("0640"), &json!(4242)));
    assert_eq!(
        (&row["signals"], &row["size_bytes"]),
        (&json!(1), &json!(8192))
    );
    assert_eq!(
        (&row["state"], &row["enclave"]),
        (&json!("live"), &json!("a2"))
    );
    let snapshots = ctl(run_dir, &["snap", "ls", "--json"]);
    let snapshots = names(&snapshots, "arenas");
    assert_eq!(snapshots.len(), 1, "{snapshots:?}");
    assert_eq!(snapshots[0].0, "flux");

    let table = ctl(run_dir, &["xemem", "ls"]);
    let lines: Vec<Vec<&str>> = table
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert_eq!(
        lines[2][1..7],
        ["grid", "plain", "a2", "live", "8K", "0640"]
    );
    assert!(
        lines.iter().all(|line| line.len() == lines[0].len()),
        "{table}"
    );
}
