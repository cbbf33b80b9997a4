//! Programs that attach arenas of other enclaves: what they see, and what
//! neither a death nor a liar on the other side can do to them.
//!
//! Exporter and importer are `xasm-bench` (from `cargo xtask image`; folder
//! `$XASM_OUT`, else `out/`), told what to do line by line, or the hostile
//! programs of `guests/programs`. Order is forced by what they answer. Needs
//! /dev/kvm.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[path = "support/enclaves.rs"]
mod enclaves;
mod support;

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::process::Signal;
use serde_json::Value;

use enclaves::{Enclaves, PATIENCE, eventually, made, repository};
use support::{BUSYBOX, build, finish};

/// Enclaves `a` and `b` on shared cores.
struct Pair(Enclaves);

impl Deref for Pair {
    type Target = Enclaves;

    fn deref(&self) -> &Enclaves {
        &self.0
    }
}

impl Pair {
    fn new(ring: &str) -> Self {
        Self(Enclaves::new(ring, &["a", "b"]))
    }

    /// Open descriptors and mappings of the enclave's VMM.
    fn holdings(&self, enclave: &str) -> (usize, usize) {
        let pid = self.fact(enclave, "pid");
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let arenas = maps.lines().filter(|line| line.contains("memfd:"));
        (fds, arenas.count())
    }

    fn listed(&self, key: &str) -> Value {
        let text = self.succeeds(&["snap", "ls", "--json"]);
        let value: Value = serde_json::from_str(&text).unwrap();
        value["arenas"][0][key].clone()
    }

    /// The enclave is as good as new.
    #[track_caller]
    fn still_runs(&self, enclave: &str) {
        let ended = self.ended(&["run", enclave, "--", BUSYBOX, "echo", "all is well"]);
        assert_eq!(
            (ended.code, ended.stdout.as_str()),
            (0, "all is well\n"),
            "{}",
            ended.stderr
        );
        assert_eq!(self.fact(enclave, "imports"), 0);
    }
}

/// A C example of the guest library.
fn example(name: &str, target: &Path) -> PathBuf {
    let library = repository().join("guests/libxasm");
    let program = target.join(name);
    let ended = finish(
        std::process::Command::new("cc")
            .args(["-static", "-O2", "-Wall", "-Wextra", "-Werror"])
            .arg(library.join("examples").join(name).with_extension("c"))
            .arg("-I")
            .arg(library.join("include"))
            .arg(made("libxasm.a"))
            .arg("-o")
            .arg(&program),
        b"",
    );
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    program
}

fn hostile(name: &str) -> PathBuf {
    let compiler = ["gcc", "-O0", "-static", "-no-pie", "-Wall", "-Wextra"];
    build(
        &format!("hostile/{name}.c"),
        &format!("hostile-{name}"),
        &compiler,
    )
}

/// `a` storms, `b` follows and checks each generation that it gets.
fn storm(ring: &str, policy: &str, chunk_bytes: u64) {
    const GENERATIONS: u64 = 300;
    let pair = Pair::new(ring);
    let (mut a, mut b) = (pair.bench("a"), pair.bench("b"));
    let bytes = 6 * chunk_bytes;
    let made = a.ask(&format!("make q {bytes} {chunk_bytes} 4 discard-newest 0"));
    assert!(made.starts_with("ok "), "{made}");
    let attached = b.ask(&format!("attach q {policy} {PATIENCE}"));
    assert_eq!(attached, format!("ok {bytes} {chunk_bytes}"));
    b.tell(&format!("follow q {GENERATIONS} {PATIENCE}"));
    a.tell(&format!("storm q {GENERATIONS} 2"));
    let [seen, missed, torn, mapped, last, end] = b.numbers().try_into().unwrap();
    println!("ring {ring}, {policy}: {seen} seen, {missed} missed, {mapped} chunks mapped");
    assert_eq!((torn, last, end), (0, GENERATIONS, 0));
    // What it saw first is where it began to count.
    assert!(seen > 1 && seen + missed <= GENERATIONS);
    assert!(mapped >= seen);
    assert_eq!(a.numbers().first(), Some(&GENERATIONS));
    assert_eq!(a.ask("end q"), "ok");
    b.tell(&format!("follow q {} {PATIENCE}", u64::MAX));
    assert_eq!(b.numbers().last(), Some(&1));
    assert_eq!(
        b.ask("look q").split(' ').skip(2).collect::<Vec<_>>(),
        ["1", "1"]
    );
}

#[test]
fn no_generation_is_torn_in_ring_3_mode() {
    storm("3", "latest", 4096);
    storm("3", "every", 2 << 20);
}

#[test]
fn no_generation_is_torn_in_ring_0_mode() {
    storm("0", "latest", 4096);
    storm("0", "every", 4096);
}

#[test]
fn a_next_that_finds_nothing_gives_the_bank_back_and_is_not_in_time() {
    let pair = Pair::new("3");
    let (mut a, mut b) = (pair.bench("a"), pair.bench("b"));
    // Two banks: while `b` holds one `a` cannot publish.
    assert_eq!(a.ask("make q 8192 4096 2 discard-newest 0"), "ok 4096");
    assert_eq!(b.ask("attach q latest 0"), "ok 8192 4096");
    let early = b.ask("next q 20");
    assert!(early.contains("ETIMEDOUT"), "{early}");
    assert_eq!(a.ask("step q"), "ok 1");
    // Generation, step, chunks mapped, first word.
    assert_eq!(b.ask("next q 0"), "ok 1 1 1 2 1");
    let refused = a.ask("step q");
    assert!(refused.contains("EAGAIN"), "{refused}");
    b.tell(&format!("next q {PATIENCE}"));
    let mut tried = 2;
    while a.ask("step q").contains("EAGAIN") {
        tried += 1;
        thread::yield_now();
    }
    assert_eq!(b.answer(), format!("ok 1 2 {0} 1 {0}", tried + 1));
    assert_eq!(b.ask("detach q"), "ok");
    assert_eq!(a.ask("step q"), "ok 3");
}

#[test]
fn a_program_attaches_what_it_publishes_itself() {
    let pair = Pair::new("3");
    let mut a = pair.bench("a");
    assert_eq!(a.ask("make q 8192 4096 3 discard-newest 0"), "ok 4096");
    assert_eq!(a.ask("attach q every 0"), "ok 8192 4096");
    for step in 1..=5 {
        assert_eq!(a.ask("step q"), format!("ok {step}"));
        let mapped = if step == 1 { 2 } else { 1 };
        let shown = format!("ok 1 {step} {step} {mapped} {step}");
        assert_eq!(a.ask("next q 1000"), shown);
    }
    assert_eq!(a.ask("end q"), "ok");
    assert_eq!(a.ask("next q 1000"), "ok 0 1");
}

#[test]
fn an_importer_that_is_killed_leaves_nothing() {
    let pair = Pair::new("3");
    pair.still_runs("b");
    let before = pair.holdings("b");
    let (mut a, mut b) = (pair.bench("a"), pair.bench("b"));
    assert_eq!(a.ask("make q 8192 4096 2 discard-newest 0"), "ok 4096");
    assert_eq!(a.ask("step q"), "ok 1");
    assert_eq!(b.ask("attach q latest 0"), "ok 8192 4096");
    assert_eq!(b.ask("next q 0"), "ok 1 1 1 2 1");
    assert_eq!(pair.fact("b", "imports"), 1);
    assert_eq!(pair.listed("readers"), 1);
    // It waits, for a generation that does not come.
    b.tell("next q 4000000");
    b.signal(Signal::TERM);
    assert_eq!(b.code(), 143);
    pair.still_runs("b");
    // The client's connection goes by itself.
    eventually("nothing is left", || pair.holdings("b") == before);
    eventually("no reader", || pair.listed("readers") == 0);
    assert_eq!(a.ask("step q"), "ok 2");
}

#[test]
fn a_program_that_waits_for_a_name_can_be_killed() {
    let pair = Pair::new("3");
    let mut b = pair.bench("b");
    b.tell("attach nobody every 4000000");
    b.signal(Signal::TERM);
    assert_eq!(b.code(), 143);
    pair.still_runs("b");
}

#[test]
fn the_last_generation_stays_when_its_enclave_is_destroyed() {
    let pair = Pair::new("3");
    let (mut a, mut b) = (pair.bench("a"), pair.bench("b"));
    assert_eq!(a.ask("make q 65536 4096 4 discard-newest 0"), "ok 4096");
    assert_eq!(b.ask("attach q latest 0"), "ok 65536 4096");
    b.tell(&format!("follow q {} {PATIENCE}", u64::MAX));
    a.tell("storm q 100000000 2");
    eventually("twenty generations", || {
        pair.listed("latest_generation").as_u64() >= Some(20)
    });
    pair.succeeds(&["destroy", "a"]);
    let [seen, _, torn, _, last, end] = b.numbers().try_into().unwrap();
    assert!(seen > 0 && last > 0);
    assert_eq!((torn, end), (0, 3));
    let look: Vec<String> = b.ask("look q").split(' ').map(str::to_owned).collect();
    assert_eq!(look[2..], ["1", "1"]);
    assert_eq!(b.ask("next q 10"), "ok 0 3");
    drop(b);
    pair.still_runs("b");
}

#[test]
fn a_hundred_rounds_of_attach_and_detach_leave_nothing() {
    let pair = Pair::new("3");
    let (mut a, mut b) = (pair.bench("a"), pair.bench("b"));
    assert_eq!(
        a.ask("make q 4194304 2097152 2 discard-newest 0"),
        "ok 4096"
    );
    assert_eq!(a.ask("step q"), "ok 1");
    // The connection to the broker is made once.
    assert_eq!(b.ask("churn q 1"), "ok 1");
    let before = pair.holdings("b");
    assert_eq!(b.ask("churn q 100"), "ok 100");
    // Looking takes a connection, too, which closes by itself.
    eventually("nothing is left", || pair.holdings("b") == before);
    assert_eq!(pair.fact("b", "imports"), 0);
    assert_eq!(a.ask("step q"), "ok 2");
}

#[test]
fn names_nobody_has_and_calls_that_make_no_sense_are_refused() {
    let pair = Pair::new("3");
    let (mut a, mut b) = (pair.bench("a"), pair.bench("b"));
    let refused = b.ask("attach nobody latest 0");
    assert!(refused.contains("ENOENT"), "{refused}");
    let refused = b.ask("attach nobody latest 20");
    assert!(refused.contains("ETIMEDOUT"), "{refused}");
    // A name that comes while it is waited for.
    b.tell(&format!("attach q latest {PATIENCE}"));
    assert_eq!(a.ask("make q 8192 4096 2 discard-newest 0"), "ok 4096");
    assert_eq!(b.answer(), "ok 8192 4096");
    drop(b);
    assert_eq!(a.ask("step q"), "ok 1");
    let mut nonsense = pair.start("b", &hostile("import"), &["nonsense"]);
    assert_eq!(nonsense.answer(), "");
    assert_eq!(nonsense.code(), 0);
    pair.still_runs("b");
}

/// A write to an import ends the program, not the enclave, whatever the
/// instruction is.
fn write_to_import(ring: &str) {
    let pair = Pair::new(ring);
    let mut a = pair.bench("a");
    assert_eq!(a.ask("make q 8192 4096 2 discard-newest 0"), "ok 4096");
    assert_eq!(a.ask("step q"), "ok 1");
    for how in ["store", "vector", "early", "execute"] {
        let code = pair.start("b", &hostile("import"), &[how]).code();
        assert_eq!(code, 139, "{how}");
        pair.still_runs("b");
    }
    let log = pair.succeeds(&["logs", "b"]);
    assert!(log.contains("writing 0x300000000000"), "{log}");
    assert!(log.contains("r-- Import"), "{log}");
    assert_eq!(a.ask("step q"), "ok 2");
}

#[test]
fn writing_to_an_import_ends_the_program_only() {
    write_to_import("3");
    write_to_import("0");
}

#[test]
fn an_exporter_that_lies_harms_no_importer() {
    let pair = Pair::new("3");
    for seed in ["1", "2", "3", "4", "5", "6"] {
        let mut a = pair.start("a", &hostile("exporter"), &[seed]);
        let mut b = pair.bench("b");
        assert_eq!(
            b.ask(&format!("attach lies latest {PATIENCE}")),
            "ok 1048576 4096"
        );
        // Whatever it sees: errors, nonsense, an end.
        for _ in 0..40 {
            let line = b.ask("follow lies 40 30");
            assert!(
                line.starts_with("ok") || line.starts_with("error"),
                "{line}"
            );
        }
        a.end_input();
        assert_eq!(a.code(), 0);
        drop(b);
        pair.still_runs("b");
    }
    let log = pair.succeeds(&["logs", "b"]);
    assert!(!log.contains("panic"), "{log}");
}

#[test]
fn a_c_program_follows_another_to_its_end() {
    let pair = Pair::new("3");
    let [follow, publish] = ["follow", "three_calls"].map(|name| example(name, &pair.run_dir));
    let mut b = pair.start("b", &follow, &[]);
    let mut a = pair.start("a", &publish, &["20000", "64", "64"]);
    let mut means = Vec::new();
    let end = loop {
        let line = b.answer();
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["step", step, "mean", mean, ..] => {
                let step: u64 = step.trim_end_matches(':').parse().unwrap();
                let mean: f64 = mean.trim_end_matches(',').parse().unwrap();
                means.push((step, mean));
            }
            _ => break line,
        }
    };
    assert_eq!(end, "the end, reason 1");
    assert_eq!((a.code(), b.code()), (0, 0));
    // The plate gets warmer.
    println!("{} of 20000 steps seen", means.len());
    assert!(means.len() > 1 && means.is_sorted(), "{means:?}");
    assert!(means.first().unwrap().1 < means.last().unwrap().1);
}
