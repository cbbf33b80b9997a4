//! Arrays that come and go in an arena, checked: `guests/libxasm/examples/churn.c`
//! in Rust, with owners that give their room back when they are dropped.
//!
//! Run by the tests, in an enclave and on Linux: `xasm-churn [STEPS]`. Publishes
//! with each step a table of what is live: offset, words and seed of each
//! array, whose word i holds seed + i.

use std::process::ExitCode;

use xasm::{Arena, Chunk, Errno, Options, Order, Owned, QueueFull, Var};

const SLOTS: usize = 64;
const ARENA_BYTES: u64 = 4 << 20;

/// One array and the seed of its words.
struct Live {
    words: Owned<u64>,
    seed: u64,
}

/// Xorshift: the same numbers each time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 1).unwrap_or(0) % limit
    }
}

fn main() -> ExitCode {
    let steps = std::env::args().nth(1).map_or(Ok(100), |word| word.parse());
    let done = steps
        .map_err(|_| "STEPS is no number".to_owned())
        .and_then(run);
    match done {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(what) => {
            eprintln!("churn: {what}");
            ExitCode::FAILURE
        }
    }
}

fn run(steps: u64) -> Result<String, String> {
    let failed = |what: &'static str| move |errno: Errno| format!("{what}: {errno}");
    let options = Options {
        chunk: Chunk::Kib4,
        queue_full: QueueFull::Block { timeout_ms: 0 },
        ..Options::default()
    };
    let mut arena = Arena::create("churn", ARENA_BYTES, options).map_err(failed("no arena"))?;
    let table = arena
        .alloc_owned::<u64>(SLOTS * 3)
        .map_err(failed("table"))?;
    let shape = [SLOTS as u64, 3];
    let var = Var::array("table", table.array(), &shape, Order::C);
    arena.var(&var).map_err(failed("var"))?;
    mistakes(&mut arena)?;
    let mut live: Vec<Option<Live>> = (0..SLOTS).map(|_| None).collect();
    let mut random = Random(88_172_645_463_325_252);
    for step in 1..=steps {
        for i in 0..20 {
            change(&mut arena, &mut live, &mut random, step << 32 | i << 16)?;
        }
        let rows = arena.get_mut(table.array()).map_err(failed("table"))?;
        for (row, live) in rows.chunks_exact_mut(3).zip(&live) {
            let row_of = |live: &Live| {
                let words = live.words.array();
                [words.offset(), words.len() as u64, live.seed]
            };
            row.copy_from_slice(&live.as_ref().map_or([0; 3], row_of));
        }
        let time = f64::from(u32::try_from(step).unwrap_or(u32::MAX));
        arena.publish(step, time).map_err(failed("publish"))?;
    }
    drop((live, table));
    let usage = arena.usage().map_err(failed("usage"))?;
    if (usage.used, usage.blocks, usage.largest_free) != (0, 0, ARENA_BYTES) {
        return Err(format!("something was not freed: {usage:?}"));
    }
    Ok(format!("steps {steps}  peak {}", usage.peak))
}

/// One random change of one slot.
fn change(
    arena: &mut Arena,
    live: &mut [Option<Live>],
    random: &mut Random,
    seed: u64,
) -> Result<(), String> {
    let slot = live.get_mut(random.below(SLOTS)).ok_or("no slot")?;
    if let Some(old) = slot.take() {
        let words = arena.get(old.words.array()).map_err(|e| e.to_string())?;
        let whole = words.iter().copied().eq((old.seed..).take(words.len()));
        return if whole {
            Ok(())
        } else {
            Err("an array changed".to_owned())
        };
    }
    let words = arena.alloc_owned::<u64>(1 + random.below(2000));
    let words = words.map_err(|errno| format!("no room: {errno}"))?;
    let fresh = arena.get_mut(words.array()).map_err(|e| e.to_string())?;
    if fresh.iter().any(|&word| word != 0) {
        return Err("a new array is not zero".to_owned());
    }
    for (word, value) in fresh.iter_mut().zip(seed..) {
        *word = value;
    }
    *slot = Some(Live { words, seed });
    Ok(())
}

/// What is refused, and changes nothing.
fn mistakes(arena: &mut Arena) -> Result<(), String> {
    let before = arena.usage().map_err(|e| e.to_string())?;
    let array = arena.alloc::<f64>(10).map_err(|e| e.to_string())?;
    let huge = usize::try_from(ARENA_BYTES).unwrap_or(usize::MAX);
    let answers = [
        arena.alloc::<f64>(huge).err() == Some(Errno::ENOMEM),
        arena.alloc::<f64>(usize::MAX).err() == Some(Errno::ENOMEM),
        arena.alloc_aligned::<u8>(8, 48).err() == Some(Errno::EINVAL),
        arena.free(array).is_ok(),
        arena.free(array) == Err(Errno::EINVAL),
        arena.usage().map(|usage| usage.used) == Ok(before.used),
    ];
    match answers.iter().position(|&good| !good) {
        None => Ok(()),
        Some(at) => Err(format!("mistake {at} was not refused")),
    }
}
