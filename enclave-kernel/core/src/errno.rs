//! Linux error numbers, as a program sees them.
//!
//! Used by everything that ends in a system-call result. An [`Errno`] is always
//! positive; [`Errno::to_result`] makes the negative register value. Numbers
//! from the host that have no name here survive unchanged.

use core::fmt;

/// A Linux error number, 1 to 4095.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[must_use]
pub struct Errno(i32);

/// Largest error number that fits a system-call result (Linux `MAX_ERRNO`).
const MAX: i32 = 4095;

macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident = $number:literal),* $(,)?) => {
        impl Errno {
            $($(#[$doc])* pub const $name: Self = Self($number);)*

            /// The symbolic name, or `None` for a number without one here.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    /// Operation not permitted.
    EPERM = 1,
    /// No such file or directory.
    ENOENT = 2,
    /// No such process.
    ESRCH = 3,
    /// Interrupted system call.
    EINTR = 4,
    /// Input or output error.
    EIO = 5,
    /// No such device or address.
    ENXIO = 6,
    /// Argument list too long.
    E2BIG = 7,
    /// Not an executable this kernel can load.
    ENOEXEC = 8,
    /// Bad file descriptor.
    EBADF = 9,
    /// No child processes.
    ECHILD = 10,
    /// Try again; the same number as `EWOULDBLOCK`.
    EAGAIN = 11,
    /// Out of memory, or a range that is not mapped.
    ENOMEM = 12,
    /// Permission denied.
    EACCES = 13,
    /// Bad address.
    EFAULT = 14,
    /// Device or resource busy.
    EBUSY = 16,
    /// File exists, or a range is taken.
    EEXIST = 17,
    /// Link across devices.
    EXDEV = 18,
    /// No such device.
    ENODEV = 19,
    /// Not a directory.
    ENOTDIR = 20,
    /// Is a directory.
    EISDIR = 21,
    /// Invalid argument.
    EINVAL = 22,
    /// Too many open files in the system.
    ENFILE = 23,
    /// Too many open files in the process.
    EMFILE = 24,
    /// Not a terminal.
    ENOTTY = 25,
    /// File too large.
    EFBIG = 27,
    /// No space left.
    ENOSPC = 28,
    /// Illegal seek.
    ESPIPE = 29,
    /// Read-only file system.
    EROFS = 30,
    /// Too many links.
    EMLINK = 31,
    /// Broken pipe.
    EPIPE = 32,
    /// Argument outside the function's domain.
    EDOM = 33,
    /// Result not representable.
    ERANGE = 34,
    /// Resource deadlock avoided.
    EDEADLK = 35,
    /// File name too long.
    ENAMETOOLONG = 36,
    /// System call not implemented.
    ENOSYS = 38,
    /// Directory not empty.
    ENOTEMPTY = 39,
    /// Too many symbolic links.
    ELOOP = 40,
    /// Protocol error.
    EPROTO = 71,
    /// Value too large for its type.
    EOVERFLOW = 75,
    /// Accessing a corrupted shared library.
    ELIBBAD = 80,
    /// Message too long.
    EMSGSIZE = 90,
    /// Operation not supported.
    EOPNOTSUPP = 95,
    /// Address family not supported.
    EAFNOSUPPORT = 97,
    /// No buffer space.
    ENOBUFS = 105,
    /// Timed out.
    ETIMEDOUT = 110,
    /// Operation cancelled.
    ECANCELED = 125,
    /// State not recoverable.
    ENOTRECOVERABLE = 131,
}

impl Errno {
    /// The error number `number`, or `None` outside 1 to 4095.
    #[must_use]
    pub const fn new(number: i32) -> Option<Self> {
        if number >= 1 && number <= MAX {
            Some(Self(number))
        } else {
            None
        }
    }

    /// The number, positive.
    #[must_use]
    pub const fn number(self) -> i32 {
        self.0
    }

    /// The system-call result that reports this error: the negative number.
    #[must_use]
    pub const fn to_result(self) -> u64 {
        // Both steps keep the value: sign extension, then the same 64 bits.
        (self.0 as i64).wrapping_neg().cast_unsigned()
    }

    /// The error in a system-call result, or `None` when it is a success.
    #[must_use]
    pub fn from_result(result: u64) -> Option<Self> {
        let number = result.cast_signed().checked_neg()?;
        i32::try_from(number).ok().and_then(Self::new)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn results_carry_errors_both_ways() {
        for errno in [Errno::EPERM, Errno::ETIMEDOUT, Errno(MAX)] {
            assert_eq!(Errno::from_result(errno.to_result()), Some(errno));
        }
        assert_eq!(Errno::ENOENT.to_result(), 0xffff_ffff_ffff_fffe);
    }

    #[test]
    fn successes_are_not_errors() {
        for result in [0, 1, 0xffff_ffff, (-4096i64).cast_unsigned(), 1 << 63] {
            assert_eq!(Errno::from_result(result), None, "{result:#x}");
        }
    }

    #[test]
    fn numbers_outside_the_range_are_refused() {
        for number in [0, -1, MAX + 1, i32::MIN, i32::MAX] {
            assert_eq!(Errno::new(number), None, "{number}");
        }
    }

    #[test]
    fn names_are_the_symbols_and_strangers_keep_their_number() {
        assert_eq!(Errno::EOVERFLOW.to_string(), "EOVERFLOW");
        assert_eq!(Errno(133).to_string(), "errno 133");
    }
}
