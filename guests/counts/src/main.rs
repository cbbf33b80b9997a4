//! `xasm-counts`: how many instructions KVM emulates for one system call, one
//! copy-on-write fault and one publish.
//!
//! Run inside an enclave by `cargo xtask` and the tests, which compare the
//! figures with the committed table (`ci/counts.json`). The figures are counts
//! of KVM's own statistics, read before and after a batch; what the reading
//! itself costs is measured first and taken off. Times play no part.
//!
//! Prints one JSON object. Exits 1 with a message outside an enclave. `--small`
//! leaves the arena of 1 GiB out, which takes 2 GiB of the host's memory;
//! `--marks` walks the paths for an emulator that counts instead ([`marks`]).

mod marks;

use std::process::ExitCode;

use xasm::calls::{arena_publish, host_counters, host_interrupt, kernel_stats, process_id};
use xasm::{Arena, Chunk, Errno, Options};

const MIB: u64 = 1 << 20;
/// Operations per batch: enough that a stray interrupt shows as a fraction.
const BATCH: u64 = 16;

/// Why there are no figures.
enum Trouble {
    /// A call of the kernel failed.
    Call(Errno),
    /// This many interrupts of a batch arrived.
    Lost(u64),
}

impl From<Errno> for Trouble {
    fn from(errno: Errno) -> Self {
        Self::Call(errno)
    }
}

/// One measured path.
struct Figure {
    name: &'static str,
    /// Emulated instructions of the whole batch.
    emulated: u64,
    /// Operations in the batch.
    operations: u64,
}

fn main() -> ExitCode {
    let done = match std::env::args().nth(1).as_deref() {
        Some("--marks") => marks::walk().map_err(Trouble::Call),
        Some("--small") => measure(Sizes::Small).map(|figures| print(&figures)),
        _ => measure(Sizes::All).map(|figures| print(&figures)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Trouble::Call(errno)) => {
            eprintln!("xasm-counts: {errno}: it has to run inside an enclave");
            ExitCode::FAILURE
        }
        Err(Trouble::Lost(arrived)) => {
            eprintln!("xasm-counts: {arrived} of {BATCH} interrupts arrived");
            ExitCode::FAILURE
        }
    }
}

fn print(figures: &[Figure]) {
    let mode = kernel_stats().map_or(0, |stats| stats.mode);
    print!("{{\"kernel_mode\":\"ring{mode}\",\"batch\":{BATCH}");
    // The two figures that reports quote, under names that say it all.
    for (key, name) in [("publish", "publish_16m"), ("cow_fault", "cow_fault_2m")] {
        if let Some(f) = figures.iter().find(|f| f.name == name) {
            print!(",\"emulated_instructions_per_{key}\":{}", per_operation(f));
        }
    }
    for f in figures {
        print!(",\"{}\":{}", f.name, per_operation(f));
    }
    println!("}}");
}

/// Whole number where it is one, so that tables compare exactly.
fn per_operation(figure: &Figure) -> String {
    let (whole, rest) = (
        figure.emulated / figure.operations,
        figure.emulated % figure.operations,
    );
    if rest == 0 {
        whole.to_string()
    } else {
        format!("{whole}.{:03}", rest * 1000 / figure.operations)
    }
}

fn emulated() -> Result<u64, Errno> {
    Ok(host_counters()?.emulated_instructions)
}

/// Emulated instructions that `work` causes, without those of the reading.
/// Everything is done once before, so that nothing is cold.
fn count(mut work: impl FnMut() -> Result<(), Errno>) -> Result<u64, Errno> {
    let first = emulated()?;
    let reading = emulated()? - first;
    let before = emulated()?;
    work()?;
    Ok((emulated()? - before).saturating_sub(reading))
}

/// Which arenas are measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sizes {
    All,
    Small,
}

fn measure(sizes: Sizes) -> Result<Vec<Figure>, Trouble> {
    let mut figures = Vec::new();
    for _ in 0..2 {
        figures.clear();
        let emulated = count(|| (0..BATCH).try_for_each(|_| process_id().map(drop)))?;
        figures.push(Figure {
            name: "syscall",
            emulated,
            operations: BATCH,
        });
    }
    figures.push(interrupts()?);
    let small = Options {
        chunk: Chunk::Kib4,
        banks: 3,
        ..Options::default()
    };
    let large = Options {
        chunk: Chunk::Mib2,
        banks: 3,
        ..Options::default()
    };
    figures.push(faults("cow_fault_4k", small, 4096)?);
    figures.push(faults("cow_fault_2m", large, 2 * MIB)?);
    figures.push(publishes("publish_16m", 16 * MIB, large)?);
    if kernel_stats()?.mode == 3 {
        let two_banks = Options { banks: 2, ..large };
        if sizes == Sizes::All {
            figures.push(publishes("publish_1g", 1024 * MIB, two_banks)?);
        }
        figures.push(publishes("publish_16m_2_banks", 16 * MIB, two_banks)?);
    }
    Ok(figures)
}

/// Interrupts from the host, one for each call: what they cost beyond the same
/// call without one. Every one has to arrive.
fn interrupts() -> Result<Figure, Trouble> {
    let send = |on: bool| count(|| (0..BATCH).try_for_each(|_| host_interrupt(on)));
    let before = kernel_stats()?.interrupts;
    let emulated = send(true)?.saturating_sub(send(false)?);
    let arrived = kernel_stats()?.interrupts - before;
    if arrived != BATCH {
        return Err(Trouble::Lost(arrived));
    }
    Ok(Figure {
        name: "doorbell_interrupt",
        emulated,
        operations: BATCH,
    })
}

/// Faults of a generation that rewrites every chunk, after one that did, too:
/// the steady state of a simulation, catch-up of the twin table included.
fn faults(name: &'static str, options: Options, chunk: u64) -> Result<Figure, Errno> {
    let mut arena = Arena::create("counts", BATCH * chunk, options)?;
    for round in 0..4 {
        touch(&mut arena, chunk, round)?;
        arena.publish(round, 0.0)?;
    }
    let emulated = count(|| touch(&mut arena, chunk, 9))?;
    Ok(Figure {
        name,
        emulated,
        operations: BATCH,
    })
}

fn touch(arena: &mut Arena, chunk: u64, value: u64) -> Result<(), Errno> {
    for n in 0..BATCH {
        arena.slice_mut::<u64>(n * chunk, 1)?[0] = value;
    }
    Ok(())
}

/// Publishes of an arena of `bytes`, one chunk written before each of the
/// warming ones.
fn publishes(name: &'static str, bytes: u64, options: Options) -> Result<Figure, Errno> {
    let mut arena = Arena::create("counts", bytes, options)?;
    let slot = xasm::calls::arena_find(arena.base())?;
    for step in 0..4 {
        arena.slice_mut::<u64>(0, 1)?[0] = step;
        arena_publish(slot, step, 0.0)?;
    }
    let emulated =
        count(|| (0..BATCH).try_for_each(|step| arena_publish(slot, step, 0.0).map(drop)))?;
    Ok(Figure {
        name,
        emulated,
        operations: BATCH,
    })
}
