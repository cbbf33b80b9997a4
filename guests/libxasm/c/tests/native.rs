//! C programs linked with `libxasm.a`, run without a backend.

#[path = "programs/mod.rs"]
mod programs;

use programs::Program;
use std::process::Output;

fn run(program: &Program, arguments: &[&str], backend: &str) -> Output {
    program
        .command()
        .args(arguments)
        .env("XASM_BACKEND", backend)
        // Without a broker, and without the program of one.
        .env("ENCLAVE_RUNDIR", "/nonexistent")
        .env("PATH", "/nonexistent")
        .output()
        .expect("it starts")
}

#[test]
fn every_function_answers_enosys_without_a_backend() {
    let program = Program::of_tests("enosys.c");
    for backend in ["off", "", "enclave"] {
        let output = run(&program, &[], backend);
        let line = output.status.code();
        assert!(
            output.status.success(),
            "{backend}: line {line:?} of enosys.c"
        );
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(words.contains("xasm: "), backend == "enclave", "{words}");
        assert!(words.lines().count() <= 1, "{words}");
    }
}

#[test]
fn a_backend_that_makes_no_sense_or_cannot_be_had_is_an_error_in_words() {
    let program = Program::example("cc", "three_calls.c");
    for (backend, errno, reason) in [
        (
            "lunix",
            "Invalid argument",
            "XASM_BACKEND=lunix makes no sense",
        ),
        ("linux", "No such file or directory", "no broker answers"),
    ] {
        let output = run(&program, &["5", "64", "32"], backend);
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words}");
        assert!(words.contains(reason) && words.contains(errno), "{words}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn the_example_runs_without_snapshots() {
    // The archive needs nothing of a particular C library.
    for compiler in ["cc", "musl-gcc"] {
        let program = Program::example(compiler, "three_calls.c");
        let output = run(&program, &["5", "64", "32"], "");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}");
        assert!(text.starts_with("no enclave or broker here"), "{text}");
        assert!(
            text.contains("steps 5 ") && text.contains("published 0  dropped 0"),
            "{text}"
        );
    }
}

#[test]
fn the_papers_names_link_and_say_where_they_are() {
    let output = run(&Program::example("cc", "backed_region.c"), &[], "off");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert_eq!(text, "no enclave or broker here: nothing to do\n");
}
