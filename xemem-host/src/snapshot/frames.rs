//! Which bank holds each chunk of a generation, and the runs that makes.
//!
//! Pure: births come in through a closure. Used by [`super::ArenaReader`] to
//! find out what has to be mapped anew; [`Run`]s are as long as possible
//! because each costs a system call, and a process has 65,530 mappings.

use enclave_abi::arena::{MAX_BANKS, bank_in_generation};

/// Bank of a chunk that is not mapped.
pub(super) const UNMAPPED: u8 = u8::MAX;

const _: () = assert!(MAX_BANKS < UNMAPPED as u32);

/// Consecutive chunks in one bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) chunk: u64,
    pub(super) nr_chunks: u64,
    pub(super) bank: u32,
}

/// Chunks of `examine` (ascending) whose bank in `generation` differs from
/// `banks`, joined to runs. `births` gives a chunk's birth words.
///
/// # Errors
/// The first chunk that has no frame in `generation`, or lies outside.
pub(super) fn changed_runs<const N: usize>(
    examine: impl Iterator<Item = u64>,
    banks: &[u8],
    generation: u64,
    births: impl Fn(u64) -> Option<([u64; N], usize)>,
) -> Result<Vec<Run>, u64> {
    let mut runs: Vec<Run> = Vec::new();
    for chunk in examine {
        let bank = births(chunk)
            .and_then(|(row, nr_banks)| bank_in_generation(row.get(..nr_banks)?, generation))
            .ok_or(chunk)?;
        let shown = usize::try_from(chunk).ok().and_then(|at| banks.get(at));
        if u32::from(*shown.ok_or(chunk)?) == bank {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.bank == bank && run.chunk + run.nr_chunks == chunk => {
                run.nr_chunks += 1;
            }
            _ => runs.push(Run {
                chunk,
                nr_chunks: 1,
                bank,
            }),
        }
    }
    Ok(runs)
}

/// How many runs `banks` consists of.
pub(super) fn count_runs(banks: &[u8]) -> usize {
    let breaks = banks.windows(2).filter(|pair| pair[0] != pair[1]);
    breaks.count() + usize::from(!banks.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_in_one_bank_are_one_run() {
        let births = [[1, 0], [1, 2], [1, 2], [1, 0], [1, 3]];
        let row = |chunk: u64| Some((births[usize::try_from(chunk).expect("small")], 2));
        let all = changed_runs(0..5, &[UNMAPPED; 5], 2, row).expect("frames");
        let run = |chunk, nr_chunks, bank| Run {
            chunk,
            nr_chunks,
            bank,
        };
        assert_eq!(all, [run(0, 1, 0), run(1, 2, 1), run(3, 2, 0)]);
        // From there to generation 3 only the last chunk moves.
        let next = changed_runs(0..5, &[0, 1, 1, 0, 0], 3, row).expect("frames");
        assert_eq!(next, [run(4, 1, 1)]);
        let sparse = changed_runs([0, 4].into_iter(), &[0, 1, 1, 0, 0], 3, row);
        assert_eq!(sparse, Ok(next));
    }

    #[test]
    fn a_chunk_without_frame_or_outside_is_named() {
        let row = |chunk: u64| (chunk < 2).then_some(([u64::from(chunk == 0), 0], 2));
        assert_eq!(changed_runs(0..2, &[UNMAPPED; 2], 1, row), Err(1));
        assert_eq!(changed_runs(2..3, &[UNMAPPED; 2], 1, row), Err(2));
        assert_eq!(changed_runs(0..1, &[], 1, row), Err(0));
    }

    #[test]
    fn runs_are_counted_at_each_change_of_bank() {
        assert_eq!(count_runs(&[]), 0);
        assert_eq!(count_runs(&[3]), 1);
        assert_eq!(count_runs(&[0, 0, 1, 1, 0]), 3);
    }
}
