//! [`Array`]: a typed place inside an arena.
//!
//! Handed out by [`crate::Arena::alloc`]. An array is offset and length only,
//! so it can be kept, copied and used again after each publish; the memory is
//! borrowed from the arena for as long as it is touched and no longer.

use crate::var::Dtype;
use core::marker::PhantomData;

mod sealed {
    pub trait Sealed {}
}

/// Numbers an arena can hold: every bit pattern is a value.
pub trait Element: Copy + sealed::Sealed + 'static {
    /// The type readers see.
    const DTYPE: Dtype;
}

macro_rules! elements {
    ($($type:ty => $dtype:ident),*) => {
        $(impl sealed::Sealed for $type {}
        impl Element for $type {
            const DTYPE: Dtype = Dtype::$dtype;
        })*
    };
}

elements! {
    f64 => F64, f32 => F32,
    u64 => U64, u32 => U32, u16 => U16, u8 => U8,
    i64 => I64, i32 => I32, i16 => I16, i8 => I8
}

/// `len` elements of `T` at `offset` bytes from the arena's start.
pub struct Array<T> {
    offset: u64,
    len: usize,
    element: PhantomData<fn() -> T>,
}

impl<T: Element> Array<T> {
    /// An array at a place the caller chose; checked where it is used.
    #[must_use]
    pub const fn at(offset: u64, len: usize) -> Self {
        Self {
            offset,
            len,
            element: PhantomData,
        }
    }

    /// Bytes from the arena's start.
    #[must_use]
    pub const fn offset(self) -> u64 {
        self.offset
    }

    /// Number of elements.
    #[must_use]
    pub const fn len(self) -> usize {
        self.len
    }

    /// Whether it holds no element.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Bytes it covers, or `None` when they do not fit 64 bits.
    #[must_use]
    pub fn nbytes(self) -> Option<u64> {
        let len = u64::try_from(self.len).ok()?;
        len.checked_mul(size_of::<T>() as u64)
    }

    /// Whether two arrays share a byte; ranges beyond 64 bits share.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        let end = |array: Self| array.offset.checked_add(array.nbytes()?);
        match (end(self), end(other)) {
            (Some(end), Some(other_end)) => {
                !self.is_empty()
                    && !other.is_empty()
                    && self.offset < other_end
                    && other.offset < end
            }
            _ => true,
        }
    }
}

impl<T> Clone for Array<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Array<T> {}

impl<T> core::fmt::Debug for Array<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Array")
            .field("offset", &self.offset)
            .field("len", &self.len)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_is_exact_at_the_borders() {
        let a = Array::<f64>::at(64, 8);
        assert!(a.overlaps(a));
        assert!(a.overlaps(Array::at(120, 1)));
        assert!(!a.overlaps(Array::at(128, 1)));
        assert!(!a.overlaps(Array::at(56, 1)));
        assert!(!a.overlaps(Array::at(64, 0)));
        assert!(a.overlaps(Array::at(u64::MAX, 1)));
    }
}
