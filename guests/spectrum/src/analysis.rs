//! Spectrum, checksum and comparison: pure functions over the bytes of a
//! snapshot.
//!
//! Called by `reading`. Nothing is copied but single numbers: values are read
//! where the snapshot is mapped. Everything a producer wrote is checked before
//! it is used.

use anyhow::{Context, Result, bail, ensure};
use enclave_abi::arena::{VarDesc, dtype};

/// Bytes of a value.
const VALUE: usize = size_of::<f64>();
/// Largest relative difference between two spectra that count as equal.
pub(crate) const TOLERANCE: f64 = 1e-12;

/// A scalar flux: per group one block of `cells` values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flux<'a> {
    bytes: &'a [u8],
    cells: usize,
}

/// An array of f64 of a variable, dense, in order of memory.
pub(crate) fn values<'a>(desc: &VarDesc, bytes: &'a [u8]) -> Result<&'a [u8]> {
    let code = (desc.dtype_code, desc.dtype_bits, desc.dtype_lanes);
    ensure!(
        code == (dtype::FLOAT, 64, 1),
        "it is not made of 64-bit floats"
    );
    let shape = shape(desc)?;
    let count = shape
        .iter()
        .try_fold(1usize, |product, &n| product.checked_mul(n));
    let len = count
        .and_then(|count| count.checked_mul(VALUE))
        .context("its shape overflows")?;
    bytes
        .get(..len)
        .context("its shape is larger than its bytes")
}

/// The single u64 of a scalar variable.
pub(crate) fn number(desc: &VarDesc, bytes: &[u8]) -> Result<u64> {
    let code = (desc.dtype_code, desc.dtype_bits, desc.dtype_lanes);
    ensure!(
        code == (dtype::UINT, 64, 1),
        "it is not a 64-bit unsigned integer"
    );
    let (first, _) = bytes.split_first_chunk().context("it has no bytes")?;
    Ok(u64::from_le_bytes(*first))
}

/// The first f64 of a variable.
pub(crate) fn real(desc: &VarDesc, bytes: &[u8]) -> Result<f64> {
    floats(values(desc, bytes)?)
        .next()
        .context("it has no value")
}

/// Numbers where they lie.
pub(crate) fn floats(bytes: &[u8]) -> impl Iterator<Item = f64> {
    let (values, _) = bytes.as_chunks::<VALUE>();
    values.iter().map(|value| f64::from_le_bytes(*value))
}

fn shape(desc: &VarDesc) -> Result<Vec<usize>> {
    let ndim = usize::try_from(desc.ndim)?;
    let shape = desc
        .shape
        .get(..ndim)
        .context("it has too many dimensions")?;
    shape.iter().map(|&n| Ok(usize::try_from(n)?)).collect()
}

impl<'a> Flux<'a> {
    /// The flux of a variable: dense, first index fastest, group last.
    pub(crate) fn of(desc: &VarDesc, bytes: &'a [u8]) -> Result<Self> {
        let bytes = values(desc, bytes)?;
        let shape = shape(desc)?;
        let Some((_groups, cells)) = shape.split_last() else {
            bail!("it has no dimension for the groups");
        };
        ensure!(desc.order == b'F', "its first index is not the fastest");
        let mut stride = VALUE;
        for (&n, &found) in shape.iter().zip(&desc.strides) {
            ensure!(i64::try_from(stride) == Ok(found), "it is not dense");
            stride = stride.checked_mul(n).context("its shape overflows")?;
        }
        ensure!(!bytes.is_empty(), "it is empty");
        Ok(Self {
            bytes,
            cells: cells.iter().product(),
        })
    }

    /// Per group the sum over cells of flux × `cell_volume`, summed in memory
    /// order, as the producer does.
    pub(crate) fn spectrum(self, cell_volume: f64) -> Vec<f64> {
        self.bytes
            .chunks_exact(self.cells * VALUE)
            .map(|group| floats(group).sum::<f64>() * cell_volume)
            .collect()
    }

    /// FNV-1a over 64-bit words, as the producer stores it.
    pub(crate) fn checksum(self) -> u64 {
        floats(self.bytes).fold(0xcbf2_9ce4_8422_2325, |sum, value| {
            (sum ^ value.to_bits()).wrapping_mul(0x0000_0100_0000_01b3)
        })
    }
}

/// Whether two spectra agree to [`TOLERANCE`], each value relative to itself.
pub(crate) fn agree(ours: &[f64], theirs: impl ExactSizeIterator<Item = f64>) -> bool {
    ours.len() == theirs.len()
        && ours
            .iter()
            .zip(theirs)
            .all(|(&a, b)| a == b || (a - b).abs() <= TOLERANCE * a.abs().max(b.abs()))
}

/// Group (from 1) and value of the largest entry; `None` without any.
pub(crate) fn peak(spectrum: &[f64]) -> Option<(usize, f64)> {
    (1..)
        .zip(spectrum.iter().copied())
        .max_by(|a, b| a.1.total_cmp(&b.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Description of a dense Fortran array of f64.
    pub(crate) fn desc(shape: &[u64]) -> VarDesc {
        let mut desc = VarDesc {
            name: [0; 120],
            dtype_code: dtype::FLOAT,
            dtype_bits: 64,
            dtype_lanes: 1,
            ndim: u32::try_from(shape.len()).unwrap(),
            shape: [0; 8],
            strides: [0; 8],
            offset: 0,
            nbytes: 8 * shape.iter().product::<u64>(),
            order: b'F',
            role: 0,
            pad: [0; 6],
            unit: [0; 32],
            axis_labels: [0; 64],
            reserved: [0; 136],
        };
        let mut stride = 8;
        for (axis, &n) in shape.iter().enumerate() {
            desc.shape[axis] = n;
            desc.strides[axis] = stride;
            stride *= i64::try_from(n).unwrap();
        }
        desc
    }

    fn bytes(values: &[f64]) -> Vec<u8> {
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()
    }

    #[test]
    fn each_group_is_summed_over_its_cells() {
        let bytes = bytes(&[1.0, 2.0, 3.0, 4.0, 10.0, 20.0, 30.0, 40.0]);
        let flux = Flux::of(&desc(&[2, 2, 1, 2]), &bytes).unwrap();
        assert_eq!(flux.spectrum(0.5), [5.0, 50.0]);
        assert_eq!(peak(&flux.spectrum(0.5)), Some((2, 50.0)));
        assert_eq!(peak(&[]), None);
    }

    #[test]
    fn the_checksum_is_the_producers() {
        let sum = |values: &[f64]| {
            let bytes = bytes(values);
            let n = values.len() as u64;
            Flux::of(&desc(&[1, n]), &bytes).unwrap().checksum()
        };
        assert_eq!(sum(&[0.0]), 0xaf63_bd4c_8601_b7df);
        assert_eq!(sum(&[1.0, 2.0]), 0xe2c2_8807_b4eb_6fed);
        assert_ne!(sum(&[1.0, 2.0]), sum(&[2.0, 1.0]));
    }

    #[test]
    fn spectra_agree_to_the_tolerance_and_not_beyond() {
        let theirs = |values: &'static [f64]| values.iter().copied();
        assert!(agree(&[1.0, 0.0], theirs(&[1.0 + 9e-13, 0.0])));
        assert!(!agree(&[1.0, 0.0], theirs(&[1.0 + 2e-12, 0.0])));
        assert!(!agree(&[1.0], theirs(&[1.0, 1.0])));
        assert!(!agree(&[f64::NAN], theirs(&[f64::NAN])));
        assert!(agree(&[], theirs(&[])));
    }

    #[test]
    fn descriptions_that_do_not_fit_are_refused() {
        let data = bytes(&[0.0; 8]);
        type Spoil = fn(&mut VarDesc);
        let spoiled: [(Spoil, &str); 8] = [
            (|d| d.dtype_bits = 32, "floats"),
            (|d| d.dtype_code = dtype::INT, "floats"),
            (|d| d.order = b'C', "fastest"),
            (|d| d.strides[1] = 64, "dense"),
            (|d| d.shape[1] = 5, "larger"),
            (|d| d.shape = [u64::MAX; 8], "overflows"),
            (|d| d.ndim = 0, "no dimension"),
            (|d| d.ndim = 9, "too many"),
        ];
        assert!(Flux::of(&desc(&[2, 4]), &data).is_ok());
        for (spoil, why) in spoiled {
            let mut desc = desc(&[2, 4]);
            spoil(&mut desc);
            let error = Flux::of(&desc, &data).unwrap_err().to_string();
            assert!(error.contains(why), "{error} for {why}");
        }
        assert!(Flux::of(&desc(&[2, 0]), &data).is_err());
        assert!(Flux::of(&desc(&[0, 2]), &data).is_err());
    }

    #[test]
    fn scalars_are_read_and_checked() {
        let scalar = desc(&[]);
        assert_eq!(real(&scalar, &bytes(&[0.125])).unwrap(), 0.125);
        assert!(real(&scalar, &[0; 7]).is_err());
        assert!(number(&scalar, &[0; 8]).is_err());
        let step = VarDesc {
            dtype_code: dtype::UINT,
            ..scalar
        };
        assert_eq!(number(&step, &7u64.to_le_bytes()).unwrap(), 7);
        assert!(number(&step, &[0; 7]).is_err());
        assert!(real(&step, &[0; 8]).is_err());
    }
}
