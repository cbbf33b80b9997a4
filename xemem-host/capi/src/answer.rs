//! From results to what C takes: a value, or a negative errno with words.
//!
//! Called by every exported function. The words are kept for each thread, so
//! that they belong to the failure that the thread has just seen.

// UNSAFETY: errno, and strings from C.
#![expect(unsafe_code)]

use core::ffi::{CStr, c_char, c_int};
use rustix::io::Errno;
use std::cell::RefCell;
use std::ffi::CString;
use std::time::Duration;
use xemem_host::ClientError;
use xemem_host::library::ReachError;
use xemem_host::snapshot::SnapshotError;

/// `XEMEM_NO_LIMIT`.
pub(crate) const NO_LIMIT: u32 = u32::MAX;

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Why a call failed: a number and words.
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

    /// The same about something with a name.
    pub(crate) fn about(self, name: &str) -> Self {
        let why = format!("{name}: {}", self.why);
        Self { why, ..self }
    }

    pub(crate) fn null() -> Self {
        Self::argument("NULL where an address is needed")
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Snapshot(error) => error.into(),
            // The number goes beside the words.
            ClientError::Refused { errno, text } => Self::new(errno, text),
            other => Self::new(other.errno(), other.to_string()),
        }
    }
}

impl From<ReachError> for Failure {
    fn from(error: ReachError) -> Self {
        Self::new(error.errno(), error.to_string())
    }
}

impl From<SnapshotError> for Failure {
    fn from(error: SnapshotError) -> Self {
        let errno = match &error {
            SnapshotError::System { source, .. } | SnapshotError::Runs { source, .. } => *source,
            SnapshotError::NoRecord(_) | SnapshotError::NoVariable(_) => Errno::NOENT,
            SnapshotError::Variable { .. } => Errno::INVAL,
            SnapshotError::Forgotten { .. } => Errno::NODATA,
            SnapshotError::Detached(_) => Errno::STALE,
            _ => Errno::IO,
        };
        Self::new(errno, error.to_string())
    }
}

/// A result as C takes it; notes what went wrong.
pub(crate) fn answer(result: Result<i64, Failure>) -> i64 {
    let Failure { errno, why } = match result {
        Ok(value) => return value,
        Err(failure) => failure,
    };
    // Words with a zero byte in them are cut there.
    let mut bytes = why.into_bytes();
    bytes.retain(|&byte| byte != 0);
    let words = CString::new(bytes).unwrap_or_default();
    // A thread that is ending has nobody left to read them.
    let _ = LAST.try_with(|last| last.replace(words));
    // SAFETY: the calling thread's own errno.
    unsafe { *libc::__errno_location() = errno.raw_os_error() };
    -i64::from(errno.raw_os_error())
}

/// As [`answer`], where C has an int; values that do not fit are EOVERFLOW.
pub(crate) fn answer_int(result: Result<i64, Failure>) -> c_int {
    let small = result.and_then(|value| {
        c_int::try_from(value)
            .map_err(|_| Failure::new(Errno::OVERFLOW, format!("{value} is too large")))
    });
    // Negative errnos are small as well.
    c_int::try_from(answer(small.map(i64::from))).unwrap_or(-libc::EOVERFLOW)
}

/// A number of things as C takes it.
pub(crate) fn count(number: usize) -> Result<i64, Failure> {
    i64::try_from(number).map_err(|_| Failure::new(Errno::OVERFLOW, "too many"))
}

/// A timeout; none for [`NO_LIMIT`].
pub(crate) fn timeout(timeout_ms: u32) -> Option<Duration> {
    (timeout_ms != NO_LIMIT).then(|| Duration::from_millis(timeout_ms.into()))
}

/// What the broker is told to wait: not at all, or what is `left` and a little.
pub(crate) fn wait(limit: Duration, left: Duration) -> Option<Duration> {
    // It counts milliseconds, and not to wait is another question.
    (!limit.is_zero()).then_some(left.max(Duration::from_millis(1)))
}

/// Text of a C string.
///
/// # Safety
/// `text` is NULL or a string that stays unchanged for `'a`.
pub(crate) unsafe fn text<'a>(text: *const c_char) -> Result<&'a str, Failure> {
    if text.is_null() {
        return Err(Failure::null());
    }
    // SAFETY: not NULL, so a string by this function's contract.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str()
        .map_err(|_| Failure::argument("a name that is no UTF-8"))
}

/// Stores at most `room` of `items` at `list` and returns how many there are.
///
/// # Safety
/// `list` has place for `room` items, or is NULL.
pub(crate) unsafe fn store<T>(
    items: impl ExactSizeIterator<Item = T>,
    list: *mut T,
    room: usize,
) -> Result<i64, Failure> {
    if list.is_null() && room > 0 {
        return Err(Failure::null());
    }
    let number = items.len();
    for (at, item) in items.take(room).enumerate() {
        // SAFETY: `at` is below `room`, for which there is place by contract.
        unsafe { list.add(at).write(item) };
    }
    count(number)
}

/// See `xemem.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xemem_error() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr())
        .unwrap_or(c"".as_ptr())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last() -> String {
        // SAFETY: a string of this thread's, which fails in no other call meanwhile.
        let words = unsafe { CStr::from_ptr(xemem_error()) };
        words.to_str().unwrap().to_owned()
    }

    #[test]
    fn each_thread_has_the_words_of_its_own_last_failure() {
        assert_eq!(last(), "");
        assert_eq!(
            answer(Err(Failure::new(Errno::NOENT, "no \0such name"))),
            -2
        );
        assert_eq!(last(), "no such name");
        assert_eq!(answer_int(Ok(7)), 7);
        assert_eq!(last(), "no such name");
        std::thread::spawn(|| assert_eq!(last(), ""))
            .join()
            .unwrap();
    }

    #[test]
    fn a_short_wait_is_still_one() {
        let (none, short) = (Duration::ZERO, Duration::from_micros(3));
        assert_eq!(wait(none, none), None);
        assert_eq!(wait(short, none), Some(Duration::from_millis(1)));
        assert_eq!(timeout(0), Some(none));
        assert_eq!(timeout(NO_LIMIT), None);
    }

    #[test]
    fn what_does_not_fit_an_int_is_an_error() {
        assert_eq!(answer_int(Ok(1 << 40)), -libc::EOVERFLOW);
        assert!(last().contains("too large"));
    }

    #[test]
    fn refusals_keep_the_brokers_number_and_words() {
        let text = "no".to_owned();
        let errno = Errno::ACCESS;
        let failure = Failure::from(ClientError::Refused { errno, text });
        assert_eq!((failure.errno, failure.why.as_str()), (Errno::ACCESS, "no"));
        let forgotten = SnapshotError::Forgotten { from: 1, to: 2 };
        let failure = Failure::from(ClientError::Snapshot(forgotten));
        assert_eq!(failure.errno, Errno::NODATA);
    }

    #[test]
    fn no_more_is_stored_than_there_is_room_for() {
        let mut room = [0_u32; 3];
        let items = [1_u32, 2, 3, 4].into_iter();
        // SAFETY: there is place for two.
        let stored = unsafe { store(items, room.as_mut_ptr(), 2) };
        assert_eq!((stored.ok(), room), (Some(4), [1, 2, 0]));
        // SAFETY: nothing is stored where there is no list.
        let counted = unsafe { store([1_u32].into_iter(), core::ptr::null_mut(), 0) };
        assert_eq!(counted.ok(), Some(1));
        // SAFETY: nothing is stored where there is no list.
        let refused = unsafe { store([1_u32].into_iter(), core::ptr::null_mut(), 1) };
        assert_eq!(refused.map_err(|failure| failure.errno), Err(Errno::INVAL));
    }
}
