//! The guest library from C and Fortran: the examples of the documentation,
//! linked statically with `libxasm.a`, publish in an enclave what a reader on
//! Linux then sees, with the order of their language.
//!
//! Needs /dev/kvm. The archive is the one in `out/` (or `$XASM_OUT`), the compilers are the
//! system's.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[expect(dead_code, reason = "needs no busybox")]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use xemem_host::Stream;
use xemem_host::wire::Policy;

use support::{enclavectl, finish, require_programs, unique_dir, wait};

const PATIENCE: Duration = Duration::from_secs(60);
/// Enough for a reader to come while the program runs.
const STEPS: u64 = 300;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn out() -> PathBuf {
    let out = std::env::var_os("XASM_OUT").map_or_else(|| repository().join("out"), PathBuf::from);
    let archive = out.join("libxasm.a");
    let shown = archive.display();
    assert!(
        archive.is_file(),
        "{shown} is missing; try: cargo xtask image"
    );
    out
}

/// What the reader of a run saw at last.
struct Seen {
    generation: u64,
    step: u64,
    order: u8,
    shape: Vec<u64>,
    values: Vec<f64>,
    stdout: String,
}

/// Compiles `sources` and runs them, while a reader follows. A reader of the
/// latest generation holds one at most, so nothing is dropped.
fn follow(compiler: &str, flags: &[&str], sources: &[&str]) -> Seen {
    require_programs();
    let dir = unique_dir("language");
    let program = dir.join("program");
    let library = repository().join("guests/libxasm");
    let mut compile = Command::new(compiler);
    compile.args(["-static", "-O2", "-Wall", "-Wextra", "-Werror"]);
    compile
        .args(flags)
        .args(sources.iter().map(|source| library.join(source)));
    compile.arg("-I").arg(library.join("include"));
    // Fortran's module files go to where the compiler runs.
    compile.current_dir(&dir).arg("-L").arg(out());
    let compiled = finish(compile.args(["-lxasm", "-o"]).arg(&program), b"");
    assert_eq!(compiled.code, 0, "{}", compiled.stderr);
    let create = "create l --cores 1 --share-cores --mem 64M --no-prefault --backing small";
    let created = finish(enclavectl(&dir).args(create.split(' ')), b"");
    assert_eq!(created.code, 0, "{}", created.stderr);
    let socket = dir.join("xemem.sock");
    let reader =
        std::thread::spawn(move || Stream::attach(&socket, "heat", Policy::Latest, PATIENCE));
    let mut run = enclavectl(&dir);
    run.args(["run", "l", "--"])
        .arg(&program)
        .arg(STEPS.to_string());
    let mut run = run
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stream = reader.join().unwrap().unwrap();
    let mut seen = None;
    while let Some(snapshot) = stream.next(Some(PATIENCE)).unwrap() {
        let var = snapshot.var("temperature").unwrap();
        let ndim = usize::try_from(var.desc.ndim).unwrap();
        let values = var.bytes.chunks_exact(8);
        seen = Some(Seen {
            generation: snapshot.generation(),
            step: snapshot.step(),
            order: var.desc.order,
            shape: var.desc.shape[..ndim].to_vec(),
            values: values
                .map(|v| f64::from_ne_bytes(v.try_into().unwrap()))
                .collect(),
            stdout: String::new(),
        });
    }
    let mut stdout = String::new();
    std::io::Read::read_to_string(&mut run.stdout.take().unwrap(), &mut stdout).unwrap();
    assert_eq!(wait(&mut run), 0, "{stdout}");
    for arguments in [&["destroy", "--all"][..], &["broker", "stop", "--force"]] {
        finish(enclavectl(&dir).args(arguments), b"");
    }
    std::fs::remove_dir_all(&dir).unwrap();
    Seen {
        stdout,
        ..seen.unwrap()
    }
}

#[test]
fn a_fortran_field_keeps_its_order() {
    let sources = ["fortran/xasm.f90", "examples/heat.f90"];
    let seen = follow("gfortran", &["-std=f2018"], &sources);
    let published = format!("published {STEPS}");
    assert!(seen.stdout.contains(&published), "{}", seen.stdout);
    assert_eq!((seen.generation, seen.step), (STEPS, STEPS));
    assert_eq!((seen.order, seen.shape), (b'F', vec![96, 64]));
    // The hot edge is the first column, t(:, 1): contiguous in Fortran.
    assert!(seen.values[..96].iter().all(|&t| t == 100.0));
    assert!(seen.values[96] == 0.0 && seen.values[97] > 0.0 && seen.values[97] < 100.0);
}

#[test]
fn a_c_field_keeps_its_order() {
    let seen = follow("cc", &["-std=c11"], &["examples/three_calls.c"]);
    let published = format!("published {STEPS}");
    assert!(seen.stdout.contains(&published), "{}", seen.stdout);
    assert_eq!((seen.generation, seen.step), (STEPS, STEPS));
    assert_eq!((seen.order, seen.shape), (b'C', vec![512, 512]));
    assert!(seen.values[..512].iter().all(|&t| t == 100.0));
}
