//! `enclavectl selftest` under KVM: what its report holds and does not hold,
//! failures and hangs shown as such, and nothing left however it ends. Needs
//! /dev/kvm.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[expect(dead_code, reason = "builds nothing and needs no busybox")]
mod support;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use enclave_abi::boot::KERNEL_MAGIC;
use enclave_abi::layout::KERNEL_VIRT;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use support::{Ended, enclavectl, finish, kernel_image, require_programs, unique_dir, wait};

/// Longest wait for something that must happen.
const PATIENCE: Duration = Duration::from_secs(30);
/// `jmp .`
const JUMP_TO_ITSELF: [u8; 2] = [0xeb, 0xfe];
/// What the kernel's heap test expects to have written, its last digit left
/// out: so it stands as it is in the image, in data or in an instruction.
const HEAP_TEXT: &[u8; 8] = b"33283350";
/// Pause between two looks at something without a descriptor to wait on.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A directory for everything that a self-test makes.
struct Stage {
    home: PathBuf,
}

impl Stage {
    fn new() -> Self {
        require_programs();
        Self {
            home: unique_dir("self"),
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = enclavectl(&self.home.join("run"));
        command
            .arg("selftest")
            .args(args)
            .current_dir(&self.home)
            .env("TMPDIR", &self.home)
            .env_remove("XDG_RUNTIME_DIR");
        command
    }

    fn run(&self, args: &[&str]) -> Ended {
        finish(&mut self.command(args), b"")
    }

    /// A self-test of a kernel that `change` has spoiled.
    fn spoiled(&self, args: &[&str], change: Change) -> Command {
        let mut image = fs::read(kernel_image()).unwrap();
        change(&mut image);
        let path = self.home.join("spoiled-kernel");
        fs::write(&path, image).unwrap();
        let mut command = self.command(args);
        command.env("ENCLAVE_KERNEL", path);
        command
    }

    /// A self-test whose machine never says a word.
    fn hung(&self, args: &[&str]) -> Command {
        self.spoiled(args, |image| {
            let entry = number(image, header(image) + 16, 8);
            stop_at(image, entry);
        })
    }

    /// Starts one that hangs, and waits until its machine is there.
    fn caught(&self) -> Child {
        let mut command = self.hung(&["--ring", "auto"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null());
        let child = child.spawn().unwrap();
        self.until("a machine", || {
            self.private().is_some_and(|private| {
                fs::read(private.join("enclaves/selftest/console.log")).is_ok()
            })
        });
        child
    }

    /// The private run directory of the self-test that runs.
    fn private(&self) -> Option<PathBuf> {
        let mut entries = fs::read_dir(&self.home).unwrap().flatten();
        let found = entries.find(|entry| {
            let name = entry.file_name();
            name.as_bytes().starts_with(b"enclavectl-selftest-")
        });
        found.map(|entry| entry.path())
    }

    /// Processes that were started with this directory as theirs.
    fn processes(&self) -> Vec<String> {
        let mut wanted = b"TMPDIR=".to_vec();
        wanted.extend_from_slice(self.home.as_os_str().as_bytes());
        let belongs = |process: &PathBuf| {
            let environ = fs::read(process.join("environ")).unwrap_or_default();
            environ.split(|&byte| byte == 0).any(|one| one == wanted)
        };
        let all = fs::read_dir("/proc").unwrap().flatten();
        all.map(|entry| entry.path())
            .filter(belongs)
            .map(|process| {
                let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
                format!("{} {}", process.display(), name.trim())
            })
            .collect()
    }

    #[track_caller]
    fn until(&self, what: &str, is_there: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_there() {
            assert!(
                Instant::now() < deadline,
                "{what} never came; {:?} lives in {:?}",
                self.processes(),
                self.private()
            );
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// Nothing of a self-test is left at this moment.
    #[track_caller]
    fn is_clear(&self) {
        assert_eq!(self.processes(), Vec::<String>::new());
        assert_eq!(self.private(), None);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.is_clear();
        }
        fs::remove_dir_all(&self.home).ok();
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> usize {
    let mut windows = bytes.windows(wanted.len());
    windows.position(|window| window == wanted).unwrap()
}

/// A little-endian number of `len` bytes.
fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    let digits = bytes[at..at + len].iter().rev();
    digits.fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// Where the kernel's header stands in the file, and with it the image.
fn header(image: &[u8]) -> usize {
    find(image, &KERNEL_MAGIC.to_le_bytes())
}

/// Puts a jump to itself at a virtual address.
fn stop_at(image: &mut [u8], address: u64) {
    let at = header(image) + usize::try_from(address - KERNEL_VIRT).unwrap();
    image[at..at + JUMP_TO_ITSELF.len()].copy_from_slice(&JUMP_TO_ITSELF);
}

/// What is done to a kernel image.
type Change = fn(&mut [u8]);

/// Makes the heap test expect another text.
fn expect_another_text(image: &mut [u8]) {
    let texts = image.windows(HEAP_TEXT.len()).enumerate();
    let found = texts.filter(|(_, text)| text == HEAP_TEXT);
    let places: Vec<usize> = found.map(|(at, _)| at).collect();
    assert!(!places.is_empty(), "the kernel's heap test has changed");
    for at in places {
        image[at] = b'9';
    }
}

fn hang_in_heap_test(image: &mut [u8]) {
    let test = function(image, "heap_holds");
    stop_at(image, test);
}

/// Address of the function whose symbol contains `part` (ELF-64 object file
/// format, chapters 2 and 4: section headers and symbol table).
fn function(image: &[u8], part: &str) -> u64 {
    const SYMTAB: u64 = 2;
    let field = |at: usize, len| usize::try_from(number(image, at, len)).unwrap();
    let (sections, size, count) = (field(0x28, 8), field(0x3a, 2), field(0x3c, 2));
    let section = |index: usize| sections + index * size;
    let symtab = (0..count)
        .map(section)
        .find(|at| number(image, at + 4, 4) == SYMTAB);
    let symtab = symtab.expect("the kernel image has no symbols");
    let names = field(section(field(symtab + 0x28, 4)) + 0x18, 8);
    let (begin, len) = (field(symtab + 0x18, 8), field(symtab + 0x20, 8));
    let mut symbols = (begin..begin + len).step_by(24);
    let found = symbols.find(|&symbol| {
        let name = &image[names + field(symbol, 4)..];
        let name = &name[..find(name, b"\0")];
        name.windows(part.len())
            .any(|window| window == part.as_bytes())
    });
    number(image, found.expect("no such function") + 8, 8)
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// The worker of the front `child`.
fn worker(child: &Child) -> Pid {
    let id = child.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    let mut children = children.split_whitespace().map(|pid| pid.parse().unwrap());
    let found = Pid::from_raw(children.next().unwrap()).unwrap();
    assert_eq!(children.next(), None);
    found
}

#[track_caller]
fn report_of(text: &str) -> Value {
    let document: Value = serde_json::from_str(text).unwrap();
    assert_eq!(document["schema"], 1);
    document["selftest"].clone()
}

#[test]
fn every_self_test_passes_in_both_modes_and_the_report_says_where() {
    let stage = Stage::new();
    let ended = stage.run(&["--json"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    stage.is_clear();
    let report = report_of(&ended.stdout);
    let rows = report["tests"].as_array().unwrap();
    for ring in ["ring0", "ring3"] {
        let machine = &report["machines"][ring];
        assert_eq!(machine["kernel_mode"], ring);
        assert!(machine["platform"].is_string());
        assert!(machine["cpu_features"].is_array());
        let count = machine["selftest_count"].as_u64().unwrap();
        let rows = rows.iter().filter(|row| row["ring"] == ring);
        let numbers: Vec<u64> = rows.filter_map(|row| row["number"].as_u64()).collect();
        assert_eq!(numbers, (1..=count).collect::<Vec<_>>(), "{ring}");
    }
    for row in rows {
        match row["verdict"].as_str().unwrap() {
            "passed" => assert_eq!(row["why"], ""),
            "not-covered" => assert_ne!(row["why"], ""),
            other => panic!("{other}: {row}"),
        }
        assert_ne!(row["name"], "a self-test", "{row}");
    }
    let passed = report["summary"]["passed"].as_u64().unwrap();
    assert!(passed >= 4, "{passed} passed");
    let facts = &report["facts"];
    assert_eq!(facts["versions"]["abi"], enclave_abi::ABI_VERSION);
    assert_eq!(facts["host_kernel"]["system"], "Linux");
    assert!(facts["cpu"]["logical_cores"].as_u64().unwrap() > 0);
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.iter().any(|check| check["name"] == "kvm"));
}

#[test]
fn a_report_in_a_file_tells_nothing_of_user_host_or_directories() {
    let stage = Stage::new();
    let mut command = stage.command(&["--ring", "auto", "--output", "report.txt"]);
    command
        .env("USER", "somebody")
        .env("HOME", "/home/somebody")
        .env("SECRET", "xyzzy");
    let ended = finish(&mut command, b"");
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let report = fs::read_to_string(stage.home.join("report.txt")).unwrap();
    for part in [
        "versions ",
        "kernel ",
        "cpu ",
        "kvm ",
        "memory ",
        "platform ",
        "passed",
    ] {
        assert!(report.contains(part), "{part}: {report}");
    }
    assert!(
        ended.stdout.contains("the kernel comes up"),
        "{}",
        ended.stdout
    );
    assert!(!ended.stdout.contains("versions"), "{}", ended.stdout);
    let home = stage.home.to_str().unwrap();
    for secret in ["somebody", "xyzzy", home, env!("CARGO_BIN_EXE_enclavectl")] {
        assert!(!report.contains(secret), "{secret}: {report}");
    }
    // As a word: a short name is a part of many.
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let mut words = report.split(|c: char| !(c.is_alphanumeric() || "-_".contains(c)));
    assert!(
        host.len() < 3 || !words.any(|word| word == host),
        "{report}"
    );
    let left = |name: &str| stage.home.join(name).exists();
    assert!(!left("report.txt.partial"));
}

#[test]
fn a_self_test_that_does_not_exist_fails_in_the_words_of_the_kernel() {
    let stage = Stage::new();
    let ended = stage.run(&["--only", "4000000000", "--ring", "auto"]);
    assert_eq!(ended.code, 1, "{}", ended.stdout);
    assert!(ended.stderr.contains("1 of 2 failed"), "{}", ended.stderr);
    assert_eq!(ended.stderr.lines().count(), 3, "{}", ended.stderr);
    let line = ended.stdout.lines().find(|line| line.starts_with("FAIL"));
    assert!(line.unwrap().contains("there is no such test"), "{line:?}");
    assert!(ended.stdout.contains("console of "), "{}", ended.stdout);
    assert!(ended.stdout.contains("  | "), "{}", ended.stdout);
}

#[test]
fn self_tests_are_listed_and_chosen_by_name() {
    let stage = Stage::new();
    let listed = stage.run(&["--list", "--json"]);
    let list: Value = serde_json::from_str(&listed.stdout).unwrap();
    let list = list["selftests"].as_array().unwrap();
    let wanted = list.last().unwrap();
    let name = wanted["name"].as_str().unwrap().to_uppercase();
    let ended = stage.run(&["--only", &name, "--ring", "auto", "--json"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let report = report_of(&ended.stdout);
    let rows = report["tests"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "{rows:?}");
    assert_eq!(rows[1]["number"], wanted["number"]);
    assert_eq!(rows[1]["name"], wanted["name"]);
}

#[test]
fn choices_that_cannot_be_are_usage_errors() {
    let stage = Stage::new();
    for args in [
        &["--only", "0"][..],
        &["--only", ""],
        &["--only", "99999999999"],
        &["--ring", "1"],
        &["--timeout", "0"],
        &["--list", "--only", "1"],
        &["--only", "a name that no self-test has"],
    ] {
        let ended = stage.run(args);
        assert_eq!(ended.code, 2, "{args:?}: {}", ended.stderr);
        assert_eq!(ended.stdout, "", "{args:?}");
        stage.is_clear();
    }
}

#[test]
fn a_report_that_cannot_be_written_or_a_kernel_that_is_none_ends_it_at_once() {
    let stage = Stage::new();
    let ended = stage.run(&["--output", "nowhere/report"]);
    assert_eq!(ended.code, 3, "{}", ended.stderr);
    assert_eq!(ended.stdout, "");
    stage.is_clear();
    // A device is written to, and never replaced by a file.
    let full = stage.home.join("full");
    std::os::unix::fs::symlink("/dev/full", &full).unwrap();
    let ended = stage.run(&["--output", "full"]);
    assert_eq!(ended.code, 6, "{}", ended.stderr);
    assert!(fs::symlink_metadata(&full).unwrap().is_symlink());
    stage.is_clear();
    fs::write(stage.home.join("text"), "no kernel").unwrap();
    let ended = stage.run(&["--kernel", "text"]);
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(ended.stdout.contains("FAIL"), "{}", ended.stdout);
}

#[test]
fn a_machine_that_hangs_is_killed_and_named() {
    let stage = Stage::new();
    let begin = Instant::now();
    let ended = finish(&mut stage.hung(&["--ring", "auto", "--timeout", "6"]), b"");
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(
        ended.stderr.contains("the kernel comes up"),
        "{}",
        ended.stderr
    );
    let line = ended.stdout.lines().find(|line| line.starts_with("FAIL"));
    assert!(line.unwrap().contains("hung: no report within"), "{line:?}");
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
}

#[test]
fn a_self_test_that_fails_or_hangs_is_one_line_of_the_report_with_its_console() {
    let stage = Stage::new();
    let changes: [(Change, _, _); 2] = [
        (expect_another_text, "FAILED", "60"),
        (hang_in_heap_test, "hung: no report within", "8"),
    ];
    for (change, verdict, timeout) in changes {
        let args = ["--ring", "auto", "--json", "--timeout", timeout];
        let ended = finish(&mut stage.spoiled(&args, change), b"");
        assert_eq!(ended.code, 1, "{}", ended.stderr);
        let report = report_of(&ended.stdout);
        let rows = report["tests"].as_array().unwrap();
        let failed: Vec<&Value> = rows
            .iter()
            .filter(|row| row["verdict"] == "failed")
            .collect();
        assert_eq!(failed.len(), 1, "{failed:?}");
        assert!(
            failed[0]["why"].as_str().unwrap().contains(verdict),
            "{failed:?}"
        );
        assert_eq!(failed[0]["name"], "the heap holds what is put there");
        let console = failed[0]["console"].as_str().unwrap();
        assert!(console.contains("enclave-kernel "), "{console}");
        assert!(
            rows.iter().any(|row| row["verdict"] == "passed"),
            "{rows:?}"
        );
        stage.is_clear();
    }
}

#[test]
fn an_interrupt_leaves_nothing() {
    let stage = Stage::new();
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let mut child = stage.caught();
        kill_process(pid(&child), signal).unwrap();
        assert_eq!(wait(&mut child), 128 + signal.as_raw());
        stage.is_clear();
    }
}

#[test]
fn a_killed_front_leaves_nothing() {
    let stage = Stage::new();
    let mut child = stage.caught();
    child.kill().unwrap();
    child.wait().unwrap();
    stage.until("the end", || {
        stage.processes().is_empty() && stage.private().is_none()
    });
}

#[test]
fn a_killed_worker_leaves_nothing() {
    let stage = Stage::new();
    let mut child = stage.caught();
    kill_process(worker(&child), Signal::KILL).unwrap();
    assert_eq!(wait(&mut child), 1);
    stage.is_clear();
}

/// A complete installation, as `cargo xtask image` makes it, of the programs
/// under test.
fn install(into: &Path) -> PathBuf {
    let tested = Path::new(env!("CARGO_BIN_EXE_enclavectl"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let out = std::env::var_os("XASM_OUT").map_or_else(|| root.join("out"), PathBuf::from);
    fs::create_dir(into).unwrap();
    for name in ["enclavectl", "enclave-vmm", "xemem-broker"] {
        fs::copy(tested.with_file_name(name), into.join(name)).unwrap();
    }
    for name in ["snap-mini", "spectrum"] {
        let program = out.join(name);
        let shown = program.display();
        assert!(
            program.is_file(),
            "{shown} is missing; try: cargo xtask image"
        );
        fs::copy(&program, into.join(name)).unwrap();
    }
    into.join("enclavectl")
}

#[test]
fn beside_the_demos_programs_snapshots_are_published_and_verified() {
    let stage = Stage::new();
    let ctl = install(&stage.home.join("bin"));
    let plain = stage.command(&["--json", "--only", "end to end"]);
    let mut command = Command::new(ctl);
    command.args(plain.get_args()).current_dir(&stage.home);
    for (name, value) in plain
        .get_envs()
        .filter_map(|(name, value)| Some((name, value?)))
    {
        command.env(name, value);
    }
    // Another broker's, which must not be asked.
    command.env("XEMEM_SOCKET", "/nonexistent/socket");
    command.env_remove("XDG_RUNTIME_DIR");
    let ended = finish(&mut command, b"");
    assert_eq!(ended.code, 0, "{}", ended.stdout);
    let report = report_of(&ended.stdout);
    let rows = report["tests"].as_array().unwrap();
    assert_eq!(rows.len(), 4, "{rows:?}");
    assert!(
        rows.iter().all(|row| row["verdict"] == "passed"),
        "{rows:?}"
    );
}
