//! Several arenas published as one step, from C and Fortran: a reader that
//! holds one of them back holds back all, and what is published under one step
//! is of one step in each. In an enclave and as a process of Linux.
//!
//! Needs /dev/kvm for the former half; archive and compilers as `allocators`.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[path = "support/both.rs"]
mod both;
#[path = "support/language.rs"]
#[expect(dead_code, reason = "its programs wait for no line")]
mod language;
#[expect(dead_code, reason = "needs no busybox")]
mod support;

use language::{Below, PATIENCE, Run, compile};
use xemem_host::Stream;
use xemem_host::wire::Policy;

/// Step of the next snapshot, all of whose values are that step; it is given
/// back at once.
fn next(stream: &mut Stream) -> Option<u64> {
    let snapshot = stream.next_owned(Some(PATIENCE)).unwrap()?;
    let step = snapshot.record().step;
    let values = snapshot.var("values").unwrap().bytes;
    assert_eq!(values.len(), 8000);
    assert!(values.chunks_exact(8).all(|v| v == step.to_ne_bytes()));
    assert!(snapshot.valid());
    Some(step)
}

fn hold_one_back(below: Below, program: &std::path::Path) {
    let mut run = Run::start(below, program, 0);
    let mut fluid = run.attach("set/fluid", Policy::Latest);
    let mut solid = run.attach("set/solid", Policy::Latest);
    // Two banks: while this is held there is no further generation of either.
    let held = solid.next_owned(Some(PATIENCE)).unwrap().unwrap();
    assert_eq!(run.line(), "refused");
    let step = held.record().step;
    assert_eq!(next(&mut fluid), Some(step));
    assert!(held.valid());
    drop(held);
    // From here on both go on, and both end with the same step.
    let mut last = [step; 2];
    for (stream, last) in [&mut fluid, &mut solid].into_iter().zip(&mut last) {
        while let Some(step) = next(stream) {
            *last = step;
        }
    }
    assert_eq!(last[0], last[1]);
    assert!(last[0] > step);
    assert!(run.end().contains("steps together"));
}

fn c_arenas_are_published_together_or_not_at_all(below: Below) {
    let flags = ["-std=c11", "-Wall", "-Wextra", "-Werror"];
    let program = compile("cc", &flags, &["examples/set.c"]);
    hold_one_back(below, &program.0);
}

fn fortran_arenas_are_published_together_or_not_at_all(below: Below) {
    let sources = [
        "fortran/xasm.f90",
        "fortran/xasm_memory.f90",
        "examples/set.f90",
    ];
    let flags = ["-std=f2018", "-Wall", "-Wextra", "-Werror"];
    let program = compile("gfortran", &flags, &sources);
    hold_one_back(below, &program.0);
}

both::on_both! {
    c_arenas_are_published_together_or_not_at_all
    fortran_arenas_are_published_together_or_not_at_all
}
