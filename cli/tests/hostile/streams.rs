//! Standard streams and exit codes of a program, as its caller meets them.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;

use rustix::process::Signal;

use crate::stage::Stage;
use crate::support::{BUSYBOX, build, finish, wait};

#[test]
fn standard_input_is_passed_through() {
    let stage = Stage::new();
    let mut command = stage.ctl(&["run", "t", "--", BUSYBOX, "cat"]);
    let ended = finish(&mut command, b"abc\n");
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "abc\n"));
}

#[test]
fn exit_codes_are_passed_through() {
    let stage = Stage::new();
    for code in [0, 1, 2, 3, 63, 64, 124, 125, 126, 127, 128, 137, 200, 255] {
        let exit = format!("exit {code}");
        let ended = stage.run("t", Path::new(BUSYBOX), &["sh", "-c", &exit]);
        assert_eq!(ended.code, code, "{}", ended.stderr);
        assert_eq!(ended.stderr, "");
    }
}

#[test]
fn output_arrives_while_the_program_runs() {
    let stage = Stage::new();
    let mut program = stage.start("t", Path::new(BUSYBOX), &["cat"]);
    for n in 0..5 {
        program.send(&format!("line {n}\n"));
        assert_eq!(program.next(), Some(format!("line {n}")));
        assert_eq!(stage.state("t"), "running");
    }
    drop(program.stdin.take());
    assert_eq!(program.code(), 0);
}

#[test]
fn a_reader_that_leaves_early_ends_the_program() {
    let stage = Stage::new();
    let mut command = stage.ctl(&["run", "t", "--", BUSYBOX, "yes"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut first = [0; 2];
    stdout.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"y\n");
    drop(stdout);
    assert_eq!(wait(&mut child), 128 + 13);
    stage.still_runs("t");
}

#[test]
fn a_program_that_ignores_sigpipe_is_told_by_an_error() {
    let stage = Stage::new();
    let script = "trap '' PIPE; while echo y; do :; done 2>/dev/null; exit 9";
    let mut command = stage.ctl(&["run", "t", "--", BUSYBOX, "sh", "-c", script]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(wait(&mut child), 9);
    stage.still_runs("t");
}

#[test]
fn output_that_finds_no_room_is_an_error_of_the_program() {
    let stage = Stage::new();
    let mut command = stage.ctl(&["run", "t", "--", BUSYBOX, "echo", "y"]);
    let full = File::options().write(true).open("/dev/full").unwrap();
    command.stdin(Stdio::null()).stdout(full);
    let mut child = command.spawn().unwrap();
    assert_eq!(wait(&mut child), 1);
    stage.still_runs("t");
}

#[test]
fn an_interrupt_kills_the_program_and_not_the_enclave() {
    let stage = Stage::new();
    let spin = build("c/spin.c", "spin-glibc", &["gcc", "-O2", "-static"]);
    let mut program = stage.start("t", &spin, &[]);
    program.await_line("spinning");
    program.signal(Signal::INT);
    assert_eq!(program.code(), 128 + 2);
    stage.still_runs("t");
}

#[test]
fn an_endless_program_does_not_hold_up_destroy() {
    let stage = Stage::new();
    let spin = build("c/spin.c", "spin-glibc", &["gcc", "-O2", "-static"]);
    let mut program = stage.start("t", &spin, &[]);
    program.await_line("spinning");
    stage.destroy("t");
    assert_eq!(program.code(), 125);
}
