//! [`Errno`]: why a call failed, with Linux's numbers.
//!
//! Returned by every function of this crate; the C form hands out the same
//! numbers, negated.

use core::fmt;

/// A Linux error number, always positive.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(i32);

macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        impl Errno {
            $($(#[$doc])* pub const $name: Self = Self($number);)*

            /// The symbolic name and a short meaning, where this crate knows them.
            #[must_use]
            pub const fn describe(self) -> Option<(&'static str, &'static str)> {
                match self.0 {
                    $($number => Some((stringify!($name), $text)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    /// Not permitted.
    EPERM = 1, "not permitted";
    /// No such arena.
    ENOENT = 2, "no such arena";
    /// Interrupted; try again.
    EINTR = 4, "interrupted";
    /// What came back makes no sense.
    EIO = 5, "input or output error";
    /// Snapshot not published: every bank is held.
    EAGAIN = 11, "no free bank, snapshot not published";
    /// Not enough memory in the enclave or in the arena.
    ENOMEM = 12, "not enough memory";
    /// Permission denied.
    EACCES = 13, "permission denied";
    /// A range that is not inside the arena.
    EFAULT = 14, "range outside the arena";
    /// The object is in use.
    EBUSY = 16, "in use";
    /// The name is taken.
    EEXIST = 17, "name already taken";
    /// An argument that cannot be.
    EINVAL = 22, "invalid argument";
    /// No room in a table (arenas, variables, ids).
    ENOSPC = 28, "table full";
    /// A name that is too long.
    ENAMETOOLONG = 36, "name too long";
    /// Neither an enclave kernel below this program nor a broker.
    ENOSYS = 38, "neither inside an enclave nor with a broker";
    /// The kernel speaks another version of the interface.
    EPROTO = 71, "kernel speaks another version";
    /// Nobody listens.
    ECONNREFUSED = 111, "nobody listens";
    /// The broker is gone.
    ENOTCONN = 107, "no connection to the broker";
    /// The broker is gone.
    ECONNRESET = 104, "the broker is gone";
    /// An access that is not this program's.
    EBADF = 9, "no access of this program";
    /// The segment has ended.
    EIDRM = 43, "the segment has ended";
    /// Waited in vain.
    ETIMEDOUT = 110, "not in time";
    /// A size that does not fit its type.
    EOVERFLOW = 75, "size too large";
}

/// Largest number a system call may return negated.
const MAX_ERRNO: u64 = 4095;

impl Errno {
    /// The number, positive.
    #[must_use]
    pub const fn raw(self) -> i32 {
        self.0
    }

    /// The error of that number, if it can be one.
    #[must_use]
    pub(crate) fn from_raw(number: i32) -> Option<Self> {
        (1..=4095).contains(&number).then_some(Self(number))
    }

    /// Splits the result of a system call into value and error.
    ///
    /// # Errors
    /// The errno, when `result` lies in the range Linux reserves for errors.
    pub fn from_result(result: u64) -> Result<u64, Self> {
        let negated = result.wrapping_neg();
        match i32::try_from(negated) {
            Ok(number) if (1..=MAX_ERRNO).contains(&negated) => Err(Self(number)),
            _ => Ok(result),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.describe() {
            Some((name, text)) => write!(f, "{text} ({name})"),
            None => write!(f, "error {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.describe() {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "Errno({})", self.0),
        }
    }
}

impl core::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_split_at_the_error_range() {
        assert_eq!(Errno::from_result(0), Ok(0));
        assert_eq!(Errno::from_result(7), Ok(7));
        assert_eq!(Errno::from_result(11u64.wrapping_neg()), Err(Errno::EAGAIN));
        assert!(Errno::from_result(4095u64.wrapping_neg()).is_err());
        let above = 4096u64.wrapping_neg();
        assert_eq!(Errno::from_result(above), Ok(above));
    }

    #[test]
    fn unknown_numbers_are_still_printed() {
        let unknown = Errno::from_result(200u64.wrapping_neg()).unwrap_err();
        assert_eq!(unknown.to_string(), "error 200");
        assert_eq!(
            Errno::ENOSYS.to_string(),
            "neither inside an enclave nor with a broker (ENOSYS)"
        );
    }
}
