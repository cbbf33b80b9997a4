//! C programs that read with `libxemem`, shared and static, what real programs
//! publish in an enclave and on the Linux backend.
//!
//! Needs /dev/kvm. Libraries and programs are those in `out/` (or `$XASM_OUT`,
//! from `cargo xtask image`), the compiler is the system's.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[expect(dead_code, reason = "builds nothing and needs no busybox")]
mod support;

#[path = "support/both.rs"]
mod both;
#[path = "support/broker.rs"]
mod broker;
#[expect(dead_code, reason = "readers here are in C")]
#[path = "support/producer.rs"]
mod producer;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use xemem_host::{Broker, Hugetlb, SegmentRequest};

use broker::kill_with_keeper;
use producer::{Below, CHUNK, Producer, bench};
use support::{enclavectl, finish, unique_dir, wait};

/// How a program is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Shared,
    Static,
}

fn out() -> PathBuf {
    bench().parent().unwrap().to_owned()
}

/// Compiles a source of `xemem-host/capi`, as its users would.
fn compile(source: &str, link: Link, dir: &Path, more: &[&str]) -> PathBuf {
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("../xemem-host/capi");
    let name = Path::new(source).file_stem().unwrap().to_str().unwrap();
    let program = dir.join(format!("{name}-{link:?}"));
    let mut compile = Command::new("cc");
    compile
        .args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"])
        .arg("-pthread")
        .arg("-I")
        .arg(library.join("include"))
        .arg("-I")
        .arg(library.join("../xpmem/include"))
        .arg(library.join(source))
        .arg("-L")
        .arg(out());
    match link {
        Link::Shared => compile.arg("-lxemem"),
        Link::Static => compile.arg(out().join("libxemem.a")),
    };
    compile.args(more).args(["-lm", "-o"]).arg(&program);
    let compiled = finish(&mut compile, b"");
    assert_eq!(compiled.code, 0, "{}", compiled.stderr);
    program
}

/// A compiled program, in the run directory of a producer or test.
fn command(program: &Path, run_dir: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env("ENCLAVE_RUNDIR", run_dir)
        .env("LD_LIBRARY_PATH", out())
        .env_remove("XEMEM_SOCKET");
    command
}

/// The program that reads what it is told to.
struct Reader {
    program: Child,
    requests: Option<ChildStdin>,
    replies: BufReader<ChildStdout>,
}

impl Reader {
    fn start(run_dir: &Path, link: Link) -> Self {
        let program = compile("tests/programs/reader.c", link, run_dir, &[]);
        let mut command = command(&program, run_dir);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut program = command.spawn().unwrap();
        Self {
            requests: program.stdin.take(),
            replies: BufReader::new(program.stdout.take().unwrap()),
            program,
        }
    }

    fn ask(&mut self, request: &str) -> String {
        let requests = self.requests.as_mut().unwrap();
        writeln!(requests, "{request}").unwrap();
        let mut line = String::new();
        self.replies.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Asks, and knows the answer.
    #[track_caller]
    fn gets(&mut self, request: &str, answer: &str) {
        assert_eq!(self.ask(request), answer, "{request}");
    }

    /// Asks for what is refused, with this number and these words among others.
    #[track_caller]
    fn fails(&mut self, request: &str, errno: i32, words: &str) {
        let answer = self.ask(request);
        let refused = answer.starts_with(&format!("error -{errno} "));
        assert!(refused && answer.contains(words), "{request}: {answer}");
    }

    fn end(mut self) {
        self.requests = None;
        assert_eq!(wait(&mut self.program), 0);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // After an end both fail, which is what is wanted.
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

fn step(producer: &mut Producer, generation: u64) {
    assert_eq!(producer.ask("step q"), format!("ok {generation}"));
}

const ENOENT: i32 = 2;
const EINVAL: i32 = 22;
const ENODATA: i32 = 61;
const ECONNRESET: i32 = 104;
const ETIMEDOUT: i32 = 110;
const ESTALE: i32 = 116;

fn a_c_program_follows_each_generation(below: Below) {
    let mut producer = Producer::bare(below);
    let make = format!("make q {} {CHUNK} 6 discard-newest 0 1", 4 * CHUNK);
    assert!(producer.ask(&make).starts_with("ok "));
    let mut reader = Reader::start(&producer.run_dir, Link::Shared);
    reader.fails("open nobody 1 0", ENOENT, "nobody");
    reader.fails("open nobody 1 1", ETIMEDOUT, "nobody");
    reader.fails("open q 3 0", EINVAL, "XEMEM_EVERY");
    let opened = reader.ask("open q 2 60000");
    assert!(opened.ends_with(&format!(" {} 6", 4 * CHUNK)), "{opened}");
    reader.fails("next 1", ETIMEDOUT, "within the time");
    reader.gets("poll 0", "ok 0");
    step(&mut producer, 1);
    reader.gets("poll 60000", "ok 1");
    reader.gets("next 60000", "ok 1 1 1");
    for generation in 2..=4 {
        step(&mut producer, generation);
        reader.gets("next 60000", &format!("ok {0} {0} {0}", generation));
    }
    // All four are held and mapped, each at addresses of its own.
    for (number, generation) in (1..=4).enumerate() {
        let want = format!("ok {generation} {generation} 1");
        reader.gets(&format!("look {number}"), &want);
    }
    reader.gets("variables 0", "ok");
    reader.fails("find 0 flux", ENOENT, "no variable \"flux\"");
    step(&mut producer, 5);
    let refused = producer.ask("step q");
    assert!(
        refused.starts_with("error "),
        "every bank is held: {refused}"
    );
    reader.gets("release 0", "ok");
    reader.gets("next 60000", "ok 5 5 5");
    // Closed, the stream leaves its snapshots as they are.
    reader.gets("close", "ok");
    reader.gets("look 3", "ok 5 5 1");
    reader.end();
}

fn generations_are_read_by_number_and_compared(below: Below) {
    let mut producer = Producer::bare(below);
    let make = format!("make q {} {CHUNK} 8 discard-newest 0 4", 4 * CHUNK);
    assert!(producer.ask(&make).starts_with("ok "));
    assert!(producer.ask("publish q 1 4").starts_with("ok "));
    for generation in 2..=6 {
        step(&mut producer, generation);
    }
    let mut reader = Reader::start(&producer.run_dir, Link::Static);
    assert!(reader.ask("open q 1 60000").starts_with("ok "));
    reader.gets("generations", "ok 4 3 6");
    reader.gets("at 4", "ok 4 4 4");
    reader.fails("at 2", ENOENT, "");
    reader.fails("at 7", ENOENT, "");
    reader.gets("next 60000", "ok 6 6 6");
    // Steps write to the first chunk only, the publish before them to all.
    let (first, all) = (format!("ok 0+{CHUNK}"), format!("ok 0+{}", 4 * CHUNK));
    reader.gets("diff 4 6", &first);
    reader.gets("diff 6 4", &first);
    reader.gets("diff 5 5", "ok");
    assert!(producer.ask("publish q 1 4").starts_with("ok "));
    reader.gets("diff 4 7", &all);
    reader.gets("changed 1 5", &first);
    reader.fails("diff 4 9", ENOENT, "");
    reader.fails("diff 0 4", ENOENT, "");
    // What has neither record nor frames any more nobody knows, nor guesses.
    for _ in 0..3 {
        assert!(producer.ask("publish q 30 4").starts_with("ok "));
    }
    reader.fails("diff 2 3", ENODATA, "not known any more");
    reader.gets("look 0", "ok 4 4 1");
    reader.end();
}

fn what_did_not_change_is_not_mapped_again(below: Below) {
    const CHUNKS: u64 = 64;
    let mut producer = Producer::bare(below);
    let make = format!("make q {} {CHUNK} 4 discard-newest 0 1", CHUNKS * CHUNK);
    assert!(producer.ask(&make).starts_with("ok "));
    assert!(producer.ask("publish q 1 64").starts_with("ok "));
    let mut reader = Reader::start(&producer.run_dir, Link::Shared);
    assert!(reader.ask("open q 1 60000").starts_with("ok "));
    assert!(reader.ask("next 60000").starts_with("ok 1 "));
    reader.gets("counts", &format!("ok 0 {CHUNKS} 0"));
    for generation in 2..=9 {
        reader.gets("release 0", "ok");
        step(&mut producer, generation);
        assert!(
            reader
                .ask("next 60000")
                .starts_with(&format!("ok {generation} "))
        );
        let (again, reused) = (generation - 1, (generation - 1) * (CHUNKS - 1));
        reader.gets("counts", &format!("ok 0 {} {reused}", CHUNKS + again));
    }
    reader.end();
}

fn the_end_and_what_comes_after_it_are_told(below: Below) {
    let mut producer = Producer::new(below, 4, "discard-newest 0");
    step(&mut producer, 1);
    let mut reader = Reader::start(&producer.run_dir, Link::Shared);
    assert!(reader.ask("open q 1 60000").starts_with("ok "));
    reader.gets("next 60000", "ok 1 1 1");
    step(&mut producer, 2);
    assert_eq!(producer.ask("end q"), "ok");
    // Post mortem: who comes late finds the last generation, then the end.
    let mut late = Reader::start(&producer.run_dir, Link::Static);
    late.fails("open q 257 0", ENOENT, "q");
    assert!(late.ask("open q 1 0").starts_with("ok "));
    late.gets("next 60000", "ok 2 2 2");
    late.gets("next 60000", "ok end 1");
    late.end();
    reader.gets("next 60000", "ok 2 2 2");
    reader.gets("next 60000", "ok end 1");
    reader.gets("look 0", "ok 1 1 1");
    reader.end();
}

fn arenas_are_attached_by_xemems_verbs(below: Below) {
    let mut producer = Producer::new(below, 3, "discard-newest 0");
    step(&mut producer, 1);
    step(&mut producer, 2);
    for link in [Link::Shared, Link::Static] {
        let source = "tests/programs/verbs.c";
        let program = compile(source, link, &producer.run_dir, &["-lxpmem"]);
        let ended = finish(command(&program, &producer.run_dir).arg("q"), b"");
        assert_eq!(
            (ended.code, ended.stdout.as_str()),
            (0, "2\n"),
            "{}",
            ended.stderr
        );
    }
}

/// The process of a broker.
fn process(broker: &mut Broker) -> Pid {
    let pid = i32::try_from(broker.status().unwrap().pid).unwrap();
    Pid::from_raw(pid).unwrap()
}

fn a_broker_that_is_killed_is_followed_by_another(below: Below) {
    let mut producer = Producer::new(below, 4, "discard-newest 0");
    let mut reader = Reader::start(&producer.run_dir, Link::Shared);
    assert!(reader.ask("open q 2 60000").starts_with("ok "));
    step(&mut producer, 1);
    reader.gets("next 60000", "ok 1 1 1");
    let mut broker = Broker::connect(&producer.run_dir.join("xemem.sock")).unwrap();
    for generation in 2..=5 {
        let before = process(&mut broker);
        kill_process(before, Signal::KILL).unwrap();
        step(&mut producer, generation);
        reader.gets("next 60000", &format!("ok {0} {0} {0}", generation));
        assert_ne!(process(&mut broker), before);
        // What it held over the broker's death it still holds.
        let held = generation - 1;
        reader.gets("look 0", &format!("ok {held} {held} 1"));
        reader.gets("release 0", "ok");
    }
    reader.end();
}

fn a_dead_broker_is_an_error_and_no_signal(below: Below) {
    let mut producer = Producer::new(below, 4, "discard-newest 0");
    step(&mut producer, 1);
    let mut reader = Reader::start(&producer.run_dir, Link::Shared);
    assert!(reader.ask("open q 1 60000").starts_with("ok "));
    reader.gets("next 60000", "ok 1 1 1");
    let mut broker = Broker::connect(&producer.run_dir.join("xemem.sock")).unwrap();
    kill_with_keeper(process(&mut broker));
    while broker.status().is_ok() {}
    reader.fails("next 60000", ECONNRESET, "the broker is gone");
    reader.fails("generations", ECONNRESET, "the broker is gone");
    // What is mapped stays what it was.
    reader.gets("look 0", "ok 1 1 1");
    reader.gets("release 0", "ok");
    reader.gets("close", "ok");
    reader.end();
}

fn forked_children_read_and_ask_for_nothing(below: Below) {
    let mut producer = Producer::new(below, 4, "discard-newest 0");
    step(&mut producer, 1);
    let mut reader = Reader::start(&producer.run_dir, Link::Shared);
    assert!(reader.ask("open q 1 60000").starts_with("ok "));
    reader.gets("next 60000", "ok 1 1 1");
    reader.gets("fork", &format!("ok 1 -{ESTALE} {ESTALE}"));
    // Its end took nothing from us.
    step(&mut producer, 2);
    reader.gets("look 0", "ok 1 1 1");
    reader.gets("next 60000", "ok 2 2 2");
    reader.end();
}

fn many_threads_read_at_once(below: Below) {
    let mut producer = Producer::new(below, 8, "discard-newest 0");
    step(&mut producer, 1);
    for link in [Link::Shared, Link::Static] {
        let mut reader = Reader::start(&producer.run_dir, link);
        reader.gets("threads q", &format!("ok {}", 6 * 40));
        reader.end();
    }
    step(&mut producer, 2);
    assert_eq!(producer.listed()["leases"], 0, "all went back");
}

both::on_both!(
    a_c_program_follows_each_generation
    a_broker_that_is_killed_is_followed_by_another
    a_dead_broker_is_an_error_and_no_signal
    forked_children_read_and_ask_for_nothing
    many_threads_read_at_once
    generations_are_read_by_number_and_compared
    what_did_not_change_is_not_mapped_again
    the_end_and_what_comes_after_it_are_told
    arenas_are_attached_by_xemems_verbs
);

/// A run directory and a broker for tests without a producer.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        Self(unique_dir("consumer"))
    }

    fn broker(&self) -> Broker {
        let program = out().join("xemem-broker");
        Broker::connect_or_start(&self.0.join("xemem.sock"), &program).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        finish(enclavectl(&self.0).args(["destroy", "--all"]), b"");
        finish(enclavectl(&self.0).args(["broker", "stop", "--force"]), b"");
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn segments_and_signals_work_from_c() {
    for link in [Link::Shared, Link::Static] {
        let place = Place::new();
        let mut broker = place.broker();
        let bell = broker.make_segment(&SegmentRequest {
            name: "bell".to_owned(),
            signallable: true,
            hugetlb: Hugetlb::No,
            ..SegmentRequest::default()
        });
        let bell = bell.unwrap();
        let program = compile("tests/programs/verbs.c", link, &place.0, &["-lxpmem"]);
        let mut program = command(&program, &place.0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let output = program.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut said).unwrap();
        assert_eq!(said, "rung\n", "{link:?}");
        broker.remove(bell.segid).unwrap();
        drop(program.stdin.take());
        assert_eq!(wait(&mut program), 0, "{link:?}");
    }
}

/// What a spectrum program says of one generation.
struct Said {
    line: Value,
    /// Read to the last bit, as the JSON parser does not.
    spectrum: Vec<f64>,
}

/// The JSON lines of a spectrum program, by generation.
fn by_generation(lines: &str) -> BTreeMap<u64, Said> {
    let said = lines.lines().map(|text| {
        let line: Value = serde_json::from_str(text).unwrap();
        let numbers = text.split_once("\"spectrum\":[").map(|(_, rest)| rest);
        let numbers = numbers.and_then(|rest| rest.split_once(']'));
        let numbers = numbers.map_or("", |(numbers, _)| numbers).split(',');
        let spectrum = numbers.filter_map(|number| number.parse().ok()).collect();
        Said { line, spectrum }
    });
    let steps = said.filter(|said| said.line["type"] == "step");
    let steps = steps.map(|said| (said.line["generation"].as_u64().unwrap(), said));
    steps.collect()
}

/// Compares what two programs say of the generations that both have seen;
/// returns how many these are.
fn agree(c: &BTreeMap<u64, Said>, rust: &BTreeMap<u64, Said>) -> usize {
    let both = c.iter().filter_map(|(g, line)| Some((line, rust.get(g)?)));
    let mut count = 0;
    for (ours, theirs) in both {
        for key in ["step", "bytes", "peak_group"] {
            assert_eq!(ours.line[key], theirs.line[key], "{key}");
        }
        for key in ["checksum_ok", "spectrum_ok", "valid"] {
            assert_eq!(ours.line[key], true, "{key}");
        }
        // Both add in the order of memory.
        assert_eq!(ours.spectrum, theirs.spectrum);
        assert!(!ours.spectrum.is_empty());
        count += 1;
    }
    count
}

fn spectra(mut simulation: Command, place: &Place) {
    let programs = [
        compile("examples/spectrum.c", Link::Shared, &place.0, &[]),
        compile("examples/spectrum.c", Link::Static, &place.0, &[]),
        out().join("spectrum"),
    ];
    let all = programs.each_ref().map(|program| {
        let mut command = command(program, &place.0);
        command.arg("snap/flux").stdout(Stdio::piped());
        if program.ends_with("spectrum") {
            command.arg("--json");
        }
        command
    });
    let live = all.map(|mut command| std::thread::spawn(move || finish(&mut command, b"")));
    let ended = finish(simulation.args(["--banks", "8", "--json-summary"]), b"");
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let [shared, linked, rust] = live.map(|reader| {
        let ended = reader.join().unwrap();
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        by_generation(&ended.stdout)
    });
    assert!(agree(&shared, &rust) > 0, "the shared library");
    assert!(agree(&linked, &rust) > 0, "the static library");
    // After its end there is one generation, the same for everybody.
    let last = programs.each_ref().map(|program| {
        let mut command = command(program, &place.0);
        command.arg("snap/flux");
        command.args(match program.ends_with("spectrum") {
            true => &["--json", "--timeout", "0"][..],
            false => &["0"],
        });
        by_generation(&finish(&mut command, b"").stdout)
    });
    assert_eq!(last[0].len(), 1);
    assert_eq!(
        (agree(&last[0], &last[2]), agree(&last[1], &last[2])),
        (1, 1)
    );
}

#[test]
fn the_spectrum_in_c_is_that_in_rust_on_linux() {
    let place = Place::new();
    let mut simulation = command(&out().join("snap-mini"), &place.0);
    simulation.env("XASM_BACKEND", "linux").env("PATH", out());
    spectra(simulation, &place);
}

#[test]
fn the_spectrum_in_c_is_that_in_rust_with_an_enclave() {
    let place = Place::new();
    let create = "create s --cores 1 --share-cores --mem 256M --no-prefault";
    let created = finish(enclavectl(&place.0).args(create.split(' ')), b"");
    assert_eq!(created.code, 0, "{}", created.stderr);
    let mut simulation = enclavectl(&place.0);
    simulation
        .args(["run", "s", "--"])
        .arg(out().join("snap-mini"));
    spectra(simulation, &place);
}

#[test]
fn a_broker_is_started_for_a_reader_that_comes_first() {
    let place = Place::new();
    let mut reader = Reader::start(&place.0, Link::Shared);
    reader.fails("open q 1 1", ETIMEDOUT, "q");
    let mut broker = Broker::connect(&place.0.join("xemem.sock")).unwrap();
    let pid = broker.status().unwrap().pid;
    assert_ne!(pid, reader.program.id(), "a process of its own");
    let lookup = std::thread::spawn(move || reader.ask("open heat 1 60000"));
    let heat = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guests/libxasm");
    let program = place.0.join("heat");
    let mut compile = Command::new("cc");
    compile
        .args(["-static", "-O2", "-I"])
        .arg(heat.join("include"));
    compile
        .arg(heat.join("examples/three_calls.c"))
        .arg("-L")
        .arg(out());
    let compiled = finish(compile.args(["-lxasm", "-o"]).arg(&program), b"");
    assert_eq!(compiled.code, 0, "{}", compiled.stderr);
    let ended = finish(command(&program, &place.0).args(["20", "8", "4"]), b"");
    assert!(ended.stdout.contains("published"), "{}", ended.stdout);
    let opened = lookup.join().unwrap();
    assert!(opened.starts_with("ok "), "{opened}");
    // Its variable, described in C and found in C.
    let mut reader = Reader::start(&place.0, Link::Static);
    assert!(reader.ask("open heat 1 0").starts_with("ok "));
    assert!(reader.ask("next 60000").starts_with("ok "));
    reader.gets("variables 0", "ok temperature");
    reader.gets("find 0 temperature", "ok 1 2 C 4 8 100");
    reader.end();
}
