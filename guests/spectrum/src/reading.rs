//! [`Reading`]: what one snapshot says, and whether it is whole.
//!
//! Made by `follow` for each snapshot while its lease is held. A snapshot is
//! *torn* when its frames changed under us, or when flux and stored checksum or
//! spectrum do not belong together; *verified* when it had both and they do.

use crate::analysis::{self, Flux};
use anyhow::{Context, Result};
use std::time::{SystemTime, UNIX_EPOCH};
use xemem_host::{Snapshot, VarView};

/// What a snapshot says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reading {
    /// The producer's step.
    pub(crate) step: u64,
    /// The producer's time.
    pub(crate) time: f64,
    /// Generation of the arena.
    pub(crate) generation: u64,
    /// Payload bytes of the arena.
    pub(crate) bytes: u64,
    /// Mapped pieces the snapshot consists of.
    pub(crate) runs: usize,
    /// Chunks copied since the previous publish.
    pub(crate) chunks_copied: u64,
    /// Cycles the producer's kernel spent in the publish.
    pub(crate) publish_cycles: u64,
    /// Microseconds from publish to now, 0 if the clocks disagree.
    pub(crate) age_us: f64,
    /// Per group the sum over cells of flux × volume.
    pub(crate) spectrum: Vec<f64>,
    /// Whether our checksum is the producer's; `None` when it stored none.
    pub(crate) checksum_ok: Option<bool>,
    /// Whether our spectrum is the producer's; `None` when it stored none.
    pub(crate) spectrum_ok: Option<bool>,
    /// Whether every frame still was the snapshot's after reading.
    pub(crate) is_valid: bool,
}

/// Whether a snapshot was whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Checked, and whole.
    Verified,
    /// Nothing contradicts, but not everything could be checked.
    Unverified,
    /// Not the state that was published.
    Torn,
}

impl Reading {
    /// Reads a snapshot.
    pub(crate) fn of(snapshot: &Snapshot<'_>) -> Result<Self> {
        let age_us = age_us(snapshot.record().unix_ns);
        let view = find(snapshot, "flux")?;
        let flux = Flux::of(&view.desc, view.bytes).context("variable flux cannot be used")?;
        let volume = find(snapshot, "cell_volume")?;
        let volume = analysis::real(&volume.desc, volume.bytes)
            .context("variable cell_volume cannot be used")?;
        let spectrum = flux.spectrum(volume);
        let stored = Stored::of(snapshot)?;
        let (checksum_ok, spectrum_ok) = stored.compare(snapshot.step(), flux, &spectrum);
        Ok(Self {
            step: snapshot.step(),
            time: snapshot.time(),
            generation: snapshot.generation(),
            bytes: snapshot.bytes(),
            runs: snapshot.runs(),
            chunks_copied: snapshot.chunks_copied(),
            publish_cycles: snapshot.record().publish_cycles,
            age_us,
            spectrum,
            checksum_ok,
            spectrum_ok,
            is_valid: snapshot.valid(),
        })
    }

    /// Whether the snapshot was whole.
    pub(crate) fn verdict(&self) -> Verdict {
        match (self.is_valid, self.checksum_ok, self.spectrum_ok) {
            (false, _, _) | (_, Some(false), _) | (_, _, Some(false)) => Verdict::Torn,
            (true, Some(true), Some(true)) => Verdict::Verified,
            _ => Verdict::Unverified,
        }
    }
}

/// What the producer stored about its own flux.
#[derive(Debug)]
struct Stored<'a> {
    checksum: Option<u64>,
    /// Step that checksum and spectrum are of; `None` = every step's.
    checksum_step: Option<u64>,
    /// Values of the spectrum.
    spectrum: Option<&'a [u8]>,
}

impl<'a> Stored<'a> {
    fn of(snapshot: &'a Snapshot<'_>) -> Result<Self> {
        let number = |name: &str| {
            let number = |view: VarView<'_>| analysis::number(&view.desc, view.bytes);
            let read = find(snapshot, name).ok().map(number).transpose();
            read.with_context(|| format!("variable {name} cannot be used"))
        };
        let values = |view: VarView<'a>| analysis::values(&view.desc, view.bytes);
        Ok(Self {
            checksum: number("checksum")?,
            checksum_step: number("checksum_step")?,
            spectrum: find(snapshot, "spectrum")
                .ok()
                .map(values)
                .transpose()
                .context("variable spectrum cannot be used")?,
        })
    }

    /// Compares checksum and spectrum, when they are of this `step`.
    fn compare(&self, step: u64, flux: Flux<'_>, ours: &[f64]) -> (Option<bool>, Option<bool>) {
        if self.checksum_step.is_some_and(|of| of != step) {
            return (None, None);
        }
        let checksum = self.checksum.map(|stored| stored == flux.checksum());
        let spectrum = self.spectrum.map(|stored| {
            let theirs: Vec<f64> = analysis::floats(stored).collect();
            analysis::agree(ours, theirs.into_iter())
        });
        (checksum, spectrum)
    }
}

/// A variable by name.
fn find<'a>(snapshot: &'a Snapshot<'_>, name: &str) -> Result<VarView<'a>> {
    Ok(snapshot.var(name)?)
}

/// Microseconds since `unix_ns`.
fn age_us(unix_ns: u64) -> f64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let published = std::time::Duration::from_nanos(unix_ns);
    now.saturating_sub(published).as_secs_f64() * 1e6
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use enclave_abi::arena::{VarDesc, dtype};

    pub(crate) fn reading() -> Reading {
        Reading {
            step: 3,
            time: 0.25,
            generation: 4,
            bytes: 1 << 20,
            runs: 2,
            chunks_copied: 5,
            publish_cycles: 1000,
            age_us: 42.5,
            spectrum: vec![1.0, 3.0, 2.0],
            checksum_ok: Some(true),
            spectrum_ok: Some(true),
            is_valid: true,
        }
    }

    #[test]
    fn one_contradiction_makes_a_snapshot_torn() {
        let good = reading();
        assert_eq!(good.verdict(), Verdict::Verified);
        let torn = [
            Reading {
                is_valid: false,
                ..good.clone()
            },
            Reading {
                checksum_ok: Some(false),
                ..good.clone()
            },
            Reading {
                checksum_ok: None,
                spectrum_ok: Some(false),
                ..good.clone()
            },
        ];
        assert!(
            torn.iter()
                .all(|reading| reading.verdict() == Verdict::Torn)
        );
        let unchecked = Reading {
            checksum_ok: None,
            ..good
        };
        assert_eq!(unchecked.verdict(), Verdict::Unverified);
    }

    /// A flux of one cell and two groups, 1.0 and 2.0.
    fn flux(bytes: &[u8]) -> Flux<'_> {
        let desc = VarDesc {
            name: [0; 120],
            dtype_code: dtype::FLOAT,
            dtype_bits: 64,
            dtype_lanes: 1,
            ndim: 2,
            shape: [1, 2, 0, 0, 0, 0, 0, 0],
            strides: [8, 8, 0, 0, 0, 0, 0, 0],
            offset: 0,
            nbytes: 16,
            order: b'F',
            role: 0,
            pad: [0; 6],
            unit: [0; 32],
            axis_labels: [0; 64],
            reserved: [0; 136],
        };
        Flux::of(&desc, bytes).unwrap()
    }

    #[test]
    fn only_the_same_step_is_compared() {
        let bytes: Vec<u8> = [1.0f64, 2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let flux = flux(&bytes);
        let ours = flux.spectrum(1.0);
        let stored = |checksum, checksum_step| Stored {
            checksum: Some(checksum),
            checksum_step,
            spectrum: Some(&bytes),
        };
        let right = flux.checksum();
        assert_eq!(
            stored(right, Some(7)).compare(7, flux, &ours),
            (Some(true), Some(true))
        );
        assert_eq!(
            stored(right, None).compare(7, flux, &ours),
            (Some(true), Some(true))
        );
        assert_eq!(stored(right, Some(6)).compare(7, flux, &ours), (None, None));
        assert_eq!(
            stored(!right, Some(7)).compare(7, flux, &[0.0]),
            (Some(false), Some(false))
        );
        let nothing = Stored {
            checksum: None,
            checksum_step: None,
            spectrum: None,
        };
        assert_eq!(nothing.compare(7, flux, &ours), (None, None));
    }
}
