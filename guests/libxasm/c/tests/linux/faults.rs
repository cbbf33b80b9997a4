//! Faults: the library's, the program's, and those of children.

use crate::programs::Program;
use crate::stage::{PATIENCE, Running, Stage};
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use xemem_host::EndReason;
use xemem_host::wire::Policy;

const SIGSEGV: i32 = 11;

fn faults(mode: &str) -> ExitStatus {
    let stage = Stage::new();
    let program = Program::of_tests("faults.c");
    let status = stage.command(&program).arg(mode).status();
    status.expect("it starts")
}

#[test]
fn a_fault_that_is_not_the_librarys_ends_the_program_as_always() {
    for mode in ["nowhere", "guard", "execute", "sent", "handing-on"] {
        let status = faults(mode);
        assert_eq!(status.signal(), Some(SIGSEGV), "{mode}: {status}");
    }
}

#[test]
fn handlers_of_the_program_get_what_is_theirs() {
    for mode in ["earlier", "later", "old-style", "ignored"] {
        let status = faults(mode);
        assert_eq!(
            status.code(),
            Some(0),
            "{mode}: {status}, a line of faults.c"
        );
    }
}

#[test]
fn system_calls_store_where_memory_was_touched() {
    let status = faults("system-calls");
    assert_eq!(status.code(), Some(0), "{status}, a line of faults.c");
}

#[test]
fn a_forked_child_has_no_arenas_and_leaves_its_parents_alone() {
    let stage = Stage::new();
    let program = Program::of_tests("forks.c");
    let mut running = Running::start(&mut stage.command(&program));
    let said = running.line();
    if said != "published" {
        panic!("{}, a line of forks.c; {said:?}", running.finish());
    }
    let mut stream = stage.reader("forks", Policy::Latest);
    let snapshot = stream.next(Some(PATIENCE)).unwrap().unwrap();
    assert_eq!((snapshot.generation(), snapshot.as_slice()[0]), (2, 2));
    drop(snapshot);
    running.go_on();
    let status = running.finish();
    assert_eq!(status.code(), Some(0), "a line of forks.c");
    assert!(stream.next(Some(PATIENCE)).unwrap().is_none());
    assert_eq!(stream.end_reason(), Some(EndReason::ClosedByProgram));
}
