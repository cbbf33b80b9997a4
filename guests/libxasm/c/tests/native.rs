//! C programs linked with `libxasm.a`, run without a backend.
//!
//! The archive is built with the command the crate documents, into this test's
//! own folder, and linked statically: what runs here is the file that runs in
//! an enclave.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn manifest() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Builds the archive; returns the folder that holds it.
fn archive() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("xasm-c");
    let status = Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "-p",
            "xasm-c",
            "--profile",
            "guest",
            "--target-dir",
        ])
        .arg(&target)
        .current_dir(manifest())
        .status()
        .expect("cargo runs");
    assert!(status.success(), "building libxasm.a: {status}");
    target.join("guest")
}

/// Links a C program statically and runs it.
fn run(source: &Path, arguments: &[&str]) -> Output {
    let name = source.file_stem().expect("a file").to_str().expect("ASCII");
    let unique = format!("{name}-{}", std::process::id());
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique);
    let compiled = Command::new("cc")
        .args(["-static", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"])
        .arg(source)
        .arg("-I")
        .arg(manifest().join("../include"))
        .arg("-L")
        .arg(archive())
        .args(["-lxasm", "-o"])
        .arg(&program)
        .output()
        .expect("a C compiler named cc");
    let words = String::from_utf8_lossy(&compiled.stderr);
    assert!(compiled.status.success(), "{words}");
    let output = Command::new(&program)
        .args(arguments)
        .env("XASM_BACKEND", "off")
        .output()
        .expect("it starts");
    std::fs::remove_file(&program).expect("it is there");
    output
}

#[test]
fn every_function_answers_enosys_without_a_backend() {
    let output = run(&manifest().join("tests/enosys.c"), &[]);
    assert!(
        output.status.success(),
        "line {:?} of enosys.c",
        output.status.code()
    );
}

#[test]
fn the_example_runs_without_snapshots() {
    let output = run(
        &manifest().join("../examples/three_calls.c"),
        &["5", "64", "32"],
    );
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.starts_with("no enclave or broker here"), "{text}");
    assert!(
        text.contains("steps 5 ") && text.contains("published 0  dropped 0"),
        "{text}"
    );
}

#[test]
fn the_papers_names_link_and_say_where_they_are() {
    let output = run(&manifest().join("../examples/backed_region.c"), &[]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert_eq!(text, "no enclave or broker here: nothing to do\n");
}
