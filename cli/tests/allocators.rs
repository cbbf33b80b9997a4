//! Allocations in arenas from C, C++, Fortran and Rust: programs that allocate
//! and free at random publish a table of what is live, and a reader on Linux
//! finds every allocation whole and none overlapping another. In an enclave and
//! as a process of Linux.
//!
//! Needs /dev/kvm for the former half. The archive and the Rust program are
//! those in `out/` (or `$XASM_OUT`), the compilers are the system's.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[path = "support/both.rs"]
mod both;
#[path = "support/language.rs"]
#[expect(dead_code, reason = "reads no single lines")]
mod language;
#[expect(dead_code, reason = "needs no busybox")]
mod support;

use language::{Below, Run, compile, out};
use xemem_host::wire::Policy;

const STEPS: u64 = 60;

/// The words of the table: offset, words, seed per allocation.
fn words(bytes: &[u8]) -> Vec<u64> {
    let words = bytes.chunks_exact(8);
    words
        .map(|word| u64::from_ne_bytes(word.try_into().unwrap()))
        .collect()
}

/// Checks what a generation says of itself; returns how many allocations it has.
fn check(arena: &[u8], table: &[u64]) -> usize {
    let mut live: Vec<(usize, usize)> = Vec::new();
    for row in table.chunks_exact(3).filter(|row| row[1] != 0) {
        let [start, len] = [row[0], row[1] * 8].map(|n| usize::try_from(n).unwrap());
        assert!(start.is_multiple_of(64), "{row:?}");
        let seen = words(&arena[start..start + len]);
        assert!(seen.into_iter().eq((row[2]..).take(len / 8)), "{row:?}");
        live.push((start, start + len));
    }
    live.sort_unstable();
    assert!(live.windows(2).all(|pair| pair[0].1 <= pair[1].0));
    live.len()
}

/// Runs `program` and checks each generation it publishes, all of them.
fn verify(below: Below, program: &std::path::Path) {
    let mut run = Run::start(below, program, STEPS);
    let mut stream = run.attach("churn", Policy::Every);
    let (mut generations, mut most) = (0, 0);
    while let Some(snapshot) = stream.next(Some(language::PATIENCE)).unwrap() {
        let table = words(snapshot.var("table").unwrap().bytes);
        most = most.max(check(snapshot.as_slice(), &table));
        assert!(snapshot.valid());
        generations += 1;
    }
    let text = run.end();
    assert!(text.contains(&format!("steps {STEPS}")), "{text}");
    assert!(generations >= 1 && most >= 10, "{generations} {most}");
}

fn c_allocations_are_whole_in_every_snapshot(below: Below) {
    let flags = ["-std=c11", "-Wall", "-Wextra", "-Werror"];
    let program = compile("cc", &flags, &["examples/churn.c"]);
    verify(below, &program.0);
}

fn cpp_containers_are_whole_in_every_snapshot(below: Below) {
    let flags = ["-std=c++11", "-Wall", "-Wextra", "-Werror"];
    let program = compile("g++", &flags, &["examples/churn.cpp"]);
    verify(below, &program.0);
}

fn fortran_arrays_are_whole_in_every_snapshot(below: Below) {
    let sources = [
        "fortran/xasm.f90",
        "fortran/xasm_memory.f90",
        "examples/churn.f90",
    ];
    let flags = ["-std=f2018", "-Wall", "-Wextra", "-Werror"];
    let program = compile("gfortran", &flags, &sources);
    verify(below, &program.0);
}

fn rust_arrays_are_whole_in_every_snapshot(below: Below) {
    verify(below, &out().join("xasm-churn"));
}

both::on_both! {
    c_allocations_are_whole_in_every_snapshot
    cpp_containers_are_whole_in_every_snapshot
    fortran_arrays_are_whole_in_every_snapshot
    rust_arrays_are_whole_in_every_snapshot
}
