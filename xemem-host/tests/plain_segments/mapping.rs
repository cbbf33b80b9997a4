//! Attempts that the library does not offer: mappings of any kind, and being
//! somebody else.

// UNSAFETY: mmap of descriptors, unmapped at once.
#![expect(unsafe_code)]

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::os::fd::AsFd;

/// Whether `fd` can be mapped like this.
pub(crate) fn try_map(
    fd: impl AsFd,
    len: usize,
    prot: ProtFlags,
    flags: MapFlags,
) -> Result<(), Errno> {
    // SAFETY: a new mapping touches no existing memory, and goes at once.
    unsafe {
        let base = mmap(core::ptr::null_mut(), len, prot, flags, fd, 0)?;
        munmap(base, len)
    }
}

/// Runs `what` in a thread that is another user, with one more group.
pub(crate) fn as_other_user<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(|| {
        let (uid, gid) = (
            rustix::fs::Uid::from_raw(4711),
            rustix::fs::Gid::from_raw(4712),
        );
        let group = rustix::fs::Gid::from_raw(4713);
        // These change this thread only.
        rustix::thread::set_thread_groups(&[group]).expect("groups");
        rustix::thread::set_thread_res_gid(gid, gid, gid).expect("a gid");
        rustix::thread::set_thread_res_uid(uid, uid, uid).expect("a uid");
        what()
    });
    thread.join().expect("no panic")
}
