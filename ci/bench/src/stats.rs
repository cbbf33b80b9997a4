//! Medians, minima and ratios of block times.
//!
//! Pure. Empty input has no median; callers say what was not measured.

use anyhow::Context as _;

/// The middle value, the mean of both middle values for an even count.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *sorted.get(sorted.len() / 2 - 1)?;
    Some(f64::midpoint(lower, upper))
}

/// The value below which `part` (0 to 1) of all lie.
pub(crate) fn percentile(values: &[f64], part: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    // Cannot be negative or larger than `last`.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped"
    )]
    let at = (part.clamp(0.0, 1.0) * last as f64).round() as usize;
    sorted.get(at).copied()
}

/// The smallest value.
pub(crate) fn min(values: &[f64]) -> Option<f64> {
    values.iter().copied().min_by(f64::total_cmp)
}

/// Times of two things done in turn.
#[derive(Debug, Default)]
pub(crate) struct Pair {
    /// One value per block.
    pub(crate) first: Vec<f64>,
    /// As many.
    pub(crate) second: Vec<f64>,
}

impl Pair {
    /// Median of the first over median of the second.
    ///
    /// # Errors
    /// No block was measured, or the second took no time.
    pub(crate) fn ratio(&self) -> anyhow::Result<f64> {
        let first = median(&self.first).context("no block was measured")?;
        let second = median(&self.second).context("no block was measured")?;
        anyhow::ensure!(second > 0.0, "a median of {second} cannot be compared with");
        Ok(first / second)
    }

    /// Minimum of the first over minimum of the second, 0 when unknown.
    pub(crate) fn ratio_of_minima(&self) -> f64 {
        match (min(&self.first), min(&self.second)) {
            (Some(first), Some(second)) if second > 0.0 => first / second,
            _ => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 100.0]), Some(3.0));
        assert_eq!(min(&[9.0, 1.0, 2.0]), Some(1.0));
    }

    #[test]
    fn percentiles_are_values_in_their_order() {
        let values: Vec<f64> = (0..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 0.99), Some(99.0));
        assert_eq!(percentile(&values, 0.5), Some(50.0));
        assert_eq!(percentile(&values, 2.0), Some(100.0));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn one_outlier_does_not_move_a_ratio() {
        let pair = Pair {
            first: vec![2.0, 2.0, 900.0],
            second: vec![1.0, 1.0, 1.0],
        };
        assert_eq!(pair.ratio().unwrap(), 2.0);
        assert_eq!(pair.ratio_of_minima(), 2.0);
    }

    #[test]
    fn nothing_measured_is_an_error_not_a_number() {
        assert!(Pair::default().ratio().is_err());
        let zero = Pair {
            first: vec![1.0],
            second: vec![0.0],
        };
        assert!(zero.ratio().is_err());
    }
}
