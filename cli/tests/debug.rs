//! Looking below the kernel of an enclave (`debug dump`): it tells what KVM and
//! guest memory really have, in every state, and costs the guest nothing but a
//! pause.
//!
//! Needs /dev/kvm, the kernel image and the other programs of this workspace
//! next to `enclavectl`.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::{BUSYBOX, Ended, build, enclavectl, finish, unique_dir, wait};

/// One enclave of its own.
struct Stage {
    home: PathBuf,
}

impl Stage {
    fn new(ring: &str) -> Self {
        support::require_programs();
        let stage = Self {
            home: unique_dir("debug"),
        };
        let create = ["create", "e1", "--mem", "64M", "--share-cores"];
        let created = stage.ctl(&[&create[..], &["--no-prefault", "--ring", ring]].concat());
        assert_eq!(created.code, 0, "{}", created.stderr);
        stage
    }

    fn run_dir(&self) -> PathBuf {
        self.home.join("run")
    }

    fn ctl(&self, args: &[&str]) -> Ended {
        finish(enclavectl(&self.run_dir()).args(args), b"")
    }

    fn start(&self, program: &Path, args: &[&str]) -> Child {
        enclavectl(&self.run_dir())
            .args(["run", "e1", "--"])
            .arg(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn dump(&self) -> Value {
        let ended = self.ctl(&["debug", "dump", "e1", "--json"]);
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        let value: Value = serde_json::from_str(&ended.stdout).unwrap();
        value["dump"].clone()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.ctl(&["destroy", "--all"]);
        self.ctl(&["broker", "stop", "--force"]);
        drop(fs::remove_dir_all(&self.home));
    }
}

fn steps() -> PathBuf {
    build("c/steps.c", "steps", &["gcc", "-O1", "-g", "-static"])
}

/// A register of the only vCPU.
fn register(dump: &Value, name: &str) -> u64 {
    let text = dump["vcpus"][0]["registers"][name].as_str().unwrap();
    u64::from_str_radix(text.strip_prefix("0x").unwrap(), 16).unwrap()
}

#[test]
fn a_computing_program_is_seen_where_it_is_and_computes_on() {
    for ring in ["0", "3"] {
        computes_on(ring);
    }
}

fn computes_on(ring: &str) {
    const COUNT: &str = "400000000";
    let stage = Stage::new(ring);
    let native = Command::new(steps()).arg(COUNT).output().unwrap();
    let mut program = stage.start(&steps(), &[COUNT]);
    let mut output = BufReader::new(program.stdout.take().unwrap());
    let mut text = String::new();
    output.read_line(&mut text).unwrap();
    let mut inside = 0;
    for _ in 0..20 {
        let dump = stage.dump();
        if dump["machine"]["state"] != "running" {
            break;
        }
        if dump["vcpus"][0]["place"] == "guest" {
            inside += 1;
            // In the program's own text, with its own stack.
            let rip = register(&dump, "rip");
            assert!((0x40_0000..0x60_0000).contains(&rip), "{rip:#x}");
            assert!(register(&dump, "rsp") > 0x7f_0000_0000);
            let exits = dump["vcpus"][0]["last_exits"].as_array().unwrap();
            assert_eq!(exits.last().unwrap()["reason"], "interrupted");
        }
    }
    assert!(inside > 0, "the program was never seen computing");
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text.as_bytes(), native.stdout);
    assert_eq!(wait(&mut program), 0);
}

#[test]
fn an_idle_enclave_shows_its_memory_and_an_empty_queue() {
    let stage = Stage::new("auto");
    assert_eq!(stage.ctl(&["run", "e1", "--", BUSYBOX, "true"]).code, 0);
    let dump = stage.dump();
    assert_eq!(dump["machine"]["state"], "idle");
    let slots = dump["slots"].as_array().unwrap();
    let of = |holds: &str| -> u64 {
        let slots = slots.iter().filter(|slot| slot["holds"] == holds);
        slots.map(|slot| slot["bytes"].as_u64().unwrap()).sum()
    };
    assert_eq!(of("ram"), 64 << 20);
    assert!(of("leases") > 0);
    assert_eq!(of("arena") + of("import"), 0);
    for ring in ["to_host", "to_guest"] {
        let [posted, taken] = [0, 1].map(|at| dump["queue"][ring][at].as_u64().unwrap());
        assert!(taken <= posted && posted > 0, "{dump}");
    }
    assert_ne!(register(&dump, "cr3"), 0);
    let text = stage.ctl(&["debug", "dump", "e1"]).stdout;
    for part in [
        "enclave e1: idle\n",
        "\nvcpu 0: ",
        " rip ",
        "\nSLOT  ADDRESS",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
}

#[test]
fn a_program_that_waits_on_the_host_goes_on_waiting() {
    let stage = Stage::new("auto");
    let mut program = stage.start(Path::new(BUSYBOX), &["cat"]);
    assert_eq!(stage.ctl(&["wait", "e1", "--for", "running"]).code, 0);
    for _ in 0..20 {
        let dump = stage.dump();
        assert_ne!(dump["vcpus"][0]["place"], "stuck", "{dump}");
        assert_eq!(dump["machine"]["state"], "running");
    }
    let mut stdin = program.stdin.take().unwrap();
    stdin.write_all(b"still here\n").unwrap();
    drop(stdin);
    let mut text = String::new();
    let mut stdout = program.stdout.take().unwrap();
    stdout.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), wait(&mut program)), ("still here\n", 0));
}

#[test]
fn a_failed_enclave_tells_what_it_stopped_at() {
    let stage = Stage::new("3");
    let scribble = build("hostile/scribble.c", "scribble", &["gcc", "-O1", "-static"]);
    let mut program = stage.start(&scribble, &["queue-index"]);
    assert_ne!(wait(&mut program), 0);
    let dump = stage.dump();
    assert_eq!(dump["machine"]["state"], "failed", "{dump}");
    assert_eq!(dump["vcpus"][0]["place"], "ended");
    let exits = dump["vcpus"][0]["last_exits"].as_array().unwrap();
    assert_eq!(exits.last().unwrap()["reason"], "queue-doorbell");
    let rip = register(&dump, "rip");
    assert!((0x40_0000..0x60_0000).contains(&rip), "{rip:#x}");
    assert_eq!(dump["slots"][0]["holds"], "ram");
    let text = stage.ctl(&["debug", "dump", "e1"]).stdout;
    assert!(text.contains("vcpu 0: stopped for good\n"), "{text}");
}

#[test]
fn an_enclave_that_is_not_there_is_not_found() {
    let stage = Stage::new("auto");
    let ended = stage.ctl(&["debug", "dump", "other"]);
    assert_eq!(ended.code, 3);
    assert!(ended.stderr.contains("enclavectl list"), "{}", ended.stderr);
}
