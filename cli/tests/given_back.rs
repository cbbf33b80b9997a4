//! A writer of a segment on 2 MiB pages gives one back to the host, while a
//! program in an enclave has it attached: zeros while the host has another page,
//! else the end of that program, with a reason, and of nothing else.
//!
//! Needs /dev/kvm, and root for huge pages, all of which it takes for a moment.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[path = "support/language.rs"]
#[expect(dead_code, reason = "compiles only")]
mod language;
#[expect(dead_code, reason = "builds no other programs")]
mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{BUSYBOX, enclavectl, finish, require_programs, unique_dir, wait};
use xemem_host::{Broker, Hugetlb, SegmentRequest};

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
const PAGE: u64 = 2 << 20;

fn pool(file: &str) -> u64 {
    let text = fs::read_to_string(format!("{POOL}/{file}")).unwrap();
    text.trim().parse().unwrap()
}

/// Huge pages for the test, under the lock of all who change the pool.
struct Pages {
    file: fs::File,
    before: u64,
}

impl Pages {
    fn add(count: u64) -> Self {
        let mut file = fs::File::options()
            .read(true)
            .write(true)
            .open(format!("{POOL}/nr_hugepages"))
            .expect("root may change the pool");
        file.lock().unwrap();
        let before = pool("nr_hugepages");
        write!(file, "{}", before + count).unwrap();
        assert!(
            pool("free_hugepages") >= count,
            "the host has memory for them"
        );
        Self { file, before }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let _ = write!(self.file, "{}", self.before);
    }
}

/// Everything that is free; it comes back when this is dropped.
fn all_free_pages() -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let taken = memfd_create("all", flags).unwrap();
    let bytes = pool("free_hugepages") * PAGE;
    ftruncate(&taken, bytes).unwrap();
    // Those that somebody has reserved are not to be had.
    for at in (0..bytes).step_by(usize::try_from(PAGE).unwrap()) {
        let _ = fallocate(&taken, FallocateFlags::empty(), at, PAGE);
    }
    taken
}

/// An enclave whose program has a segment of ours attached.
struct Stage {
    run_dir: PathBuf,
    program: Child,
    memfd: OwnedFd,
    _broker: Broker,
    _pages: Pages,
}

impl Stage {
    fn new(ring: &str, program: &Path, argument: &str) -> Self {
        require_programs();
        let run_dir = unique_dir("given-back");
        let pages = Pages::add(2);
        let create = format!(
            "create b --cores 1 --share-cores --mem 64M --no-prefault --backing small --ring {ring}"
        );
        let created = finish(enclavectl(&run_dir).args(create.split(' ')), b"");
        assert_eq!(created.code, 0, "{}", created.stderr);
        let mut broker = Broker::connect(&run_dir.join("xemem.sock")).unwrap();
        let request = SegmentRequest {
            name: "p".to_owned(),
            size_bytes: PAGE,
            hugetlb: Hugetlb::Yes,
            ..SegmentRequest::default()
        };
        let grant = broker.segment_make(&request).unwrap();
        let memfd = grant.memfd.unwrap();
        fallocate(&memfd, FallocateFlags::empty(), 0, PAGE).unwrap();
        broker.mapped(grant.segid).unwrap();
        let mut program = enclavectl(&run_dir)
            .args(["run", "b", "--"])
            .arg(program)
            .arg(argument)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut byte = BufReader::with_capacity(1, program.stdout.as_mut().unwrap());
        byte.read_line(&mut line).unwrap();
        assert_eq!(line, "attached 0\n");
        Self {
            run_dir,
            program,
            memfd,
            _broker: broker,
            _pages: pages,
        }
    }

    fn punch(&self) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.memfd, flags, 0, PAGE).unwrap();
    }

    /// The same, and leaves the host no other page. The VMM stands still meanwhile:
    /// it reserves what it finds missing.
    fn lose(&self) -> OwnedFd {
        let listed = finish(enclavectl(&self.run_dir).args(["list", "--json"]), b"");
        let listed: Value = serde_json::from_str(&listed.stdout).unwrap();
        let pid = listed["enclaves"][0]["pid"].as_i64().unwrap();
        let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        let threads = format!("/proc/{}/task", pid.as_raw_nonzero());
        let stands_still = |thread: fs::DirEntry| {
            let status = fs::read_to_string(thread.path().join("status")).unwrap();
            status.contains("State:\tT")
        };
        let threads = || fs::read_dir(&threads).unwrap().map(Result::unwrap);
        while !threads().all(stands_still) {
            std::thread::yield_now();
        }
        self.punch();
        let taken = all_free_pages();
        kill_process(pid, Signal::CONT).unwrap();
        taken
    }

    /// Lets the program go on: its exit code, its output, its client's errors.
    fn goes_on(&mut self) -> (i32, String, String) {
        let mut stdin = self.program.stdin.take().unwrap();
        stdin.write_all(b"\n").unwrap();
        let (mut text, mut errors) = (String::new(), String::new());
        let stdout = self.program.stdout.as_mut().unwrap();
        stdout.read_to_string(&mut text).unwrap();
        let stderr = self.program.stderr.as_mut().unwrap();
        stderr.read_to_string(&mut errors).unwrap();
        (wait(&mut self.program), text, errors)
    }

    fn still_runs(&self) {
        let echo = ["run", "b", "--", BUSYBOX, "echo", "well"];
        let ended = finish(enclavectl(&self.run_dir).args(echo), b"");
        assert_eq!(ended.stdout, "well\n", "{}", ended.stderr);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
        for arguments in [&["destroy", "--all"][..], &["broker", "stop", "--force"]] {
            finish(enclavectl(&self.run_dir).args(arguments), b"");
        }
        let _ = fs::remove_dir_all(&self.run_dir);
    }
}

/// All of it in one test: the pool is the host's.
#[test]
fn a_page_that_is_gone_ends_the_program_that_needs_it_and_nothing_else() {
    let flags = ["-std=c11", "-Wall", "-Wextra", "-Werror"];
    let program = language::compile("cc", &flags, &["c/tests/programs/given_back.c"]);
    for ring in ["3", "0"] {
        let mut stage = Stage::new(ring, &program.0, "0");
        stage.punch();
        let (code, text, errors) = stage.goes_on();
        assert_eq!((code, text.as_str()), (0, "read 0\n"), "{errors}");
        stage.still_runs();
        drop(stage);

        let mut stage = Stage::new(ring, &program.0, "0");
        let taken = stage.lose();
        let (code, text, errors) = stage.goes_on();
        assert_eq!((code, text.as_str()), (135, ""), "ring {ring}: {errors}");
        assert!(errors.contains("a page of segment"), "{errors}");
        drop(taken);
        stage.still_runs();
        drop(stage);

        // What the kernel itself cannot read it cannot give up either, but where
        // its reading is interpreted it gets zeros.
        let mut stage = Stage::new(ring, &program.0, "1");
        let taken = stage.lose();
        let (code, text, errors) = stage.goes_on();
        if code == 0 && ring == "0" {
            assert_eq!(text, "\0".repeat(8));
        } else {
            assert_eq!((code, text.as_str()), (125, ""), "ring {ring}: {errors}");
            assert!(errors.contains("a page of segment"), "{errors}");
        }
        drop(taken);
    }
}
