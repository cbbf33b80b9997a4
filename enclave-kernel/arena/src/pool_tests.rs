//! Ways to use a pool that were not taken, and what they would cost: the counts
//! of `docs/adr/0009`, by a model of 256 chunks.
//!
//! A frame is needed if the program or a held generation reads it. Freed *per
//! chunk*, as ours are: what is not needed is free. *Per generation*: what was born
//! in one generation is kept as long as any of it is needed. *Single frames*: one
//! pool for all chunks, where a copy takes the lowest free frame.

use alloc::vec;
use alloc::vec::Vec;
use std::println;

/// Writes as `guests/libxasm/examples/placement.c` does.
struct Writes {
    is_random: bool,
    state: u64,
}

const CHUNKS: usize = 256;
const STEPS: usize = 60;

impl Writes {
    fn of_step(&mut self, step: usize) -> Vec<usize> {
        if !self.is_random {
            let first = step % 4 * (CHUNKS / 4);
            return (first..first + CHUNKS / 4).collect();
        }
        let mut below = || {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            usize::try_from(self.state % 256).expect("small")
        };
        (0..32).map(|_| below()).collect()
    }
}

/// Most frames in use at once besides one per chunk: freed per chunk, and per
/// generation. Readers hold the newest `held` generations.
fn high_water(is_random: bool, held: usize) -> [usize; 2] {
    let mut writes = Writes {
        is_random,
        state: 88_172_645_463_325_252,
    };
    // The births of each chunk's frames, oldest first, as of each generation.
    let mut now = [0; CHUNKS];
    let mut published: Vec<[usize; CHUNKS]> = Vec::new();
    let mut born = vec![CHUNKS];
    let mut most = [0; 2];
    for step in 1..=STEPS {
        let mut written = writes.of_step(step);
        written.sort_unstable();
        written.dedup();
        born.push(written.len());
        for chunk in written {
            now[chunk] = step;
        }
        let first = published.len().saturating_sub(held);
        let mut needed: Vec<(usize, usize)> = published[first..]
            .iter()
            .chain([&now])
            .flat_map(|births| births.iter().copied().enumerate())
            .collect();
        needed.sort_unstable();
        needed.dedup();
        let mut alive: Vec<usize> = needed.iter().map(|&(_, birth)| birth).collect();
        alive.sort_unstable();
        alive.dedup();
        let kept: usize = alive.iter().map(|&birth| born[birth]).sum();
        // When all has settled.
        if step > 20 {
            most = [most[0].max(needed.len()), most[1].max(kept)];
        }
        published.push(now);
    }
    most.map(|frames| frames - CHUNKS)
}

/// Most frames of one pool of single frames in use at once, and the runs of a
/// snapshot when all has settled, in tenths. Copies are in the order of the writes.
fn single_frames(is_random: bool, held: usize) -> (usize, usize) {
    let mut writes = Writes {
        is_random,
        state: 88_172_645_463_325_252,
    };
    let mut now: [usize; CHUNKS] = core::array::from_fn(|chunk| chunk);
    let mut published: Vec<[usize; CHUNKS]> = Vec::new();
    let (mut most, mut runs) = (CHUNKS, 0);
    for step in 1..=STEPS {
        let first = published.len().saturating_sub(held);
        let mut in_use = vec![false; CHUNKS * (held + 2)];
        for &frame in published[first..].iter().chain([&now]).flatten() {
            in_use[frame] = true;
        }
        let mut copied = [false; CHUNKS];
        for chunk in writes.of_step(step) {
            if step > 1 && !core::mem::replace(&mut copied[chunk], true) {
                let free = in_use.iter().position(|&used| !used);
                now[chunk] = free.expect("room for all that is held");
                in_use[now[chunk]] = true;
                most = most.max(now[chunk] + 1);
            }
        }
        published.push(now);
        if step > 20 {
            runs += 1 + now.windows(2).filter(|two| two[1] != two[0] + 1).count();
        }
    }
    (most - CHUNKS, runs * 10 / (STEPS - 20))
}

#[test]
fn one_pool_of_single_frames_is_small_and_falls_apart() {
    for held in [1, 3] {
        let (frames, tenths) = single_frames(false, held);
        println!("regular, {held} held: {frames} frames, {tenths} / 10 runs");
        assert_eq!(frames, 64 * held);
        assert!(tenths <= 30, "what is copied in order stays in order");
        let (frames, tenths) = single_frames(true, held);
        println!("random, {held} held: {frames} frames, {tenths} / 10 runs");
        assert!(frames <= 32 * held);
        assert!(tenths > 2500, "nearly every chunk is a run of its own");
    }
}

#[test]
fn freeing_whole_generations_saves_nothing_and_keeps_more() {
    for held in [1, 3] {
        // What is written together is replaced together.
        let [chunk, generation] = high_water(false, held);
        println!("regular, {held} held: {chunk} per chunk, {generation} per generation");
        assert_eq!(chunk, 64 * held);
        assert_eq!(generation, chunk);
        // A chunk that is not written again keeps all that was born with it.
        let [chunk, generation] = high_water(true, held);
        println!("random, {held} held: {chunk} per chunk, {generation} per generation");
        assert!(chunk <= 32 * held);
        assert!(generation > 3 * CHUNKS, "more than three spare banks hold");
    }
}
