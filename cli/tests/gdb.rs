//! Debugging a program in an enclave with the real gdb, and what happens when
//! debuggers misbehave: the program's result is always the same.
//!
//! Needs /dev/kvm, gdb, the kernel image and the other programs of this workspace
//! next to `enclavectl`.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{BUSYBOX, Ended, build, enclavectl, finish, unique_dir, wait};

/// Long enough to be stopped in.
const COUNT: &str = "1500000000";

/// One enclave of its own.
struct Stage {
    home: PathBuf,
}

/// A program that runs there.
struct Running {
    /// How it is started without an enclave.
    command: Vec<PathBuf>,
    child: Child,
    stdout: BufReader<ChildStdout>,
    text: String,
}

impl Stage {
    fn new(ring: &str) -> Self {
        Self::with_cores(ring, "1")
    }

    fn with_cores(ring: &str, cores: &str) -> Self {
        support::require_programs();
        let stage = Self {
            home: unique_dir("gdb"),
        };
        let create = ["create", "e1", "--mem", "64M", "--share-cores"];
        let as_asked = ["--no-prefault", "--ring", ring, "--cores", cores];
        let created = stage.ctl(&[&create[..], &as_asked].concat());
        assert_eq!(created.code, 0, "{}", created.stderr);
        stage
    }

    fn run_dir(&self) -> PathBuf {
        self.home.join("run")
    }

    fn ctl(&self, args: &[&str]) -> Ended {
        finish(enclavectl(&self.run_dir()).args(args), b"")
    }

    /// Starts the program and waits until it computes.
    fn compute(&self) -> Running {
        self.start(vec![steps(), COUNT.into()])
    }

    fn start(&self, command: Vec<PathBuf>) -> Running {
        let mut child = enclavectl(&self.run_dir())
            .args(["run", "e1", "--"])
            .args(&command)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut text = String::new();
        stdout.read_line(&mut text).unwrap();
        Running {
            command,
            child,
            stdout,
            text,
        }
    }

    /// A connection as gdb has it, made by hand.
    fn connect(&self) -> UnixStream {
        const BUSY: i32 = 4;
        let path = self.home.join("gdb.sock");
        let deadline = Instant::now() + Duration::from_secs(60);
        let stream = loop {
            let mut listening = enclavectl(&self.run_dir())
                .args(["gdb", "e1", "--listen"])
                .arg(&path)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut line = String::new();
            let stdout = listening.stdout.take().unwrap();
            BufReader::new(stdout).read_line(&mut line).unwrap();
            assert!(line.starts_with("target remote "), "{line}");
            let stream = UnixStream::connect(&path).unwrap();
            // A debugger that has just gone is still letting go.
            match wait(&mut listening) {
                BUSY => assert!(Instant::now() < deadline, "it stays attached"),
                code => {
                    assert_eq!(code, 0);
                    break stream;
                }
            }
        };
        assert!(!path.exists());
        stream
    }

    /// What gdb prints when it does `commands` after it has connected.
    fn gdb(&self, symbols: &Path, commands: &[&str]) -> String {
        let ctl = enclavectl(&self.run_dir());
        let remote = format!(
            "target remote | ENCLAVE_RUNDIR={} {} gdb e1",
            self.run_dir().display(),
            Path::new(ctl.get_program()).display()
        );
        let mut gdb = Command::new("gdb");
        gdb.args([
            "-q",
            "-nx",
            "-batch",
            "-ex",
            "set pagination off",
            "-ex",
            &remote,
        ]);
        for command in commands {
            gdb.args(["-ex", command]);
        }
        let ended = finish(gdb.arg(symbols), b"");
        assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
        ended.stdout + &ended.stderr
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.ctl(&["destroy", "--all"]);
        self.ctl(&["broker", "stop", "--force"]);
        drop(fs::remove_dir_all(&self.home));
    }
}

impl Running {
    /// Asserts that it ends as it does without an enclave.
    fn ends_as_natively(mut self) {
        self.stdout.read_to_string(&mut self.text).unwrap();
        let (program, arguments) = self.command.split_first().unwrap();
        let native = Command::new(program).args(arguments).output().unwrap();
        assert_eq!(self.text.as_bytes(), native.stdout);
        assert_eq!(wait(&mut self.child), 0);
    }
}

fn steps() -> PathBuf {
    build("c/steps.c", "steps-gdb", &["gcc", "-O1", "-g", "-static"])
}

fn team() -> PathBuf {
    let gcc = ["gcc", "-O1", "-g", "-static", "-pthread"];
    build("c/team.c", "team-gdb", &gcc)
}

/// Sends a packet; the answer's data.
fn ask(stream: &mut UnixStream, data: &str) -> String {
    let sum = data.bytes().fold(0_u8, u8::wrapping_add);
    stream
        .write_all(format!("${data}#{sum:02x}").as_bytes())
        .unwrap();
    answer(stream)
}

fn answer(stream: &mut UnixStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.contains(&b'#') {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        bytes.extend(byte);
    }
    stream.read_exact(&mut [0; 2]).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    text.trim_start_matches(['+', '$'])
        .trim_end_matches('#')
        .to_owned()
}

/// Where a program's `step` is, in hexadecimal.
fn address_of_step(program: &Path) -> String {
    let symbols = finish(Command::new("nm").arg(program), b"").stdout;
    let step = symbols.lines().find(|line| line.ends_with(" T step"));
    let (address, _) = step.unwrap().split_once(' ').unwrap();
    address.to_owned()
}

/// The number behind `name = `.
fn value(text: &str, name: &str) -> u64 {
    let rest = text.split_once(&format!("{name} = ")).unwrap().1;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

#[test]
fn gdb_stops_looks_steps_and_lets_go() {
    for ring in ["0", "3"] {
        let stage = Stage::new(ring);
        let program = stage.compute();
        let text = stage.gdb(
            &steps(),
            &[
                "break step",
                "continue",
                "print nr",
                "print done",
                "backtrace",
                "stepi",
                "print done",
                "finish",
                "delete",
                "detach",
            ],
        );
        assert!(text.contains("Breakpoint 1, step (sum="), "{text}");
        let nr = value(&text, "$1");
        assert_eq!(value(&text, "$2"), nr - 1, "{text}");
        assert_eq!(value(&text, "$3"), nr, "{text}");
        let (_, frames) = text.split_once("#1 ").unwrap();
        assert!(frames.contains(" in main ("), "{text}");
        assert!(text.contains("Value returned is $4 = "), "{text}");
        assert!(text.contains("detached"), "{text}");
        program.ends_as_natively();
        assert_eq!(stage.ctl(&["run", "e1", "--", BUSYBOX, "true"]).code, 0);
    }
}

#[test]
fn each_core_is_a_thread_that_stops_and_steps_with_the_others_at_rest() {
    for ring in ["0", "3"] {
        let stage = Stage::with_cores(ring, "2");
        let program = stage.start(vec![team(), COUNT.into(), "2".into()]);
        let text = stage.gdb(
            &team(),
            &[
                "info threads",
                "break step if who == 1",
                "continue",
                "print who",
                "print nr",
                "stepi",
                "stepi",
                "stepi",
                "finish",
                "delete",
                "break step if who == 0",
                "continue",
                "print who",
                "print nr",
                "print done[0]",
                "thread apply all print $pc != 0",
                "delete",
                "set scheduler-locking on",
                "stepi",
                "detach",
            ],
        );
        for id in ["1", "2"] {
            let line = format!("Thread {id} (core {} of", if id == "1" { 0 } else { 1 });
            assert!(text.contains(&line), "{text}");
        }
        assert_eq!(value(&text, "$1"), 1, "{text}");
        assert!(text.contains("Value returned is $3 = "), "{text}");
        assert_eq!(value(&text, "$4"), 0, "{text}");
        assert_eq!(value(&text, "$6"), value(&text, "$5") - 1, "{text}");
        assert!(text.contains("$7 = 1") && text.contains("$8 = 1"), "{text}");
        assert!(text.contains("detached"), "{text}");
        program.ends_as_natively();
        assert_eq!(stage.ctl(&["run", "e1", "--", BUSYBOX, "true"]).code, 0);
    }
}

#[test]
fn gdb_stops_in_the_kernel_where_its_ring_is_run_by_the_processor() {
    let stage = Stage::new("3");
    let mut program = enclavectl(&stage.run_dir())
        .args(["run", "e1", "--", BUSYBOX, "yes"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = program.stdout.take().unwrap();
    output.read_exact(&mut [0; 2]).unwrap();
    let reading = std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
    let text = stage.gdb(
        &support::kernel_image(),
        &[
            "break syscall_entry",
            "continue",
            "stepi",
            "delete",
            "detach",
        ],
    );
    assert!(text.contains("Breakpoint 1, "), "{text}");
    assert!(text.contains("syscall_entry (frame="), "{text}");
    assert!(text.contains("detached"), "{text}");
    kill_process(Pid::from_child(&program), Signal::TERM).unwrap();
    assert_eq!(wait(&mut program), 128 + 15);
    reading.join().unwrap().unwrap();
}

#[test]
fn a_running_program_is_interrupted_and_a_second_debugger_refused() {
    let stage = Stage::new("auto");
    let program = stage.compute();
    let mut stream = stage.connect();
    assert_eq!(ask(&mut stream, "?"), "T05thread:1;");
    let second = stage.ctl(&["gdb", "e1"]);
    assert_eq!(second.code, 4, "{}", second.stderr);
    stream.write_all(b"$c#63").unwrap();
    stream.write_all(&[3]).unwrap();
    assert_eq!(answer(&mut stream), "T02thread:1;");
    assert_eq!(ask(&mut stream, "D"), "OK");
    program.ends_as_natively();
}

#[test]
fn a_debugger_that_vanishes_leaves_no_breakpoint() {
    let stage = Stage::new("auto");
    let program = stage.compute();
    let mut stream = stage.connect();
    let insert = format!("Z0,{},1", address_of_step(&steps()));
    assert_eq!(ask(&mut stream, &insert), "OK");
    let stop = ask(&mut stream, "c");
    assert_eq!(stop, "T05thread:1;swbreak:;", "{}", ask(&mut stream, "g"));
    drop(stream);
    program.ends_as_natively();
}

#[test]
fn debuggers_that_come_and_go_change_no_result_of_two_cores() {
    let stage = Stage::with_cores("auto", "2");
    let program = stage.start(vec![team(), COUNT.into(), "2".into()]);
    let insert = format!("Z0,{},1", address_of_step(&team()));
    let ways: [&[&str]; 4] = [
        &[&insert, "vCont;c"],
        &["vCont;s:1", "vCont;s:2;c"],
        &[&insert, "vCont;s:2", "vCont;c:1"],
        &["D"],
    ];
    for way in ways.iter().cycle().take(20) {
        let mut stream = stage.connect();
        for request in *way {
            let answer = ask(&mut stream, request);
            let is_stop = answer.starts_with("T05thread:");
            assert!(answer == "OK" || is_stop, "{request}: {answer}");
        }
    }
    program.ends_as_natively();
}

#[test]
fn a_stopped_program_is_killed_and_a_stopped_enclave_destroyed() {
    let stage = Stage::new("auto");
    let mut program = stage.compute();
    let mut stream = stage.connect();
    assert_eq!(ask(&mut stream, "?"), "T05thread:1;");
    kill_process(Pid::from_child(&program.child), Signal::TERM).unwrap();
    assert_eq!(wait(&mut program.child), 128 + 15);
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    let mut program = stage.compute();
    let mut stream = stage.connect();
    assert_eq!(ask(&mut stream, "?"), "T05thread:1;");
    assert_eq!(stage.ctl(&["destroy", "e1"]).code, 0);
    assert_ne!(wait(&mut program.child), 0);
}
