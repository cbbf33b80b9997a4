//! The tree a program sees: exported directories, a few devices, and the
//! directories that lead to them.
//!
//! Opened once at create, shared by all sessions. [`Exports::place`] maps a
//! normalised guest path to where it lives; [`Root::open`] is the only way
//! into a host directory, and it stays beneath it: `openat2` refuses what
//! leaves through `..`, an absolute link or a magic link. A link that leads
//! out is, for the program, a link to nothing (ENOENT), also when its target
//! would name another export.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::path::{self, GuestPath};
use crate::machine::Export;

/// Why the exported directories cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The host directory does not open.
    #[error("cannot export {host}: not a directory that opens (links are not followed)")]
    Open {
        /// Directory on the host.
        host: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The guest path is not usable.
    #[error("cannot export at {guest:?}: {why}")]
    Guest {
        /// Path in the enclave.
        guest: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Descriptors cannot be named through the process file system.
    #[error("cannot open /proc/self/fd, which chmod, access and utimensat go through")]
    Proc(#[source] std::io::Error),
}

/// What programs may reach, opened.
#[derive(Clone, Debug)]
pub struct Exports {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    roots: Vec<Root>,
    /// `/proc/self/fd`: a descriptor opened without following links is acted
    /// on through its entry here, so that no path is walked a second time.
    descriptors: OwnedFd,
}

/// One exported directory.
#[derive(Debug)]
pub(super) struct Root {
    guest: Vec<u8>,
    dir: OwnedFd,
    writable: bool,
}

/// A device every program may open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Device {
    Null,
    Zero,
    Urandom,
}

/// Where a guest path leads.
#[derive(Debug)]
pub(super) enum Place<'a> {
    /// Into an exported directory, at the path relative to it (`.` for the
    /// directory itself).
    Inside(&'a Root, Vec<u8>),
    /// To a device.
    Device(Device),
    /// To `/` or a directory on the way to an export: names and types.
    Listing(Vec<Entry>),
    /// To the link that names the program itself.
    Program,
    /// Nowhere; `beside` says that the directory it would be in is a listing.
    Nowhere { beside: bool },
}

/// A name in a synthetic directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) is_dir: bool,
    pub(super) ino: u64,
}

impl Exports {
    /// Opens each host directory once.
    ///
    /// # Errors
    ///
    /// When a host path is not a directory (links are not followed), or a guest
    /// path is not absolute, used twice or inside `/dev` or `/proc`.
    pub fn open(list: &[Export]) -> Result<Self, ForwardError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptors = rustix::fs::openat(CWD, "/proc/self/fd", flags, Mode::empty())
            .map_err(|errno| ForwardError::Proc(errno.into()))?;
        let mut roots: Vec<Root> = Vec::with_capacity(list.len());
        for export in list {
            let guest = guest_root(&export.guest, &roots)?;
            let dir =
                rustix::fs::openat(CWD, &export.host, flags | OFlags::NOFOLLOW, Mode::empty())
                    .map_err(|errno| ForwardError::Open {
                        host: export.host.clone(),
                        source: errno.into(),
                    })?;
            roots.push(Root {
                guest,
                dir,
                writable: export.writable,
            });
        }
        // Longest guest path first, so that the first match is the innermost.
        roots.sort_by_key(|root| std::cmp::Reverse(root.guest.len()));
        Ok(Self {
            inner: Arc::new(Inner { roots, descriptors }),
        })
    }

    /// Finds where `name` leads.
    pub(super) fn place(&self, name: &GuestPath) -> Place<'_> {
        let bytes = name.as_bytes();
        if let Some(device) = Device::named(bytes) {
            return Place::Device(device);
        }
        if bytes == b"/proc/self/exe" {
            return Place::Program;
        }
        for root in &self.inner.roots {
            if let Some(rest) = path::below(&root.guest, bytes) {
                let mut rest = if rest.is_empty() { b"." } else { rest }.to_vec();
                if name.wants_directory() {
                    rest.push(b'/');
                }
                return Place::Inside(root, rest);
            }
        }
        match self.listing(bytes) {
            Some(entries) => Place::Listing(entries),
            None => Place::Nowhere {
                beside: self.listing(name.parent()).is_some(),
            },
        }
    }

    /// The directory of descriptors and the name of `fd` in it.
    pub(super) fn descriptor(&self, fd: BorrowedFd<'_>) -> (BorrowedFd<'_>, String) {
        (self.inner.descriptors.as_fd(), fd.as_raw_fd().to_string())
    }

    /// Names in the synthetic directory `dir`; `None` when it is none.
    fn listing(&self, dir: &[u8]) -> Option<Vec<Entry>> {
        let roots = self.inner.roots.iter().map(|root| root.guest.as_slice());
        let devices = Device::ALL.iter().map(|device| device.path());
        let mut names = BTreeMap::new();
        for path in roots.chain(devices) {
            let Some(rest) = path::below(dir, path) else {
                continue;
            };
            let mut parts = rest.splitn(2, |&byte| byte == b'/');
            let name = parts.next().unwrap_or_default();
            let is_dir = parts.next().is_some() || Device::named(path).is_none();
            names.insert(name.to_vec(), is_dir);
        }
        if names.is_empty() {
            return None;
        }
        let entry = |(name, is_dir): (Vec<u8>, bool)| Entry {
            ino: inode_of(GuestPath::join(dir, &name).as_bytes()),
            name,
            is_dir,
        };
        let dots = [(b".".to_vec(), true), (b"..".to_vec(), true)];
        Some(dots.into_iter().chain(names).map(entry).collect())
    }
}

impl Root {
    /// May programs write below it?
    pub(super) fn is_writable(&self) -> bool {
        self.writable
    }

    /// Opens `rest` beneath the exported directory. The descriptor is never
    /// passed on to a child, never becomes the controlling terminal.
    ///
    /// # Errors
    ///
    /// The kernel's; ENOENT for a link that leads out.
    pub(super) fn open(&self, rest: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        // EAGAIN: a rename somewhere raced with the walk (openat2(2)).
        let mut tries = 0;
        loop {
            match rustix::fs::openat2(&self.dir, rest, flags, mode, resolve) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if tries < 64 => tries += 1,
                Err(Errno::XDEV) => return Err(Errno::NOENT),
                other => return other,
            }
        }
    }

    /// Opens `rest` as a place only, neither for reading nor for writing.
    pub(super) fn open_place(&self, rest: &[u8], follow: bool) -> Result<OwnedFd, Errno> {
        let mut flags = OFlags::PATH;
        flags.set(OFlags::NOFOLLOW, !follow);
        self.open(rest, flags, Mode::empty())
    }

    /// Opens the directory that holds `rest` and returns it with the last
    /// name, which may carry a trailing slash; `None` for the export itself.
    pub(super) fn open_parent<'r>(
        &self,
        rest: &'r [u8],
    ) -> Result<Option<(OwnedFd, &'r [u8])>, Errno> {
        let end = rest.strip_suffix(b"/").map_or(rest.len(), <[u8]>::len);
        if &rest[..end] == b"." {
            return Ok(None);
        }
        let cut = rest[..end].iter().rposition(|&byte| byte == b'/');
        let (parent, name) = match cut {
            Some(at) => (&rest[..at], &rest[at + 1..]),
            None => (&b"."[..], rest),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let dir = self.open(parent, flags, Mode::empty())?;
        Ok(Some((dir, name)))
    }

    /// Are both the same export?
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.guest == other.guest
    }
}

impl Device {
    const ALL: [Self; 3] = [Self::Null, Self::Zero, Self::Urandom];

    /// Its path, the same on both sides.
    pub(super) fn path(self) -> &'static [u8] {
        match self {
            Self::Null => b"/dev/null",
            Self::Zero => b"/dev/zero",
            Self::Urandom => b"/dev/urandom",
        }
    }

    fn named(path: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|device| device.path() == path)
    }
}

/// A number for a synthetic directory: FNV-1a of its path, never 0.
pub(super) fn inode_of(path: &[u8]) -> u64 {
    let mix = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    path.iter().fold(0xcbf2_9ce4_8422_2325, mix) | 1
}

fn guest_root(guest: &str, taken: &[Root]) -> Result<Vec<u8>, ForwardError> {
    let refuse = |why| {
        Err(ForwardError::Guest {
            guest: guest.to_owned(),
            why,
        })
    };
    if !guest.starts_with('/') {
        return refuse("the path in the enclave must be absolute");
    }
    if guest.contains('\0') || guest.len() >= path::PATH_MAX / 2 {
        return refuse("the path is too long or holds a zero byte");
    }
    let path = GuestPath::join(b"/", guest.as_bytes()).as_bytes().to_vec();
    let reserved: [&[u8]; 2] = [b"/dev", b"/proc"];
    if reserved.iter().any(|dir| path::below(dir, &path).is_some()) {
        return refuse("/dev and /proc are taken");
    }
    if taken.iter().any(|root| root.guest == path) {
        return refuse("another directory is exported there");
    }
    Ok(path)
}
