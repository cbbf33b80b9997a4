//! A placement policy of the program's own, checked: after each publish it is
//! told of every chunk that was written, once, and the next copies go where it
//! wished.
//!
//! Run by the tests, in an enclave (of both kernel modes) and on Linux. Nobody
//! reads, so a wish is granted unless it is for the bank that the chunk is in.
//! Prints "placed: N copies, M wishes granted".

use std::process::ExitCode;

use xasm::{Arena, Array, Chunk, Copied, Errno, Options, Placement};

/// More than are told in one call.
const CHUNKS: usize = 300;
const CHUNK_BYTES: usize = 4096;
const BANKS: u32 = 4;
const STEPS: u64 = 12;

/// What the policy knows of a chunk.
#[derive(Clone, Copy, Default)]
struct Known {
    bank: u32,
    wish: Option<u32>,
    /// The step in which it was told of last.
    told: u64,
}

/// The policy and its findings.
struct Policy {
    chunks: Vec<Known>,
    step: u64,
    copies: u64,
    granted: u64,
    wrong: Option<String>,
}

fn main() -> ExitCode {
    match run() {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(what) => {
            eprintln!("placement: {what}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<String, String> {
    let failed = |what: &'static str| move |errno: Errno| format!("{what}: {errno}");
    refusals()?;
    let mut arena = create("placed", Placement::Preferred).map_err(failed("no arena"))?;
    let mut policy = Policy {
        chunks: vec![Known::default(); CHUNKS],
        step: 0,
        copies: 0,
        granted: 0,
        wrong: None,
    };
    for step in 1..=STEPS {
        // All of them, every third, every fourth, none.
        let stride = [1, 3, 4, CHUNKS + 1][usize::try_from(step % 4).unwrap_or(0)];
        for n in (stride..=CHUNKS).step_by(stride) {
            let word = arena.slice_mut::<u64>(((n - 1) * CHUNK_BYTES) as u64, 1);
            word.map_err(failed("no chunk"))?.fill(step);
        }
        policy.step = step;
        let mut calls = 0;
        arena
            .publish_placing(step, 0.0, |arena, copied| {
                calls += 1;
                policy.take(arena, copied);
            })
            .map_err(failed("not published"))?;
        let told = policy.chunks.iter().filter(|known| known.told == step);
        let (told, written) = (told.count(), CHUNKS / stride);
        // What is written before the first publish may be copied or not.
        if step > 1 && told != written || calls != told.div_ceil(128).max(1) {
            return Err(format!("step {step}: {told} of {written} in {calls} calls"));
        }
        if let Some(wrong) = policy.wrong.take() {
            return Err(wrong);
        }
    }
    let Policy {
        copies, granted, ..
    } = policy;
    Ok(format!("placed: {copies} copies, {granted} wishes granted"))
}

fn create(name: &str, placement: Placement) -> Result<Arena, Errno> {
    let options = Options {
        chunk: Chunk::Kib4,
        banks: BANKS,
        placement,
        ..Options::default()
    };
    Arena::create(name, (CHUNKS * CHUNK_BYTES) as u64, options)
}

/// Wishes that cannot be are refused, and without wishes there is no policy.
fn refusals() -> Result<(), String> {
    let mut arena = create("refused", Placement::Preferred).map_err(|e| e.to_string())?;
    let mut other = create("other", Placement::FirstFree).map_err(|e| e.to_string())?;
    let all = Array::<u8>::at(0, CHUNKS * CHUNK_BYTES);
    let beyond = Array::<u8>::at(1, CHUNKS * CHUNK_BYTES);
    let results = [
        (arena.prefer(all, Some(BANKS - 1)), Ok(())),
        (arena.prefer(all, Some(BANKS)), Err(Errno::EINVAL)),
        (arena.prefer(beyond, Some(0)), Err(Errno::EFAULT)),
        (other.prefer(all, Some(0)), Err(Errno::EINVAL)),
        (
            other.publish_placing(1, 0.0, |_, _| {}).map(drop),
            Err(Errno::EINVAL),
        ),
    ];
    if other.stats().map(|stats| stats.generation) != Ok(0) {
        return Err("published for a policy that cannot be".to_owned());
    }
    match results.iter().position(|(got, wanted)| got != wanted) {
        None => Ok(()),
        Some(n) => Err(format!("call {n} answers {:?}", results[n].0)),
    }
}

impl Policy {
    /// Checks what came of the wishes, and wishes anew: two banks on, its own
    /// bank, or none.
    fn take(&mut self, arena: &mut Arena, copied: &[Copied]) {
        for &Copied { chunk, bank, .. } in copied {
            let place = usize::try_from(chunk).unwrap_or(usize::MAX);
            let Some(known) = self.chunks.get_mut(place) else {
                self.wrong = Some(format!("chunk {chunk} is none"));
                return;
            };
            let again = known.told == self.step;
            // Of the first step some are not copied but written where they are.
            let moved = bank != known.bank || self.step == 1;
            let lost = known.wish.is_some_and(|wish| wish != bank);
            if again || !moved || lost || bank >= BANKS {
                self.wrong = Some(format!("step {}: chunk {chunk} in {bank}", self.step));
                return;
            }
            self.copies += 1;
            self.granted += u64::from(known.wish.is_some());
            let wish = match chunk % 3 {
                0 => Some((bank + 2) % BANKS),
                1 => Some(bank),
                _ => None,
            };
            *known = Known {
                bank,
                wish: wish.filter(|&wish| wish != bank),
                told: self.step,
            };
            let range = Array::<u8>::at(chunk * CHUNK_BYTES as u64, CHUNK_BYTES);
            if let Err(errno) = arena.prefer(range, wish) {
                self.wrong = Some(format!("chunk {chunk}: {errno}"));
            }
        }
    }
}
