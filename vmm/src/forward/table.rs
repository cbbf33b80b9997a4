//! Open files of a program: descriptions, and the table of numbers.
//!
//! As on Linux, a number leads to a *description* that duplicates share:
//! status flags and position live there, close-on-exec at the number. Numbers
//! are the program's own; no number of the host is ever visible.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize};

use rustix::io::Errno;

use super::exports::Entry;

/// Numbers a program can have open at once.
pub(super) const TABLE_SLOTS: usize = 1024;

/// What an open number leads to.
#[derive(Debug)]
pub(super) struct Description {
    /// The thing itself.
    pub(super) object: Object,
    /// Access mode and status flags as F_GETFL tells them.
    pub(super) flags: AtomicU32,
    /// Guest path when it is a directory: what `*at` calls start from.
    pub(super) directory: Option<Vec<u8>>,
}

/// Host file or synthetic directory.
#[derive(Debug)]
pub(super) enum Object {
    /// A descriptor of the host.
    Host(HostFile),
    /// A directory made up here.
    Listing {
        /// Its names.
        entries: Vec<Entry>,
        /// Next entry to hand out.
        next: AtomicUsize,
    },
}

/// A host descriptor and what may be done with it.
#[derive(Debug)]
pub(super) struct HostFile {
    /// The descriptor.
    pub(super) fd: OwnedFd,
    /// How reads and writes that must wait are done.
    pub(super) wait: Wait,
    /// Where it comes from.
    pub(super) origin: Origin,
}

/// How a descriptor is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Never: disk files, directories, memory devices.
    Never,
    /// The open file is ours and has O_NONBLOCK set: try, then poll.
    Private,
    /// The open file is shared with the caller of the program, so its flags
    /// stay as they are: poll, then a call that does not wait.
    Shared,
}

/// Where a host descriptor comes from: decides on what changes its inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Standard input.
    Input,
    /// Standard output or error: the console log gets a copy.
    Output,
    /// An exported directory.
    Export {
        /// May programs write there?
        writable: bool,
    },
    /// A device or a pipe.
    Other,
}

impl Description {
    /// Wraps `object` with status `flags`.
    pub(super) fn new(object: Object, flags: u32, directory: Option<Vec<u8>>) -> Arc<Self> {
        Arc::new(Self {
            object,
            flags: AtomicU32::new(flags),
            directory,
        })
    }

    /// The host file.
    ///
    /// # Errors
    ///
    /// `otherwise` for a synthetic directory.
    pub(super) fn host(&self, otherwise: Errno) -> Result<&HostFile, Errno> {
        match &self.object {
            Object::Host(file) => Ok(file),
            Object::Listing { .. } => Err(otherwise),
        }
    }
}

#[derive(Debug)]
struct Slot {
    description: Arc<Description>,
    close_on_exec: bool,
}

/// The numbers of one program.
#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Vec<Option<Slot>>,
}

impl Table {
    /// What `fd` leads to.
    ///
    /// # Errors
    ///
    /// EBADF when it is not open.
    pub(super) fn get(&self, fd: i32) -> Result<&Arc<Description>, Errno> {
        self.slot(fd).map(|slot| &slot.description)
    }

    /// Gives `description` the lowest free number from `from` up.
    ///
    /// # Errors
    ///
    /// EMFILE when there is none.
    pub(super) fn insert(
        &mut self,
        description: Arc<Description>,
        from: usize,
        close_on_exec: bool,
    ) -> Result<i32, Errno> {
        let is_free = |at: &usize| !matches!(self.slots.get(*at), Some(Some(_)));
        let at = (from..TABLE_SLOTS).find(is_free).ok_or(Errno::MFILE)?;
        let fd = i32::try_from(at).map_err(|_| Errno::MFILE)?;
        self.place(fd, description, close_on_exec)?;
        Ok(fd)
    }

    /// Gives `description` the number `fd`, closing what was there.
    ///
    /// # Errors
    ///
    /// EBADF when the number is out of range.
    pub(super) fn place(
        &mut self,
        fd: i32,
        description: Arc<Description>,
        close_on_exec: bool,
    ) -> Result<(), Errno> {
        let at = usize::try_from(fd).map_err(|_| Errno::BADF)?;
        if at >= TABLE_SLOTS {
            return Err(Errno::BADF);
        }
        if at >= self.slots.len() {
            self.slots.resize_with(at + 1, || None);
        }
        self.slots[at] = Some(Slot {
            description,
            close_on_exec,
        });
        Ok(())
    }

    /// Frees `fd`; the description goes with its last number.
    ///
    /// # Errors
    ///
    /// EBADF when it is not open.
    pub(super) fn remove(&mut self, fd: i32) -> Result<(), Errno> {
        let at = usize::try_from(fd).map_err(|_| Errno::BADF)?;
        let slot = self.slots.get_mut(at).and_then(Option::take);
        slot.map(drop).ok_or(Errno::BADF)
    }

    /// Is `fd` marked to be closed by exec?
    pub(super) fn close_on_exec(&self, fd: i32) -> Result<bool, Errno> {
        self.slot(fd).map(|slot| slot.close_on_exec)
    }

    /// Marks `fd` or takes the mark away.
    pub(super) fn set_close_on_exec(&mut self, fd: i32, value: bool) -> Result<(), Errno> {
        let at = usize::try_from(fd).map_err(|_| Errno::BADF)?;
        match self.slots.get_mut(at) {
            Some(Some(slot)) => {
                slot.close_on_exec = value;
                Ok(())
            }
            _ => Err(Errno::BADF),
        }
    }

    fn slot(&self, fd: i32) -> Result<&Slot, Errno> {
        let at = usize::try_from(fd).map_err(|_| Errno::BADF)?;
        match self.slots.get(at) {
            Some(Some(slot)) => Ok(slot),
            _ => Err(Errno::BADF),
        }
    }
}
