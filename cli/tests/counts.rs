//! The exact cost of the kernel's hot paths, in instructions that KVM
//! interprets, against the committed table `ci/counts.json`.
//!
//! Needs /dev/kvm on a host that interprets ring 0: on hardware there is nothing to count,
//! and the test says so. The guest program `xasm-counts` comes from
//! `cargo xtask image` (folder `$XASM_OUT`, else `out/`).

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[expect(dead_code, reason = "builds nothing and needs no busybox")]
mod support;

use std::path::{Path, PathBuf};

use serde_json::Value;

use support::{Ended, enclavectl, finish, require_programs, unique_dir};

/// One enclave in a run directory of its own.
struct Enclave {
    run_dir: PathBuf,
}

impl Enclave {
    fn new(ring: &str) -> Self {
        require_programs();
        let this = Self {
            run_dir: unique_dir("counts"),
        };
        let created = this.ctl(&[
            "create",
            "counts",
            "--cores",
            "1",
            "--share-cores",
            "--mem",
            "128M",
            "--no-prefault",
            "--backing",
            "small",
            "--ring",
            ring,
        ]);
        assert_eq!(created.code, 0, "{}", created.stderr);
        this
    }

    fn ctl(&self, arguments: &[&str]) -> Ended {
        finish(enclavectl(&self.run_dir).args(arguments), b"")
    }

    fn platform(&self) -> String {
        let shown = self.ctl(&["inspect", "counts", "--json"]);
        let value: Value = serde_json::from_str(&shown.stdout).unwrap();
        find(&value, "platform")
            .unwrap()
            .as_str()
            .unwrap()
            .to_owned()
    }

    fn counts(&self) -> Value {
        let program = program();
        let ended = self.ctl(&["run", "counts", "--", program.to_str().unwrap()]);
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        serde_json::from_str(&ended.stdout).unwrap()
    }
}

impl Drop for Enclave {
    fn drop(&mut self) {
        self.ctl(&["destroy", "--all"]);
        self.ctl(&["broker", "stop", "--force"]);
        let _ = std::fs::remove_dir_all(&self.run_dir);
    }
}

/// The first value under `key`, however deep.
fn find<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    match value {
        Value::Object(map) => map
            .get(key)
            .or_else(|| map.values().find_map(|v| find(v, key))),
        Value::Array(list) => list.iter().find_map(|v| find(v, key)),
        _ => None,
    }
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn program() -> PathBuf {
    let out = std::env::var_os("XASM_OUT").map_or_else(|| repository().join("out"), PathBuf::from);
    let program = out.join("xasm-counts");
    assert!(
        program.is_file(),
        "{} is missing; try: cargo xtask image",
        program.display()
    );
    program
}

fn table() -> Value {
    let text = std::fs::read_to_string(repository().join("ci/counts.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn number(value: &Value, key: &str) -> f64 {
    value[key]
        .as_f64()
        .unwrap_or_else(|| panic!("{key} is missing in {value}"))
}

/// Compares one mode with the table, then the table with its bounds.
fn compare(ring: &str) {
    let mode = format!("ring{ring}");
    let enclave = Enclave::new(ring);
    if enclave.platform() != "nested" {
        println!("not covered: this host does not interpret ring 0, so there is nothing to count");
        return;
    }
    let (table, counted) = (table(), enclave.counts());
    println!("emulated instructions per operation: {counted}");
    assert_eq!(counted["kernel_mode"], mode.as_str());
    for (name, expected) in table[&mode].as_object().unwrap() {
        assert_eq!(
            counted[name], *expected,
            "{mode} {name} changed; if that is meant, change ci/counts.json and say why"
        );
    }
    let bounds = &table["bounds"][&mode];
    assert!(number(&counted, "syscall") <= number(bounds, "syscall"));
    for (size, key) in [("4k", "cow_fault_4k"), ("2m", "cow_fault_2m")] {
        // Ring 3 copies natively, so there is nothing to take off.
        let copy = if mode == "ring0" {
            number(&table["copy"], size)
        } else {
            0.0
        };
        assert!(
            number(&counted, key) - copy <= number(bounds, "cow_fault"),
            "{key}"
        );
    }
    assert!(number(&counted, "publish_16m") <= number(bounds, "publish"));
}

#[test]
fn ring3_paths_cost_what_the_table_says_whatever_the_size() {
    compare("3");
    let table = table();
    let ring3 = &table["ring3"];
    assert_eq!(ring3["publish_16m"], ring3["publish_1g"]);
}

#[test]
fn ring0_paths_cost_what_the_table_says() {
    compare("0");
}
