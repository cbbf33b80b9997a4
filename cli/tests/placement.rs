//! Where copies go: runs per snapshot and the pool's high-water mark for each
//! placement, with regular and with random writes, in an enclave and on Linux.
//! Whatever the placement, every snapshot is whole.
//!
//! Needs /dev/kvm for the former half; archive and compiler as `allocators`.
//! Prints the table that `docs/arenas.md` shows.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[path = "support/both.rs"]
mod both;
#[path = "support/language.rs"]
#[expect(dead_code, reason = "reads no single lines")]
mod language;
#[expect(dead_code, reason = "needs no busybox")]
mod support;

use language::{Below, PATIENCE, Program, Run, compile, out};
use serde_json::Value;
use support::{enclavectl, finish};
use xemem_host::wire::Policy;
use xemem_host::{ClientError, Pool};

const CHUNKS: usize = 256;
const CHUNK_BYTES: usize = 4096;
const STEPS: u64 = 60;

/// What `placement.c` writes, by the same rules.
struct Model {
    last: [u64; CHUNKS],
    state: u64,
}

impl Model {
    fn random_below(&mut self, limit: u64) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        usize::try_from(self.state % limit).unwrap()
    }

    fn write(&mut self, is_random: bool, step: u64) {
        if is_random {
            for _ in 0..32 {
                let chunk = self.random_below(CHUNKS as u64);
                self.last[chunk] = step;
            }
        } else {
            let first = usize::try_from(step % 4).unwrap() * (CHUNKS / 4);
            self.last[first..first + CHUNKS / 4].fill(step);
        }
    }
}

/// What came of one way to write with one placement.
#[derive(Debug)]
struct Outcome {
    /// Mean runs per snapshot from step 21 on, when all has settled.
    runs: f64,
    pool: Pool,
    /// Chunks that the program's policy was told of, 0 without one.
    told: u64,
    /// Chunks that it should have been told of: written, once per step.
    written: u64,
}

/// Both lists say what the arena does with its pool, and as much of it is used as
/// a reader has counted.
fn is_listed(run: &Run, placement: u64, high_water: u64) {
    let name = ["in-turn", "first-free", "preferred", "preferred"];
    let name = name[usize::try_from(placement).unwrap()];
    let says = |what: &str| -> Value {
        let arguments = what.split(' ').chain(["--json"]);
        let said = finish(enclavectl(&run.run_dir).args(arguments), b"");
        serde_json::from_str(&said.stdout).unwrap()
    };
    let (listed, stats) = (says("snap ls"), says("stats"));
    let stats = stats["stats"]["segments"].as_array().unwrap();
    let stats = stats.iter().find(|one| one["name"] == "placed").unwrap();
    for one in [&listed["arenas"][0], stats] {
        assert_eq!(one["placement"], name, "{one}");
        assert_eq!(one["policy"], "block");
        assert_eq!(one["pool_frames"], 3 * CHUNKS);
        // The program waits for its next line: nothing is written meanwhile.
        assert_eq!(one["high_water"], high_water);
    }
}

fn outcome(below: Below, program: &Program, is_random: bool, placement: u64) -> Outcome {
    let mut run = Run::start(below, &program.0, u64::from(is_random) * 10 + placement);
    let mut stream = run.attach("placed", Policy::Every);
    let mut model = Model {
        last: [0; CHUNKS],
        state: 88_172_645_463_325_252,
    };
    let (mut step, mut runs, mut written) = (0, Vec::new(), 0);
    let mut pool: Option<Result<Pool, ClientError>> = None;
    run.go_on();
    loop {
        {
            let Some(snapshot) = stream.next(Some(PATIENCE)).unwrap() else {
                break;
            };
            step += 1;
            assert_eq!(snapshot.step(), step, "none is missed");
            model.write(is_random, step);
            // Before the first publish Linux's memory is writable as it is.
            if step > 1 || below == Below::Enclave {
                written += model.last.iter().filter(|&&last| last == step).count() as u64;
            }
            for (chunk, bytes) in snapshot.as_slice().chunks(CHUNK_BYTES).enumerate() {
                assert_eq!(bytes[..8], model.last[chunk].to_ne_bytes(), "chunk {chunk}");
            }
            assert!(snapshot.valid());
            if step > 20 {
                runs.push(u32::try_from(snapshot.runs()).unwrap());
            }
        }
        pool = Some(stream.pool());
        if step == STEPS / 2 {
            is_listed(&run, placement, stream.pool().unwrap().high_water);
        }
        if step < STEPS {
            run.go_on();
        }
    }
    assert_eq!(step, STEPS);
    let text = run.end();
    let told = text.trim_end().strip_prefix("placed, told of ");
    let settled = f64::from(u32::try_from(runs.len()).unwrap());
    Outcome {
        runs: f64::from(runs.iter().sum::<u32>()) / settled,
        pool: pool.unwrap().unwrap(),
        told: told.unwrap().parse().unwrap(),
        written,
    }
}

fn placements_differ_in_runs_and_memory_and_not_in_contents(below: Below) {
    let flags = ["-std=c11", "-Wall", "-Wextra", "-Werror"];
    let program = compile("cc", &flags, &["examples/placement.c"]);
    println!("| writes | placement | runs per snapshot | high water of the pool |");
    println!("|---|---|---|---|");
    for (is_random, writes) in [(false, "regular"), (true, "random")] {
        let all = [0, 1, 2, 3].map(|placement| outcome(below, &program, is_random, placement));
        let names = ["in-turn", "first-free", "preferred", "policy"];
        for (one, name) in all.iter().zip(names) {
            let (used, of) = (one.pool.high_water, one.pool.frames);
            println!("| {writes} | {name} | {:.1} | {used} of {of} |", one.runs);
        }
        let [in_turn, first_free, preferred, policy] = &all;
        assert_eq!(in_turn.pool.placement_name(), "in-turn");
        // All banks come to be used in turn; a reader of each generation and
        // the newest one need two besides the program's.
        let chunks = CHUNKS as u64;
        assert_eq!(in_turn.pool.frames, 3 * chunks);
        assert!(first_free.pool.high_water <= 2 * chunks);
        assert!(first_free.pool.high_water < in_turn.pool.high_water);
        assert_eq!(preferred.pool.placement_name(), "preferred");
        assert_eq!(policy.pool.placement_name(), "preferred");
        assert_eq!([in_turn.told, first_free.told, preferred.told], [0; 3]);
        assert_eq!(policy.told, policy.written, "every chunk, once per step");
        if is_random {
            // What is written in one step lies in one bank.
            assert!(preferred.runs < in_turn.runs, "{all:?}");
            // A copy that joins a neighbour is no piece of its own.
            assert!(policy.runs < first_free.runs, "{all:?}");
        } else {
            assert!(in_turn.runs <= 4.0, "{all:?}");
        }
    }
}

/// A policy that checks itself: it is told of every chunk and its wishes are
/// granted.
fn fortran_decides_where_copies_go(below: Below) {
    let flags = ["-std=f2018", "-Wall", "-Wextra", "-Werror"];
    let sources = ["fortran/xasm.f90", "examples/placement.f90"];
    let program = compile("gfortran", &flags, &sources);
    let mut run = Run::start(below, &program.0, 0);
    assert_eq!(run.end().trim_end(), "placed");
}

/// The same in Rust, by a closure.
fn rust_decides_where_copies_go(below: Below) {
    let mut run = Run::start(below, &out().join("xasm-placement"), 0);
    let text = run.end();
    let counts = text.trim_end().strip_prefix("placed: ").unwrap();
    assert!(counts.ends_with("wishes granted"), "{text}");
}

/// Calls of the kernel that cannot be answered, and one whose answer is itself
/// copied on write.
#[test]
fn questions_that_cannot_be_are_refused() {
    let flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror"];
    let program = compile("cc", &flags, &["../programs/hostile/placement.c"]);
    let mut run = Run::start(Below::Enclave, &program.0, 0);
    assert_eq!(run.end().trim_end(), "refused");
}

both::on_both! {
    fortran_decides_where_copies_go
    rust_decides_where_copies_go
    placements_differ_in_runs_and_memory_and_not_in_contents
}
