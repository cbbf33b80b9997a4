//! Siblings that see each other's memory (SMARTMAP): results, refusals, and what
//! becomes of a window whose process ends.
//!
//! Needs /dev/kvm, cc, and `libxasm.a` from `cargo xtask image`.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[expect(dead_code, reason = "some helpers are for other tests")]
#[path = "support/language.rs"]
mod language;
#[expect(dead_code, reason = "some helpers are for other tests")]
#[path = "support/producer.rs"]
mod producer;
#[expect(dead_code, reason = "needs no busybox")]
mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};

use language::compile;
use support::{Ended, enclavectl, finish, require_programs, unique_dir, wait};

/// An enclave `t`, gone at the end.
struct Host(PathBuf);

/// A program under way.
struct Program {
    client: Child,
    lines: BufReader<ChildStdout>,
}

impl Program {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Ends its input; its exit code and what it said then.
    fn end(mut self) -> (i32, String) {
        drop(self.client.stdin.take());
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        (wait(&mut self.client), rest)
    }
}

impl Host {
    fn new(ring: &str, cores: &str) -> Self {
        require_programs();
        let this = Self(unique_dir("smartmap"));
        let create = ["create", "t", "--mem", "256M", "--share-cores", "--ring"];
        let rest = [
            ring,
            "--no-prefault",
            "--backing",
            "small",
            "--cores",
            cores,
        ];
        let made = this.ctl(&[&create[..], &rest].concat());
        assert_eq!(made.code, 0, "{}", made.stderr);
        this
    }

    fn ctl(&self, args: &[&str]) -> Ended {
        finish(enclavectl(&self.0).args(args), b"")
    }

    fn start(&self, program: &Path, args: &[&str]) -> Program {
        let mut client = enclavectl(&self.0)
            .args(["run", "t", "--"])
            .arg(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(client.stdout.take().unwrap());
        Program { client, lines }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for args in [&["destroy", "--all"][..], &["broker", "stop", "--force"]] {
            self.ctl(args);
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

const MODES: [(&str, &str); 3] = [("3", "1"), ("3", "2"), ("0", "1")];

#[test]
fn ranks_add_to_each_others_tables() {
    let ranks = compile("cc", &[], &["examples/ranks.c"]);
    for (ring, cores) in MODES {
        let host = Host::new(ring, cores);
        let count = if ring == "3" { 12 } else { 3 };
        let all: Vec<Program> = (0..count)
            .map(|rank: u32| host.start(&ranks.0, &[&rank.to_string(), &count.to_string()]))
            .collect();
        for (rank, program) in all.into_iter().enumerate() {
            let (code, said) = program.end();
            assert_eq!(said, format!("rank {rank}: 0 of 1000 wrong\n"));
            assert_eq!(code, 0);
        }
    }
}

#[test]
fn what_cannot_be_is_refused_and_a_window_that_is_closed_is_gone() {
    let windows = compile("cc", &[], &["../programs/c/windows.c"]);
    for (ring, cores) in MODES {
        let host = Host::new(ring, cores);
        let mut keeper = host.start(&windows.0, &["keep"]);
        let id = keeper.line();
        let (code, said) = host.start(&windows.0, &["refusals", &id]).end();
        let expected = [
            "nobody: No such process",
            "itself: Invalid argument",
            "for another: Operation not permitted",
            "first entry: Invalid argument",
            "beyond: Invalid argument",
            "between: Invalid argument",
            "kernel: Invalid argument",
            "short: Invalid argument",
            "attached: done",
            "again: File exists",
            "not there: No such file or directory",
            "sees 41",
            "write: Bad address",
            "mmap: Cannot allocate memory",
            "munmap: done",
            "sees 42",
            "detached: done",
            "rank of another: Operation not permitted",
            "no rank: No such file or directory",
        ];
        assert_eq!(said.lines().collect::<Vec<_>>(), expected);
        assert_eq!(code, 128 + 11, "it touched what had gone");
        assert_eq!(keeper.end(), (0, "kept 42\n".to_owned()));
    }
}

#[test]
fn who_touches_a_sibling_that_has_ended_ends_alone() {
    let windows = compile("cc", &[], &["../programs/c/windows.c"]);
    for (ring, cores) in MODES {
        let host = Host::new(ring, cores);
        let mut witness = host.start(&windows.0, &["keep"]);
        witness.line();
        for by_kill in [false, true] {
            let mut keeper = host.start(&windows.0, &["keep"]);
            let id = keeper.line();
            let mut toucher = host.start(&windows.0, &["touch", &id]);
            assert_eq!(toucher.line(), "attached: done");
            if by_kill {
                let killed = host.ctl(&["kill", &format!("t:{id}"), "--signal", "KILL"]);
                assert_eq!(killed.code, 0, "{}", killed.stderr);
            }
            let (code, said) = keeper.end();
            if by_kill {
                assert_eq!(code, 128 + 9);
            } else {
                let kept = said.strip_prefix("kept ").unwrap().trim_end();
                assert!(kept.parse::<u64>().unwrap() >= 42, "{said}");
            }
            assert_eq!(toucher.end().0, 128 + 11);
        }
        assert_eq!(witness.end(), (0, "kept 41\n".to_owned()));
    }
}

#[test]
fn attaching_two_thousand_times_leaves_nothing() {
    let windows = compile("cc", &[], &["../programs/c/windows.c"]);
    let host = Host::new("auto", "2");
    let mut keeper = host.start(&windows.0, &["keep"]);
    let id = keeper.line();
    for _ in 0..3 {
        let (code, said) = host.start(&windows.0, &["storm", &id]).end();
        assert_eq!((code, said.as_str()), (0, "done\n"));
    }
    assert_eq!(keeper.end(), (0, "kept 41\n".to_owned()));
}
