//! What the producer says about its own flux: energy spectrum and checksum.
//!
//! Both travel in the snapshot beside the flux, so that a reader can compute
//! them again and find out whether what it reads is what was written.

/// Start value of the checksum (FNV-1a, 64 bits).
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
/// Multiplier of the checksum.
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// FNV-1a over the values' bit patterns, one 64-bit word at a time (not byte
/// by byte as the original: an eighth of the multiplications).
pub(crate) fn checksum(values: &[f64]) -> u64 {
    values.iter().fold(FNV_OFFSET, |sum, value| {
        (sum ^ value.to_bits()).wrapping_mul(FNV_PRIME)
    })
}

/// Fills `spectrum` with the sum over cells of flux × cell volume, per group.
pub(crate) fn spectrum(flux: &[f64], cell_volume: f64, spectrum: &mut [f64]) {
    let cells = flux.len() / spectrum.len().max(1);
    for (total, group) in spectrum.iter_mut().zip(flux.chunks(cells.max(1))) {
        *total = group.iter().sum::<f64>() * cell_volume;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_has_known_values_and_sees_every_bit() {
        assert_eq!(checksum(&[]), 0xcbf2_9ce4_8422_2325);
        assert_eq!(checksum(&[0.0]), 0xaf63_bd4c_8601_b7df);
        assert_eq!(checksum(&[1.0, 2.0]), 0xe2c2_8807_b4eb_6fed);
        let mut values = [1.0; 100];
        let before = checksum(&values);
        values[99] = f64::from_bits(values[99].to_bits() ^ 1);
        assert_ne!(checksum(&values), before);
    }

    #[test]
    fn the_spectrum_sums_each_group() {
        let mut totals = [0.0; 2];
        spectrum(&[1.0, 2.0, 3.0, 10.0, 20.0, 30.0], 0.5, &mut totals);
        assert_eq!(totals, [3.0, 30.0]);
        spectrum(&[], 0.5, &mut []);
    }
}
