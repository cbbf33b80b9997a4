//! Figures over the elements of a variable: least, greatest, mean.
//!
//! Pure; called by `snap read` for its summary. Knows the real element types
//! only.

use enclave_abi::arena::{VarDesc, dtype};

use crate::npy;

/// Figures over the elements of a real variable.
pub(crate) struct Figures {
    pub(crate) min: f64,
    pub(crate) max: f64,
    sum: f64,
    count: u64,
    /// Elements that are no number.
    pub(crate) nans: u64,
}

impl Figures {
    pub(crate) fn of(var: &VarDesc, bytes: &[u8]) -> Option<Self> {
        let width = usize::from(var.dtype_bits / 8);
        number(var.dtype_code, bytes.get(..width)?)?;
        let layout = npy::layout(var).ok()?;
        let mut figures = Self {
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            sum: 0.0,
            count: 0,
            nans: 0,
        };
        let taken: Result<(), ()> = npy::elements(&layout, var, bytes, |piece| {
            for element in piece.chunks_exact(width) {
                figures.add(number(var.dtype_code, element).ok_or(())?);
            }
            Ok(())
        });
        taken.ok().map(|()| figures)
    }

    fn add(&mut self, value: f64) {
        if value.is_nan() {
            self.nans += 1;
            return;
        }
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        self.sum += value;
        self.count += 1;
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "a mean of that many needs no more"
    )]
    pub(crate) fn mean(&self) -> f64 {
        self.sum / self.count as f64
    }
}

/// An element as a number; `None` for types without an order.
#[expect(
    clippy::cast_precision_loss,
    reason = "shown to people, as the mean is"
)]
fn number(code: u8, element: &[u8]) -> Option<f64> {
    Some(match (code, element.len()) {
        (dtype::FLOAT, 4) => f32::from_le_bytes(element.try_into().ok()?).into(),
        (dtype::FLOAT, 8) => f64::from_le_bytes(element.try_into().ok()?),
        (dtype::INT, 1) => i8::from_le_bytes(element.try_into().ok()?).into(),
        (dtype::INT, 2) => i16::from_le_bytes(element.try_into().ok()?).into(),
        (dtype::INT, 4) => i32::from_le_bytes(element.try_into().ok()?).into(),
        (dtype::INT, 8) => i64::from_le_bytes(element.try_into().ok()?) as f64,
        (dtype::UINT, 1) => u8::from_le_bytes(element.try_into().ok()?).into(),
        (dtype::UINT, 2) => u16::from_le_bytes(element.try_into().ok()?).into(),
        (dtype::UINT, 4) => u32::from_le_bytes(element.try_into().ok()?).into(),
        (dtype::UINT, 8) => u64::from_le_bytes(element.try_into().ok()?) as f64,
        _ => return None,
    })
}

/// A number as people read it: short, and in powers of ten when far from one.
pub(crate) fn figure(number: f64) -> String {
    let size = number.abs();
    if size != 0.0 && !(1e-3..1e7).contains(&size) {
        return format!("{number:.4e}");
    }
    let text = format!("{number:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_become_numbers_by_their_type() {
        assert_eq!(number(dtype::FLOAT, &1.5f64.to_le_bytes()), Some(1.5));
        assert_eq!(number(dtype::INT, &(-3i16).to_le_bytes()), Some(-3.0));
        assert_eq!(number(dtype::UINT, &[255]), Some(255.0));
        assert_eq!(number(dtype::COMPLEX, &[0; 8]), None);
        assert_eq!(number(dtype::FLOAT, &[0; 2]), None);
    }

    #[test]
    fn numbers_are_short() {
        let texts = [0.0, 1.0, -2.5, 0.0215, 1e-12, 5.98e18].map(figure);
        assert_eq!(
            texts,
            ["0", "1", "-2.5", "0.0215", "1.0000e-12", "5.9800e18"]
        );
    }

    #[test]
    fn figures_skip_what_is_no_number() {
        let mut figures = Figures {
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            sum: 0.0,
            count: 0,
            nans: 0,
        };
        for value in [1.0, f64::NAN, 3.0] {
            figures.add(value);
        }
        assert_eq!((figures.min, figures.max), (1.0, 3.0));
        assert_eq!((figures.mean(), figures.nans), (2.0, 1));
    }
}
