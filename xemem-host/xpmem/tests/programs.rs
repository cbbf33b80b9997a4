//! C programs written for XPMEM, compiled against our header, linked with the
//! shared library and run as several processes with a broker of their own that
//! the library starts.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use xemem_host::Broker;

/// The folder with this program, and what cargo built it for.
fn built() -> PathBuf {
    let test = std::env::current_exe().expect("this program has a path");
    test.parent().expect("in target/PROFILE/deps").to_owned()
}

/// The shared library. Not the one a folder higher, which `cargo test` leaves
/// as the last `cargo build` made it.
fn library() -> PathBuf {
    there(built().join("libxpmem.so"), "xpmem")
}

/// The folder with the broker's program.
fn programs() -> PathBuf {
    let folder = built().join("..");
    there(folder.join("xemem-broker"), "xemem-host");
    std::fs::canonicalize(folder).expect("there")
}

fn there(path: PathBuf, package: &str) -> PathBuf {
    let shown = path.display();
    assert!(
        path.is_file(),
        "{shown} is missing; try: cargo build -p {package}"
    );
    path
}

/// A fresh folder with the library as it is installed, a run directory and
/// what is compiled; the broker in it ends with the value.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("xpmem-test-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("a fresh directory");
        for name in ["libxpmem.so", "libxpmem.so.0"] {
            std::os::unix::fs::symlink(library(), path.join(name)).expect("a link");
        }
        Self(path)
    }

    fn run_dir(&self) -> PathBuf {
        self.0.join("run")
    }

    /// Compiles a program of `tests/programs`.
    fn compile(&self, name: &str, libraries: &[&str]) -> PathBuf {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let program = self.0.join(name);
        let source = here.join("tests/programs").join(format!("{name}.c"));
        let compiled = Command::new("cc")
            .args([
                "-std=gnu11",
                "-O2",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-pthread",
            ])
            .arg("-I")
            .arg(here.join("include"))
            .arg(source)
            .arg("-L")
            .arg(&self.0)
            .args(libraries)
            .arg("-o")
            .arg(&program)
            .output()
            .expect("a C compiler named cc");
        let words = String::from_utf8_lossy(&compiled.stderr);
        assert!(compiled.status.success(), "{words}");
        program
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env("LD_LIBRARY_PATH", &self.0)
            .env("ENCLAVE_RUNDIR", self.run_dir())
            .env("PATH", programs())
            .env_remove("XEMEM_SOCKET")
            .env_remove("XPMEM_DEBUG");
        command
    }

    fn run(&self, program: &Path, arguments: &[&str]) -> Output {
        let output = self.command(program).args(arguments).output();
        let output = output.expect("it starts");
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words}{}", output.status);
        // Silent unless it is asked to speak.
        assert_eq!(words, "");
        output
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let socket = self.run_dir().join(xemem_host::SOCKET_NAME);
        if let Ok(mut broker) = Broker::connect(&socket) {
            let _ = broker.shutdown(true);
        }
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Compiles and runs one program.
fn passes(name: &str) {
    let place = Place::new();
    let program = place.compile(name, &["-lxpmem"]);
    place.run(&program, &[]);
}

#[test]
fn the_numbered_cases_behave_as_documented() {
    let place = Place::new();
    let program = place.compile("cases", &["-lxpmem"]);
    for number in [
        "001", "002", "003", "004", "005", "006", "007", "902", "903", "904",
    ] {
        println!("case {number}");
        place.run(&program, &[number]);
    }
}

#[test]
fn what_cannot_be_done_is_refused_with_the_documented_errno() {
    passes("refusals");
}

#[test]
fn locks_inside_an_attachment_work_between_processes() {
    passes("locks");
}

#[test]
fn a_crowd_of_importers_leaves_every_heap_whole() {
    passes("crowd");
}

#[test]
fn nobodys_death_hurts_the_other_side() {
    passes("deaths");
}

#[test]
fn programs_load_the_library_by_its_name() {
    let place = Place::new();
    let program = place.compile("loaded", &["-ldl"]);
    place.run(&program, &[]);
}

#[test]
fn the_library_exports_exactly_the_interface() {
    let library = library();
    let output = Command::new("nm")
        .args(["--dynamic", "--defined-only", "--format=just-symbols"])
        .arg(&library)
        .output()
        .expect("a program named nm");
    let symbols = String::from_utf8(output.stdout).expect("text");
    let mut symbols: Vec<&str> = symbols.lines().collect();
    symbols.sort_unstable();
    assert_eq!(
        symbols,
        [
            "xpmem_attach",
            "xpmem_detach",
            "xpmem_get",
            "xpmem_init",
            "xpmem_make",
            "xpmem_release",
            "xpmem_remove",
            "xpmem_version"
        ]
    );
    let output = Command::new("readelf").arg("-d").arg(&library).output();
    let dynamic = output.expect("a program named readelf").stdout;
    let dynamic = String::from_utf8_lossy(&dynamic);
    assert!(dynamic.contains("soname: [libxpmem.so.0]"), "{dynamic}");
}

#[test]
fn without_a_broker_calls_fail_and_say_why_only_if_asked_to() {
    let place = Place::new();
    let program = place.compile("refusals", &["-lxpmem"]);
    let nowhere = place.0.join("no/such/socket");
    let mut command = place.command(&program);
    command.env("XEMEM_SOCKET", &nowhere);
    let quiet = command.output().expect("it starts");
    let quiet = String::from_utf8_lossy(&quiet.stderr).into_owned();
    assert!(quiet.contains("xpmem_init() == 0 (errno"), "{quiet}");
    assert_eq!(quiet.lines().count(), 1, "{quiet}");
    let loud = command.env("XPMEM_DEBUG", "1").output().expect("it starts");
    let loud = String::from_utf8_lossy(&loud.stderr);
    assert!(loud.starts_with("libxpmem: xpmem_init: cannot"), "{loud}");
    assert_eq!(loud.lines().count(), 2, "{loud}");
}
