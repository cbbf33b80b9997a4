//! An arena of 4 GiB, in an enclave and as a process of Linux: all of it can be
//! addressed, copies cost what is written, and a reader sees the whole.
//!
//! Two banks of it are 8 GiB of memory, made when the arena is. A machine that
//! has less free refuses the arena, and the program says so in words: that is
//! then what is checked. Needs /dev/kvm; archive and compiler as `allocators`.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[path = "support/language.rs"]
#[expect(dead_code, reason = "prints little")]
mod language;
#[expect(dead_code, reason = "needs no busybox")]
mod support;

use language::{Below, PATIENCE, Run, compile};
use std::sync::Mutex;
use xemem_host::wire::Policy;

const MEGABYTES: u64 = 4096;
const PLACES: usize = 64;
const STEPS: u64 = 5;
/// One at a time: each takes 8 GiB.
static MEMORY: Mutex<()> = Mutex::new(());

/// Bytes that could be allocated now.
fn available() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.unwrap().parse::<u64>().unwrap() << 10
}

fn four_gibibytes(below: Below) {
    let _one_at_a_time = support::lock(&MEMORY);
    let flags = ["-std=c11", "-Wall", "-Wextra", "-Werror"];
    let program = compile("cc", &flags, &["examples/large.c"]);
    // Twice the arena, and something for everybody else.
    let fits = available() > (2 * MEGABYTES + 2048) << 20;
    let mut run = Run::start(below, &program.0, MEGABYTES);
    if !fits {
        let (code, text) = run.end_with();
        assert!(code == 1 && text.contains("no arena of 4096 MiB"), "{text}");
        return;
    }
    let mut stream = run.attach("large", Policy::Latest);
    let mut last = 0;
    while let Some(snapshot) = stream.next(Some(PATIENCE)).unwrap() {
        let words = snapshot.var("words").unwrap().bytes;
        assert_eq!(words.len() as u64, MEGABYTES << 20);
        let stride = words.len() / PLACES;
        for (i, value) in (0..PLACES).zip(snapshot.step() * 1000..) {
            let at = match i {
                63 => words.len() - 8,
                _ => i * stride,
            };
            assert_eq!(words[at..at + 8], value.to_ne_bytes(), "place {i}");
            // Nobody wrote beside it.
            assert!(i == 63 || words[at + 8..at + 4096].iter().all(|&b| b == 0));
        }
        assert!(snapshot.valid());
        last = snapshot.step();
    }
    assert_eq!(last, STEPS);
    let text = run.end();
    // The first step is written before anything was published.
    let copied = (STEPS - 1) * PLACES as u64;
    let expected = format!("published {STEPS}  copied {copied}");
    assert!(text.contains(&expected), "{text}");
}

#[test]
fn four_gibibytes_are_published_from_an_enclave() {
    four_gibibytes(Below::Enclave);
}

#[test]
fn four_gibibytes_are_published_from_linux() {
    four_gibibytes(Below::Linux);
}
