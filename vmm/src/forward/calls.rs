//! The table of forwarded calls: number, name, handler.
//!
//! One list serves dispatch and counters, so neither can know a call that the
//! other does not. Forms without a directory argument are served by the `at`
//! form's code with the working directory.

use rustix::io::Errno;

use super::{Reply, Request, Session, attributes, control, files, names, open, poll, stat};

/// Serves one call.
pub(super) type Handler = fn(&mut Session, &Request<'_>) -> Result<Reply, Errno>;

/// A forwarded call.
pub(super) struct Call {
    pub(super) nr: i64,
    name: &'static str,
    handler: Handler,
}

/// Name of call `nr` if it is served, for counters and logs.
#[must_use]
pub fn name(nr: u64) -> Option<&'static str> {
    find(nr).map(|call| call.name)
}

pub(super) fn handler(nr: u64) -> Option<Handler> {
    find(nr).map(|call| call.handler)
}

fn find(nr: u64) -> Option<&'static Call> {
    let nr = i64::try_from(nr).ok()?;
    let at = CALLS.binary_search_by_key(&nr, |call| call.nr).ok()?;
    CALLS.get(at)
}

macro_rules! calls {
    ($($nr:ident $name:literal $handler:path;)*) => {
        /// Every call served, by ascending number.
        pub(super) static CALLS: &[Call] = &[
            $(Call { nr: libc::$nr, name: $name, handler: $handler }),*
        ];
    };
}

calls! {
    SYS_read "read" files::read;
    SYS_write "write" files::write;
    SYS_open "open" open::open;
    SYS_close "close" files::close;
    SYS_stat "stat" stat::stat;
    SYS_fstat "fstat" stat::fstat;
    SYS_lstat "lstat" stat::lstat;
    SYS_poll "poll" poll::poll;
    SYS_lseek "lseek" files::lseek;
    SYS_ioctl "ioctl" control::ioctl;
    SYS_pread64 "pread64" files::pread64;
    SYS_pwrite64 "pwrite64" files::pwrite64;
    SYS_access "access" stat::access;
    SYS_pipe "pipe" control::pipe;
    SYS_dup "dup" control::dup;
    SYS_dup2 "dup2" control::dup2;
    SYS_nanosleep "nanosleep" poll::nanosleep;
    SYS_sendfile "sendfile" files::sendfile;
    SYS_fcntl "fcntl" control::fcntl;
    SYS_flock "flock" control::flock;
    SYS_fsync "fsync" files::fsync;
    SYS_fdatasync "fdatasync" files::fdatasync;
    SYS_truncate "truncate" files::truncate;
    SYS_ftruncate "ftruncate" files::ftruncate;
    SYS_getcwd "getcwd" control::getcwd;
    SYS_chdir "chdir" control::chdir;
    SYS_fchdir "fchdir" control::fchdir;
    SYS_rename "rename" names::rename;
    SYS_mkdir "mkdir" names::mkdir;
    SYS_rmdir "rmdir" names::rmdir;
    SYS_creat "creat" open::creat;
    SYS_link "link" names::link;
    SYS_unlink "unlink" names::unlink;
    SYS_symlink "symlink" names::symlink;
    SYS_readlink "readlink" stat::readlink;
    SYS_chmod "chmod" attributes::chmod;
    SYS_fchmod "fchmod" attributes::fchmod;
    SYS_chown "chown" attributes::chown;
    SYS_fchown "fchown" attributes::fchown;
    SYS_lchown "lchown" attributes::lchown;
    SYS_umask "umask" control::umask;
    SYS_statfs "statfs" stat::statfs;
    SYS_fstatfs "fstatfs" stat::fstatfs;
    SYS_getdents64 "getdents64" files::getdents64;
    SYS_fadvise64 "fadvise64" files::fadvise64;
    SYS_openat "openat" open::openat;
    SYS_mkdirat "mkdirat" names::mkdirat;
    SYS_fchownat "fchownat" attributes::fchownat;
    SYS_newfstatat "newfstatat" stat::newfstatat;
    SYS_unlinkat "unlinkat" names::unlinkat;
    SYS_renameat "renameat" names::renameat;
    SYS_linkat "linkat" names::linkat;
    SYS_symlinkat "symlinkat" names::symlink;
    SYS_readlinkat "readlinkat" stat::readlinkat;
    SYS_fchmodat "fchmodat" attributes::fchmodat;
    SYS_faccessat "faccessat" stat::faccessat;
    SYS_utimensat "utimensat" attributes::utimensat;
    SYS_fallocate "fallocate" files::fallocate;
    SYS_dup3 "dup3" control::dup3;
    SYS_pipe2 "pipe2" control::pipe2;
    SYS_renameat2 "renameat2" names::renameat2;
    SYS_getrandom "getrandom" files::getrandom;
    SYS_statx "statx" stat::statx;
    SYS_faccessat2 "faccessat2" stat::faccessat2;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_ascend_and_names_are_found() {
        assert!(CALLS.is_sorted_by(|a, b| a.nr < b.nr));
        assert_eq!(name(0), Some("read"));
        assert_eq!(name(439), Some("faccessat2"));
        assert_eq!(name(57), None);
        assert_eq!(name(u64::MAX), None);
    }
}
