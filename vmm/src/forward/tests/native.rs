//! The native side of a comparison: the same system call, made directly.

// UNSAFETY: a system call with an arbitrary number has no safe wrapper, and
// the point of the comparison is to make exactly the call the session serves.
#![expect(unsafe_code)]

/// An argument of a native call.
#[derive(Clone, Copy)]
pub(super) enum Argument {
    /// A plain number.
    Number(i64),
    /// The address of this offset in the bounce bytes.
    Offset(usize),
}

/// Makes system call `nr` with pointers into `bounce`; value or -errno.
pub(super) fn call(nr: i64, args: [Argument; 5], bounce: &mut [u8]) -> i64 {
    let base = bounce.as_mut_ptr();
    let [a, b, c, d, e] = args.map(|arg| match arg {
        Argument::Number(value) => value,
        Argument::Offset(at) => {
            assert!(at < bounce.len(), "offset inside the bounce bytes");
            i64::try_from(base.addr() + at).unwrap()
        }
    });
    // SAFETY: the tests pass calls of the forwarded table only. Pointers lead
    // into `bounce`, which is borrowed for the call; lengths the tests pass
    // stay inside it, and structures are at most 144 bytes at 4096. Descriptor
    // numbers are those of the test's own earlier calls.
    let result = unsafe { libc::syscall(nr, a, b, c, d, e) };
    if result >= 0 {
        return result;
    }
    let error = std::io::Error::last_os_error().raw_os_error().unwrap();
    -i64::from(error)
}
