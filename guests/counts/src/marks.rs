//! The hot paths between two marks, for an emulator that tells instructions.
//!
//! Run by `cargo xtask hw-lane --vmx` (`xasm-counts --marks`). Bochs stops at
//! every mark, and from the first to the second of a pair it writes down every
//! instruction that is executed; the lane takes the host's off and counts.
//! Elsewhere a mark is an instruction without effect.
//!
//! Prints one line for each path, with the number of its pairs, in the order of
//! the pairs. Counts and compares nothing itself.

// UNSAFETY: a mark has to stand right before and right after one instruction.
#![expect(unsafe_code)]

use core::arch::asm;

use enclave_abi::syscall::{ARENA_PUBLISH, HOST_INTERRUPT};
use xasm::{Arena, Chunk, Errno, Options};

const MIB: u64 = 1 << 20;
/// Linux's `getpid`: the smallest call there is.
const GETPID: u64 = 39;
/// Pairs of marks of a path; they all have to agree.
const SAMPLES: u64 = 8;
/// Fewer where each is a copy of 262,144 words, which are all written down.
const LARGE_SAMPLES: u64 = 2;
/// Generations before the first sample: every bank was used, so the twin table
/// is in its steady state.
const WARM: u64 = 4;

/// Walks every path.
///
/// # Errors
/// What the kernel says; ENOSYS outside an enclave.
pub(crate) fn walk() -> Result<(), Errno> {
    xasm::calls::require()?;
    path("syscall", SAMPLES, |_| {
        Errno::from_result(between_call(GETPID, [0; 3])).map(drop)
    })?;
    // The same call with an interrupt that arrives before its end, and without.
    for (name, send) in [("host_call", 0), ("host_call_interrupted", 1)] {
        path(name, SAMPLES, |_| {
            Errno::from_result(between_call(HOST_INTERRUPT, [send, 0, 0])).map(drop)
        })?;
    }
    faults("cow_fault_4k", Chunk::Kib4, SAMPLES)?;
    faults("cow_fault_2m", Chunk::Mib2, LARGE_SAMPLES)?;
    publishes("publish_16m", 16 * MIB)?;
    publishes("publish_64m", 64 * MIB)
}

/// Takes a path `samples` times, then says so.
fn path(
    name: &str,
    samples: u64,
    mut sample: impl FnMut(u64) -> Result<(), Errno>,
) -> Result<(), Errno> {
    (0..samples).try_for_each(&mut sample)?;
    println!("MARKS {name} {samples}");
    Ok(())
}

fn arena(bytes: u64, chunk: Chunk) -> Result<Arena, Errno> {
    let options = Options {
        chunk,
        banks: 3,
        ..Options::default()
    };
    Arena::create("marks", bytes, options)
}

/// First writes to chunks after a publish, each generation rewriting all.
fn faults(name: &str, chunk: Chunk, samples: u64) -> Result<(), Errno> {
    let mut arena = arena(samples * chunk.bytes(), chunk)?;
    for round in 0..WARM {
        for n in 0..samples {
            arena.slice_mut::<u64>(n * chunk.bytes(), 1)?[0] = round;
        }
        arena.publish(round, 0.0)?;
    }
    path(name, samples, |n| {
        let word = arena.slice_mut::<u64>(n * chunk.bytes(), 1)?;
        between_store(&mut word[0], n);
        Ok(())
    })
}

/// Publishes, one chunk written before each.
fn publishes(name: &str, bytes: u64) -> Result<(), Errno> {
    let mut arena = arena(bytes, Chunk::Mib2)?;
    let slot = u64::from(xasm::calls::arena_find(arena.base())?);
    for step in 0..WARM {
        arena.slice_mut::<u64>(0, 1)?[0] = step;
        arena.publish(step, 0.0)?;
    }
    path(name, SAMPLES, |step| {
        arena.slice_mut::<u64>(0, 1)?[0] = step;
        Errno::from_result(between_call(ARENA_PUBLISH, [slot, step, 0])).map(drop)
    })
}

/// A system call between marks; returns RAX.
fn between_call(number: u64, args: [u64; 3]) -> u64 {
    let result;
    // SAFETY: the calls used here take no pointers and change no mapping; the
    // kernel's entry preserves all registers but those declared.
    unsafe {
        asm!(
            "xchg bx, bx",
            "syscall",
            "xchg bx, bx",
            inlateout("rax") number => result,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// A store between marks.
fn between_store(word: &mut u64, value: u64) {
    // SAFETY: stores to an exclusive reference.
    unsafe {
        asm!(
            "xchg bx, bx",
            "mov [{word}], {value}",
            "xchg bx, bx",
            word = in(reg) core::ptr::from_mut(word),
            value = in(reg) value,
            options(nostack, preserves_flags),
        );
    }
}
