//! Ordinary programs, run on Linux and in an enclave: same output, same end.
//!
//! The programs are those of `guests/programs`, built here with the system's
//! compilers, and the applets of a static busybox. Each runs twice in twin
//! directories, once natively and once with `enclavectl run`; standard output,
//! standard error and exit code must be equal. Needs /dev/kvm, the kernel image
//! (`$ENCLAVE_KERNEL`, else where `cargo kernel` puts it), and the other
//! programs of this workspace next to `enclavectl`.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use enclave_core::names::syscall_name;
use rustix::process::{Pid, Signal};

use crate::support::{BUSYBOX, Ended, build, finish, lock, unique_dir, wait};

/// The exported directory as programs see it.
const GUEST_DIR: &str = "/data";
/// Builds of a C program.
const C_BUILDS: [&str; 3] = ["musl", "glibc", "pie"];

/// One enclave with an exported directory, shared by the tests that run at the
/// same time; destroyed with the last of them.
struct Enclave {
    home: PathBuf,
    /// An enclave runs one program at a time.
    turn: Mutex<()>,
}

impl Enclave {
    fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Enclave>> = Mutex::new(Weak::new());
        let mut shared = lock(&SHARED);
        if let Some(enclave) = shared.upgrade() {
            return enclave;
        }
        let enclave = Arc::new(Self::create(&[]));
        *shared = Arc::downgrade(&enclave);
        enclave
    }

    fn create(more: &[&str]) -> Self {
        support::require_programs();
        let enclave = Self {
            home: unique_dir("enclave"),
            turn: Mutex::new(()),
        };
        fs::create_dir(enclave.export()).unwrap();
        let export = format!("{}={GUEST_DIR}:rw", enclave.export().display());
        let create = [
            "create",
            "t1",
            "--cores",
            "1",
            "--mem",
            "256M",
            "--share-cores",
        ];
        let mut command = enclave.command(&create);
        command.args(["--export", &export]).args(more);
        let ended = finish(&mut command, b"");
        assert_eq!(ended.code, 0, "create: {}", ended.stderr);
        enclave
    }

    fn export(&self) -> PathBuf {
        self.home.join("export")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = support::enclavectl(&self.home.join("run"));
        command.args(args);
        command
    }

    /// `enclavectl run` in the guest directory `cwd`.
    fn run(&self, cwd: &str, program: &Path, args: &[&str]) -> Command {
        let env = "PROGRAM_TEST=value of it";
        let mut command = self.command(&["run", "t1", "--cwd", cwd, "--env", env, "--"]);
        command.arg(program).args(args);
        command
    }
}

impl Drop for Enclave {
    fn drop(&mut self) {
        for args in [
            &["destroy", "t1", "--ignore-missing"][..],
            &["broker", "stop", "--force"],
        ] {
            let status = self.command(args).stdout(Stdio::null()).status();
            if !status.is_ok_and(|status| status.success()) {
                eprintln!("enclavectl {} failed", args.join(" "));
            }
        }
        fs::remove_dir_all(&self.home).ok();
    }
}

/// A program that is run on both sides, in directories of its own.
struct Comparison {
    enclave: Arc<Enclave>,
    name: String,
    native: PathBuf,
}

impl Comparison {
    fn new() -> Self {
        Self::inside(Enclave::shared())
    }

    /// In an enclave of its own, whose kernel is in ring 0.
    fn in_ring0() -> Self {
        Self::inside(Arc::new(Enclave::create(&["--ring", "0"])))
    }

    fn inside(enclave: Arc<Enclave>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("work{}", NEXT.fetch_add(1, Ordering::Relaxed));
        fs::create_dir(enclave.export().join(&name)).unwrap();
        Self {
            enclave,
            name,
            native: unique_dir("native"),
        }
    }

    /// The directory on the enclave's side, as the host sees it.
    fn exported(&self) -> PathBuf {
        self.enclave.export().join(&self.name)
    }

    /// Runs `program` on both sides; `DIR` in an argument is the directory.
    #[track_caller]
    fn same(&self, program: &Path, args: &[&str], stdin: &[u8]) -> Ended {
        let inside =
            |dir: &str| -> Vec<String> { args.iter().map(|arg| arg.replace("DIR", dir)).collect() };
        let guest_dir = format!("{GUEST_DIR}/{}", self.name);
        let native_args = inside(self.native.to_str().unwrap());
        let mut native = Command::new(program);
        native.args(&native_args).current_dir(&self.native);
        native.env("PROGRAM_TEST", "value of it");
        let expected = finish(&mut native, stdin);
        let guest_args = inside(&guest_dir);
        let guest_args: Vec<&str> = guest_args.iter().map(String::as_str).collect();
        let mut command = self.enclave.run(&guest_dir, program, &guest_args);
        let turn = lock(&self.enclave.turn);
        let mut got = finish(&mut command, stdin);
        drop(turn);
        // A program that was killed is reported behind its own output.
        if got.code > 128
            && let Some(at) = got.stderr.find("enclavectl: ")
        {
            got.stderr.truncate(at);
        }
        assert_eq!(
            got,
            expected,
            "{} {args:?}, left: enclave",
            program.display()
        );
        expected
    }

    /// The same for the three builds of a C program.
    #[track_caller]
    fn same_in_c(&self, name: &str, args: &[&str], stdin: &[u8], code: i32) {
        for build in C_BUILDS {
            let ended = self.same(&c_program(name, build), args, stdin);
            assert_eq!(ended.code, code, "{name}, {build}");
        }
    }
}

impl Drop for Comparison {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.native).ok();
        fs::remove_dir_all(self.exported()).ok();
    }
}

fn c_program(name: &str, build_name: &str) -> PathBuf {
    let mut compiler = match build_name {
        "musl" => vec!["musl-gcc", "-static"],
        "glibc" => vec!["gcc", "-static"],
        _ => vec!["gcc", "-static-pie"],
    };
    match name {
        // Optimised, its faults would become something else.
        "segv" => compiler.extend(["-O0", "-fno-stack-protector"]),
        _ => compiler.push("-O2"),
    }
    build(
        &format!("c/{name}.c"),
        &format!("{name}-{build_name}"),
        &compiler,
    )
}

fn rust_program(name: &str, model: &str) -> PathBuf {
    let model_option = format!("relocation-model={model}");
    let compiler = [
        "rustc",
        "-O",
        "--edition",
        "2024",
        "-C",
        "target-feature=+crt-static",
        "-C",
        &model_option,
    ];
    build(
        &format!("rust/{name}.rs"),
        &format!("{name}-{model}"),
        &compiler,
    )
}

#[test]
fn c_programs_compute_as_on_linux() {
    let both = Comparison::new();
    both.same_in_c("hello", &["7"], b"", 7);
    both.same_in_c("tls", &[], b"", 0);
    both.same_in_c("args", &["one", "", "three words here", "*"], b"", 5);
}

#[test]
fn c_programs_map_memory_as_on_linux() {
    Comparison::new().same_in_c("mmapcheck", &[], b"", 0);
}

#[test]
fn c_programs_use_files_as_on_linux() {
    Comparison::new().same_in_c("files", &["DIR"], b"", 0);
}

#[test]
fn calls_answer_as_on_linux_line_by_line() {
    let both = Comparison::new();
    // Written for glibc, which knows the errnos by name.
    for (name, args) in [("conform-files", &["DIR"][..]), ("conform-process", &[])] {
        let ended = both.same(&c_program(name, "glibc"), args, b"");
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        assert!(ended.stdout.lines().count() > 200, "{}", ended.stdout);
    }
}

/// Who serves which call is found out by calling each; `docs/syscalls.md` must
/// say the same, and `XASM_WRITE_TABLE=1` writes it there.
#[test]
fn the_documented_calls_are_those_that_are_served() {
    let both = Comparison::new();
    let mut command = both.enclave.run("/", &c_program("numbers", "glibc"), &[]);
    let ended = {
        let _turn = lock(&both.enclave.turn);
        finish(&mut command, b"")
    };
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let mut served: BTreeSet<u64> = ended.stdout.lines().map(|nr| nr.parse().unwrap()).collect();
    // The program could not have ended without exit; of a return from a handler
    // and `pause` the programs of handlers speak.
    served.extend([15, 34, 60, 231]);
    let listed = |title: &str, wanted: &dyn Fn(u64) -> bool| {
        let calls = (0..1024).filter(|&nr| wanted(nr));
        let name = |nr| syscall_name(nr).map(|name| format!("`{name}` {nr}"));
        let names: Vec<String> = calls.filter_map(name).collect();
        let lines: Vec<String> = names.chunks(4).map(|line| line.join(", ")).collect();
        format!("## {title} ({})\n\n{}\n", names.len(), lines.join(",\n"))
    };
    let is_forwarded = |nr: u64| enclave_vmm::forward::name(nr).is_some();
    let table = [
        listed("Served by the kernel", &|nr| {
            served.contains(&nr) && !is_forwarded(nr)
        }),
        listed("Served by the host", &|nr| {
            served.contains(&nr) && is_forwarded(nr)
        }),
        listed("Refused with ENOSYS", &|nr| !served.contains(&nr)),
    ]
    .join("\n");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/syscalls.md");
    let text = fs::read_to_string(&path).unwrap();
    let begin = text.find("## Served by the kernel").unwrap();
    if std::env::var_os("XASM_WRITE_TABLE").is_some() {
        fs::write(&path, format!("{}{table}", &text[..begin])).unwrap();
        return;
    }
    assert_eq!(
        table,
        text[begin..],
        "XASM_WRITE_TABLE=1 rewrites the documentation"
    );
}

#[test]
fn clocks_run_in_an_enclave() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Comparison::new().same_in_c("clock", &[&now.as_secs().to_string()], b"", 0);
}

#[test]
fn standard_input_arrives_whole() {
    let lines: String = (0..20_000).map(|n| format!("line number {n}\n")).collect();
    let both = Comparison::new();
    both.same_in_c("stdin", &[], lines.as_bytes(), 0);
    both.same_in_c("stdin", &[], b"", 0);
}

#[test]
fn faults_end_the_program_and_not_the_enclave() {
    let both = Comparison::new();
    both.same_in_c("abort", &[], b"", 128 + 6);
    for fault in ["null", "code", "jump", "stack", "wild"] {
        both.same_in_c("segv", &[fault], b"", 128 + 11);
    }
    both.same_in_c("segv", &["divide"], b"", 128 + 8);
    both.same_in_c("segv", &["ud2"], b"", 128 + 4);
    both.same_in_c("args", &[], b"", 1);
}

#[test]
fn a_spinning_program_is_killed_and_the_enclave_goes_on() {
    let both = Comparison::new();
    let program = c_program("spin", "musl");
    let turn = lock(&both.enclave.turn);
    let mut command = both.enclave.run(GUEST_DIR, &program, &[]);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 9];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"spinning\n");
    rustix::process::kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(wait(&mut child), 128 + 15);
    drop(turn);
    both.same_in_c("args", &["afterwards"], b"", 2);
}

#[test]
fn a_program_that_waits_for_input_is_killed() {
    let both = Comparison::new();
    let turn = lock(&both.enclave.turn);
    let mut command = both.enclave.run(GUEST_DIR, Path::new(BUSYBOX), &["cat"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Kept open: what ends the wait is the kill.
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"first line\n").unwrap();
    let mut first = [0; 11];
    let mut output = child.stdout.take().unwrap();
    output.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"first line\n");
    rustix::process::kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(wait(&mut child), 128 + 2);
    drop(turn);
    both.same_in_c("args", &["afterwards"], b"", 2);
}

#[test]
fn threads_that_wait_for_each_other_are_killed() {
    let both = Comparison::new();
    let turn = lock(&both.enclave.turn);
    let program = c_program("deadlock", "glibc");
    let mut command = both.enclave.run(GUEST_DIR, &program, &[]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut first = [0; 8];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"waiting\n");
    rustix::process::kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(wait(&mut child), 128 + 15);
    drop(turn);
    both.same_in_c("args", &["afterwards"], b"", 2);
}

#[test]
fn c_threads_work_as_on_linux() {
    let both = Comparison::new();
    both.same_in_c("threads", &["4"], b"", 4);
    both.same_in_c("threads", &["leave"], b"", 0);
    both.same_in_c("pipes", &[], b"", 0);
}

/// Handlers, their frames, stacks and masks, and the calls that they interrupt.
fn handlers(both: &Comparison) {
    both.same_in_c("signals", &[], b"", 0);
    both.same_in_c("signals-threads", &[], b"", 0);
    both.same_in_c("signals", &["abort"], b"", 128 + 6);
    for end in ["blocked", "nowhere", "wild"] {
        both.same_in_c("signals", &[end], b"", 128 + 11);
    }
}

#[test]
fn handlers_are_called_as_on_linux() {
    handlers(&Comparison::new());
}

#[test]
fn handlers_are_called_as_on_linux_in_ring0() {
    handlers(&Comparison::in_ring0());
}

/// Timers that send signals, to a program that computes or waits.
fn timers(both: &Comparison) {
    both.same_in_c("timers", &["flood"], b"", 0);
    both.same_in_c("timers", &["die"], b"", 128 + 14);
    // Where Linux does nothing but send them.
    let mut most = both
        .enclave
        .run("/", &c_program("timers", "musl"), &["most"]);
    let _turn = lock(&both.enclave.turn);
    let ended = finish(&mut most, b"");
    assert!(ended.stdout.ends_with("twenty\n"), "{}", ended.stdout);
}

#[test]
fn timers_send_signals_as_on_linux() {
    timers(&Comparison::new());
}

#[test]
fn timers_send_signals_as_on_linux_in_ring0() {
    timers(&Comparison::in_ring0());
}

/// Runs `told` until it has said that it waits in its way, sends `enclavectl run`
/// a signal, and returns what else it said and its exit code.
fn tell(both: &Comparison, way: &str, signals: &[Signal]) -> (String, i32) {
    let program = c_program("told", "musl");
    let mut command = both.enclave.run(GUEST_DIR, &program, &[way]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Kept open: what ends the wait is the signal.
    let _input = child.stdin.take().unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut first = [0; 6];
    output.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"ready\n");
    for &signal in signals {
        rustix::process::kill_process(Pid::from_child(&child), signal).unwrap();
    }
    let code = wait(&mut child);
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    (rest, code)
}

/// What a user's Ctrl-C does to a program that has a handler, wherever it is.
fn told_by_the_host(both: &Comparison) {
    let turn = lock(&both.enclave.turn);
    let told = |text: &str| (text.to_owned(), 7);
    for way in ["read", "poll", "pause", "sleep", "threads"] {
        assert_eq!(tell(both, way, &[Signal::TERM]), told("told\n"), "{way}");
    }
    for way in ["spin", "ppoll", "suspend"] {
        let expected = told("told\ninterrupted\n");
        assert_eq!(tell(both, way, &[Signal::TERM]), expected, "{way}");
    }
    let expected = told("still there\ntold\ninterrupted\n");
    assert_eq!(tell(both, "block", &[Signal::TERM]), expected);
    // The second one does not ask; which is read first is nobody's business.
    let (said, code) = tell(both, "ignore", &[Signal::TERM, Signal::INT]);
    assert!(
        said.is_empty() && [128 + 2, 128 + 15].contains(&code),
        "{code}"
    );
    let ended = (String::new(), 128 + 15);
    assert_eq!(tell(both, "default", &[Signal::TERM]), ended);
    drop(turn);
    both.same_in_c("args", &["afterwards"], b"", 2);
}

#[test]
fn a_program_handles_what_its_user_sends() {
    told_by_the_host(&Comparison::new());
}

#[test]
fn a_program_handles_what_its_user_sends_in_ring0() {
    told_by_the_host(&Comparison::in_ring0());
}

#[test]
fn openmp_works_as_on_linux() {
    let both = Comparison::new();
    let compiler = ["gcc", "-O2", "-static", "-fopenmp"];
    let program = build("c/openmp.c", "openmp", &compiler);
    for threads in ["1", "2", "7"] {
        assert_eq!(both.same(&program, &[threads], b"").code, 0);
    }
}

#[test]
fn rust_threads_work_as_on_linux() {
    let both = Comparison::new();
    for model in ["pie", "static"] {
        let program = rust_program("threads", model);
        assert_eq!(both.same(&program, &["5"], b"").code, 5);
    }
}

#[test]
fn cpp_streams_and_exceptions_work_as_on_linux() {
    let both = Comparison::new();
    let program = build("cpp/iostreams.cc", "iostreams", &["g++", "-O2", "-static"]);
    assert_eq!(both.same(&program, &["9"], b"").code, 9);
    assert_eq!(both.same(&program, &["uncaught"], b"").code, 128 + 6);
}

#[test]
fn fortran_reads_and_writes_as_on_linux() {
    let both = Comparison::new();
    let program = build("fortran/io.f90", "io", &["gfortran", "-O2", "-static"]);
    assert_eq!(both.same(&program, &["DIR", "5"], b"").code, 5);
}

#[test]
fn rust_programs_work_as_on_linux() {
    let both = Comparison::new();
    for model in ["pie", "static"] {
        let program = rust_program("std_prog", model);
        assert_eq!(both.same(&program, &["DIR", "6"], b"").code, 6);
        assert_eq!(both.same(&program, &["DIR", "panic"], b"").code, 101);
    }
}

#[test]
fn busybox_applets_work_as_on_linux() {
    let both = Comparison::new();
    let text: String = (0..5000)
        .map(|n| format!("{} word{}\n", n * 7919 % 5000, n % 13))
        .collect();
    for dir in [&both.native, &both.exported()] {
        fs::write(dir.join("text"), &text).unwrap();
        fs::create_dir_all(dir.join("tree/a/b")).unwrap();
        fs::write(dir.join("tree/a/file"), "in a tree\n").unwrap();
    }
    let busybox = Path::new(BUSYBOX);
    let applets: &[&[&str]] = &[
        &["echo", "one", "two"],
        &["true"],
        &["false"],
        &["cat", "text"],
        &["cat", "absent"],
        &["wc", "text"],
        &["sort", "-n", "text"],
        &["head", "-n", "3", "text"],
        &["tail", "-n", "3", "text"],
        &["grep", "-c", "word12", "text"],
        &["grep", "absent", "text"],
        &["sed", "s/word/WORD/;5q", "text"],
        &[
            "awk",
            "{ n[$2] += $1 } END { print n[\"word3\"], NR }",
            "text",
        ],
        &["cut", "-d", " ", "-f", "2", "text"],
        &["md5sum", "text"],
        &["sha256sum", "text"],
        &["od", "-c", "tree/a/file"],
        &["gzip", "-k", "text"],
        &["gunzip", "-c", "text.gz"],
        &["cp", "text", "copy"],
        &["cmp", "text", "copy"],
        &["mv", "copy", "tree/moved"],
        &["mkdir", "-p", "tree/c/d/e"],
        &["rmdir", "tree/c/d/e"],
        &["rmdir", "tree"],
        &["touch", "tree/new"],
        &["chmod", "640", "tree/new"],
        &["stat", "-c", "%s %a %F %n", "tree/new", "text"],
        &["find", "tree", "-name", "f*"],
        &["ls", "-a", "tree", "tree/a"],
        &["ls", "/nowhere"],
        &["test", "-d", "tree/a"],
        &["test", "-f", "tree/a"],
        &[
            "dd",
            "if=text",
            "of=part",
            "bs=1000",
            "count=5",
            "skip=2",
            "status=none",
        ],
        &["truncate", "-s", "2500", "part"],
        &["tar", "cf", "tree.tar", "tree/a"],
        &["tar", "tf", "tree.tar"],
        &["rm", "-r", "tree/a"],
        &["expr", "6", "*", "7"],
        &["seq", "1", "2", "9"],
        &["sh", "-c", "cd tree; for f in *; do echo $f; done; exit 4"],
    ];
    for applet in applets {
        both.same(busybox, applet, b"");
    }
    both.same(busybox, &["tr", "a-z", "A-Z"], text.as_bytes());
    both.same(busybox, &["uniq", "-c"], b"a\na\nb\n");
    assert_eq!(tree(&both.exported()), tree(&both.native));
}

/// Every file below `dir` with its content, archives by their names only:
/// they hold times.
fn tree(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut left = vec![dir.to_path_buf()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(dir).unwrap().to_path_buf();
            let is_archive = name
                .extension()
                .is_some_and(|end| end == "tar" || end == "gz");
            if path.is_dir() {
                found.push((name, Vec::new()));
                left.push(path);
            } else if is_archive {
                found.push((name, Vec::new()));
            } else {
                found.push((name, fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}
