//! What neither a death nor a liar on the other side can do to a program in an
//! enclave that shares plain memory, and what such a program cannot do.

use rustix::io::Errno;

use crate::peers::{Peer, Stage, Where};
use crate::support::build;

const ENOENT: i32 = Errno::NOENT.raw_os_error();
const ECONNRESET: i32 = Errno::CONNRESET.raw_os_error();
const SOON: u64 = 60_000;

/// Makes segment `p` of 8 pages, 1 in the second one.
fn make(exporter: &mut Peer, mode: u32, signals: u32) {
    exporter.done(&format!("make p 32768 4096 {mode} {signals}"));
    exporter.done("store-own x 4096 1");
}

/// Attaches all of `p` and subscribes.
fn attach(importer: &mut Peer, access: u32) {
    importer.done(&format!("lookup p {SOON}"));
    importer.done(&format!("get x {access}"));
    assert_eq!(importer.number("attach x 0 0"), 32768);
    importer.done("subscribe x");
    assert_eq!(importer.number("load x 4096"), 1);
}

/// The memory is as it was, the end is told, the name is free.
fn outlives(importer: &mut Peer) {
    assert_eq!(importer.number(&format!("wait x {SOON}")), 0, "the end");
    assert_eq!(importer.number("load x 4096"), 1);
    importer.done("store x 8 5");
    assert_eq!(importer.number("load x 8"), 5);
    importer.refused("lookup p 0", ENOENT);
    importer.done("detach x");
    importer.done("release x");
}

#[test]
fn an_importer_in_an_enclave_outlives_a_killed_process_of_linux() {
    let stage = Stage::new("3", 0);
    let (mut exporter, mut importer) = (stage.peer(Where::Linux), stage.peer(Where::Enclave("b")));
    make(&mut exporter, 0o600, 1);
    attach(&mut importer, 1);
    exporter.kill();
    outlives(&mut importer);
    drop(importer);
    stage.still_runs("b");
}

#[test]
fn importers_outlive_a_destroyed_enclave() {
    let stage = Stage::new("3", 0);
    let mut exporter = stage.peer(Where::Enclave("a"));
    make(&mut exporter, 0o600, 1);
    let mut importers = [Where::Enclave("b"), Where::Linux].map(|at| stage.peer(at));
    for importer in &mut importers {
        attach(importer, 1);
    }
    let ended = stage.enclavectl(&["destroy", "a"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    for importer in &mut importers {
        outlives(importer);
    }
    exporter.has_ended();
    drop(importers);
    stage.still_runs("b");
}

#[test]
fn a_program_that_ends_leaves_nothing_and_takes_nothing() {
    let stage = Stage::new("3", 0);
    stage.still_runs("a");
    let before = stage.holdings("a");
    let mut program = stage.peer(Where::Enclave("a"));
    let mut other = stage.peer(Where::Linux);
    make(&mut program, 0o600, 1);
    attach(&mut program, 1);
    attach(&mut other, 1);
    assert_eq!(stage.fact("a", "imports"), 2);
    // It waits, for a signal that does not come.
    program.tell("wait-own x 4000000");
    program.kill_politely();
    outlives(&mut other);
    stage.still_runs("a");
    stage.eventually("nothing is left", || stage.holdings("a") == before);
}

#[test]
fn a_killed_broker_is_not_noticed() {
    let stage = Stage::new("3", 0);
    let mut exporter = stage.peer(Where::Enclave("a"));
    let mut importer = stage.peer(Where::Enclave("b"));
    make(&mut exporter, 0o600, 1);
    attach(&mut importer, 1);
    importer.tell(&format!("wait x {SOON}"));
    stage.kill_broker();
    exporter.done("signal-own x");
    assert_eq!(importer.answer("wait"), Ok(1));
    importer.done("detach x");
    assert_eq!(importer.number("attach x 4096 0"), 28672);
    importer.done("signal x");
    assert_eq!(exporter.number(&format!("wait-own x {SOON}")), 1);
    exporter.done("remove x");
    assert_eq!(importer.number(&format!("wait x {SOON}")), 0, "the end");
}

#[test]
fn the_end_of_all_brokers_costs_names_and_not_memory() {
    let stage = Stage::new("3", 0);
    let mut exporter = stage.peer(Where::Enclave("a"));
    let mut importer = stage.peer(Where::Enclave("b"));
    make(&mut exporter, 0o600, 1);
    attach(&mut importer, 1);
    importer.tell(&format!("wait x {SOON}"));
    stage.kill_broker_and_keeper();
    assert_eq!(importer.answer("wait"), Err(ECONNRESET));
    exporter.done("store-own x 16 9");
    assert_eq!(importer.number("load x 16"), 9);
    importer.done("store x 24 10");
    assert_eq!(exporter.number("load-own x 24"), 10);
    importer.done("detach x");
    exporter.done("free x");
    drop((exporter, importer));
}

fn cannot_harm(ring: &str) {
    let stage = Stage::new(ring, 0);
    let mut exporter = stage.peer(Where::Linux);
    make(&mut exporter, 0o400, 0);
    let compiler = ["gcc", "-O0", "-static", "-no-pie", "-Wall", "-Wextra"];
    let program = build("hostile/segment.c", "hostile-segment", &compiler);
    for (how, code) in [
        ("store", 139),
        ("vector", 139),
        ("execute", 139),
        ("beyond", 139),
        ("many", 0),
        ("nonsense", 0),
    ] {
        let ended = stage.run("b", &program, how);
        assert_eq!((ended.code, ended.stdout.as_str()), (code, ""), "{how}");
        stage.still_runs("b");
    }
    assert_eq!(exporter.number("load-own x 0"), 0);
    assert_eq!(exporter.number("load-own x 4096"), 1);
}

#[test]
fn hostile_programs_harm_nobody_in_ring_3_mode() {
    cannot_harm("3");
}

#[test]
fn hostile_programs_harm_nobody_in_ring_0_mode() {
    cannot_harm("0");
}
