//! Programs that use up what there is: told so by an error, not killed, and
//! what they took is there for the next one.

use std::fs;

use crate::stage::{Stage, hostile, light};

#[track_caller]
fn told(stage: &Stage, args: &[&str]) {
    let ended = stage.run("t", &hostile("limits"), args);
    assert_eq!(ended.code, 0, "{args:?}: {}{}", ended.stdout, ended.stderr);
    stage.still_runs("t");
}

#[test]
fn memory_ends_with_an_error_and_comes_back() {
    let stage = Stage::new();
    for how in ["memory", "brk", "maps", "memory"] {
        told(&stage, &[how]);
    }
}

#[test]
fn two_thousand_open_files_are_bounded_and_closed() {
    let stage = Stage::empty();
    let file = stage.home.join("file");
    fs::write(&file, "x").unwrap();
    let export = format!("{}=/data", stage.home.display());
    stage.succeeds(&[&light(&["create", "t"])[..], &["--export", &export]].concat());
    told(&stage, &["files", "/data/file"]);
    told(&stage, &["files", "/data/file"]);
}

#[test]
fn deep_recursion_has_the_stack_it_was_given() {
    let stage = Stage::new();
    told(&stage, &["depth", "7000"]);
    let deep = stage.run("t", &hostile("limits"), &["depth", "9000"]);
    assert_eq!(deep.code, 128 + 11, "{}", deep.stderr);
    let limits = hostile("limits");
    let args = ["run", "t", "--stack", "32M", "--"];
    let args = [&args[..], &[limits.to_str().unwrap(), "depth", "20000"]].concat();
    assert_eq!(stage.succeeds(&args), "depth: 0\n");
}

#[test]
fn bad_pointers_are_an_error_of_every_call() {
    let stage = Stage::new();
    told(&stage, &["pointers"]);
}

#[test]
fn threads_are_bounded_and_what_they_ask_is_checked() {
    let stage = Stage::new();
    for how in ["limit", "calls", "robust", "word", "leave"] {
        let ended = stage.run("t", &hostile("threads"), &[how]);
        assert_eq!(ended.code, 0, "{how}: {}{}", ended.stdout, ended.stderr);
        stage.still_runs("t");
    }
    let ended = stage.run("t", &hostile("threads"), &["stack"]);
    assert_eq!(ended.code, 128 + 11, "{}{}", ended.stdout, ended.stderr);
    stage.still_runs("t");
}

/// Bytes of the host's memory.
fn host_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find(|line| line.starts_with("MemTotal:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() << 10
}

#[test]
fn an_arena_larger_than_the_host_is_an_error_and_no_harm() {
    const CHUNK: u64 = 2 << 20;
    let stage = Stage::new();
    // Four banks of it.
    let bytes = host_bytes() / CHUNK * CHUNK;
    told(&stage, &["arena", &bytes.to_string()]);
    assert_eq!(stage.row("t")["arenas"], 0);
    assert_eq!(stage.broker()["segments"], 0);
}
