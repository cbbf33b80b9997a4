//! From what the broker says to what XPMEM's callers expect in `errno`.

use rustix::io::Errno;
use xemem_host::ClientError;
use xemem_host::library::ReachError;

/// Why a call failed: a number for the program, words for `XPMEM_DEBUG`.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) errno: Errno,
    pub(crate) why: String,
}

impl Failure {
    pub(crate) fn new(errno: Errno, why: impl Into<String>) -> Self {
        let why = why.into();
        Self { errno, why }
    }

    /// An argument that no state of affairs makes right.
    pub(crate) fn argument(why: impl Into<String>) -> Self {
        Self::new(Errno::INVAL, why)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::new(translate(error.errno()), error.to_string())
    }
}

impl From<ReachError> for Failure {
    fn from(error: ReachError) -> Self {
        Self::new(translate(error.errno()), error.to_string())
    }
}

/// XPMEM knows no segment that has ended, and no full table but its ids'.
fn translate(errno: Errno) -> Errno {
    match errno {
        // Ended, or not to be found yet.
        Errno::IDRM | Errno::BADFD | Errno::BADF => Errno::NOENT,
        Errno::NOSPC => Errno::BUSY,
        Errno::DQUOT => Errno::NOMEM,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_xpmem_does_not_have_become_those_it_has() {
        for (ours, theirs) in [
            (Errno::IDRM, Errno::NOENT),
            (Errno::BADFD, Errno::NOENT),
            (Errno::NOSPC, Errno::BUSY),
            (Errno::DQUOT, Errno::NOMEM),
            (Errno::ACCESS, Errno::ACCESS),
            (Errno::INVAL, Errno::INVAL),
            (Errno::TIMEDOUT, Errno::TIMEDOUT),
        ] {
            let text = String::new();
            let errno = ours;
            let failure = Failure::from(ClientError::Refused { errno, text });
            assert_eq!(failure.errno, theirs);
        }
    }
}
