//! The program's environment, read as getenv(3) reads it.
//!
//! Called when the backend is chosen and when a broker has to be found. Like
//! getenv, it must not run while another thread changes the environment.

// UNSAFETY: the C library's list of strings.
#![expect(unsafe_code)]

use core::ffi::{CStr, c_char};

unsafe extern "C" {
    /// Every C library has it; it is what `setenv` changes and `execve` passes.
    static environ: *const *const c_char;
}

/// Address of the whole environment, as execve(2) takes it; 0 when there is none.
pub(crate) fn all() -> u64 {
    // SAFETY: a word that the C library has set up before any of our code runs.
    let list = unsafe { environ };
    list.expose_provenance() as u64
}

/// The value of a variable; `None` when it is not set, or empty.
pub(crate) fn variable(name: &str) -> Option<&'static CStr> {
    // SAFETY: as in `all`.
    let mut place = unsafe { environ };
    if place.is_null() {
        return None;
    }
    loop {
        // SAFETY: the list ends with NULL, and this place is not beyond that.
        let entry = unsafe { place.read() };
        if entry.is_null() {
            return None;
        }
        // SAFETY: entries are strings, and they stay as long as nobody changes
        // the environment, as the module's documentation asks.
        let text = unsafe { CStr::from_ptr(entry) };
        let rest = text.to_bytes().strip_prefix(name.as_bytes());
        if let Some([b'=', _, ..]) = rest {
            let skipped = name.len() + 1;
            return CStr::from_bytes_with_nul(text.to_bytes_with_nul().get(skipped..)?).ok();
        }
        // SAFETY: this entry was not the last one.
        place = unsafe { place.add(1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_those_the_standard_library_sees() {
        let path = std::env::var("PATH").expect("tests run with a PATH");
        assert_eq!(variable("PATH").and_then(|v| v.to_str().ok()), Some(&*path));
        assert_eq!(variable("PAT"), None);
        assert_eq!(variable("NO_SUCH_VARIABLE"), None);
        assert_ne!(all(), 0);
    }
}
