//! Guest path names: joining and normalising, on bytes.
//!
//! Called by the session for every path a program hands over. The result names
//! a place in the program's tree only lexically: `.` and `..` are taken out
//! here, symbolic links below an export are the kernel's business
//! (`openat2`, see [`super::exports`]). `a/link/..` is therefore `a`, also
//! where `link` points elsewhere. Path names are bytes, never assumed UTF-8.

use rustix::io::Errno;

/// Longest path with its terminator, as Linux's `PATH_MAX`.
pub(super) const PATH_MAX: usize = 4096;

/// How a path ended: calls that act on a name, not on what it names, differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// With a name.
    Name,
    /// With a name and a slash: it must be a directory.
    Slash,
    /// With `.`.
    Dot,
    /// With `..`.
    DotDot,
}

/// An absolute path without `.`, `..` and empty components.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GuestPath {
    bytes: Vec<u8>,
    tail: Tail,
}

impl GuestPath {
    /// Joins `path` to the absolute directory `base` and normalises.
    pub(super) fn join(base: &[u8], path: &[u8]) -> Self {
        let mut parts: Vec<&[u8]> = Vec::new();
        let start = if path.first() == Some(&b'/') {
            &[]
        } else {
            base
        };
        for part in start.split(is_slash).chain(path.split(is_slash)) {
            match part {
                b"" | b"." => {}
                b".." => {
                    parts.pop();
                }
                name => parts.push(name),
            }
        }
        let mut bytes = Vec::with_capacity(start.len() + path.len() + 1);
        for part in &parts {
            bytes.push(b'/');
            bytes.extend_from_slice(part);
        }
        if bytes.is_empty() {
            bytes.push(b'/');
        }
        Self {
            bytes,
            tail: tail_of(path),
        }
    }

    /// The path, `/` or `/a/b`.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How the path was written at its end.
    pub(super) fn tail(&self) -> Tail {
        self.tail
    }

    /// Was it written so that only a directory fits?
    pub(super) fn wants_directory(&self) -> bool {
        self.tail != Tail::Name
    }

    /// The directory that holds it; `/` for `/`.
    pub(super) fn parent(&self) -> &[u8] {
        match self.bytes.iter().rposition(is_slash) {
            None | Some(0) => b"/",
            Some(at) => &self.bytes[..at],
        }
    }
}

/// What is left of `path` below the directory `prefix`, without a leading
/// slash (empty for `prefix` itself); `None` when it is not below.
pub(super) fn below<'a>(prefix: &[u8], path: &'a [u8]) -> Option<&'a [u8]> {
    if prefix == b"/" {
        return path.strip_prefix(b"/");
    }
    match path.strip_prefix(prefix)? {
        [] => Some(&[]),
        [b'/', rest @ ..] => Some(rest),
        _ => None,
    }
}

/// Takes the zero-terminated string at `at` out of the bounce bytes.
///
/// # Errors
///
/// ENAMETOOLONG when [`PATH_MAX`] bytes hold no terminator, EINVAL when the
/// bytes end before one.
pub(super) fn c_string(input: &[u8], at: usize) -> Result<&[u8], Errno> {
    let bytes = input.get(at..).ok_or(Errno::INVAL)?;
    let window = &bytes[..bytes.len().min(PATH_MAX)];
    match window.iter().position(|&byte| byte == 0) {
        Some(end) => Ok(&window[..end]),
        None if window.len() == PATH_MAX => Err(Errno::NAMETOOLONG),
        None => Err(Errno::INVAL),
    }
}

fn is_slash(byte: &u8) -> bool {
    *byte == b'/'
}

fn tail_of(path: &[u8]) -> Tail {
    match path.rsplit(is_slash).next() {
        Some(b"..") => Tail::DotDot,
        Some(b".") => Tail::Dot,
        Some(b"") => Tail::Slash,
        _ => Tail::Name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(base: &str, path: &str) -> String {
        let path = GuestPath::join(base.as_bytes(), path.as_bytes());
        String::from_utf8(path.as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn dots_and_slashes_are_taken_out() {
        assert_eq!(joined("/", ""), "/");
        assert_eq!(joined("/a/b", "c"), "/a/b/c");
        assert_eq!(joined("/a/b", "/c"), "/c");
        assert_eq!(joined("/a/b", "../../../../x"), "/x");
        assert_eq!(joined("/a", ".//b/./c/.."), "/a/b");
        assert_eq!(joined("/a", "..."), "/a/...");
    }

    #[test]
    fn the_tail_is_remembered() {
        let tail = |path: &str| GuestPath::join(b"/", path.as_bytes()).tail();
        assert_eq!(tail("a"), Tail::Name);
        assert_eq!(tail("a/"), Tail::Slash);
        assert_eq!(tail("a/."), Tail::Dot);
        assert_eq!(tail("a/.."), Tail::DotDot);
        assert_eq!(tail("/"), Tail::Slash);
    }

    #[test]
    fn a_sibling_with_the_same_beginning_is_not_below() {
        assert_eq!(below(b"/data", b"/data/x"), Some(&b"x"[..]));
        assert_eq!(below(b"/data", b"/data"), Some(&b""[..]));
        assert_eq!(below(b"/data", b"/database"), None);
        assert_eq!(below(b"/", b"/data"), Some(&b"data"[..]));
    }

    #[test]
    fn a_string_without_terminator_is_refused() {
        assert_eq!(c_string(b"abc", 0), Err(Errno::INVAL));
        assert_eq!(c_string(b"abc\0", 9), Err(Errno::INVAL));
        assert_eq!(c_string(&[b'x'; 5000], 0), Err(Errno::NAMETOOLONG));
        assert_eq!(c_string(b"a\xff\0b", 0), Ok(&b"a\xff"[..]));
    }
}
