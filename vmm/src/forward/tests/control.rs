//! Duplicates, flags, locks, the working directory: as Linux does it.

use std::fs;

use libc::{
    EBADF, EINVAL, ENOENT, ENOTDIR, ENOTTY, ERANGE, O_APPEND, O_CLOEXEC, O_CREAT, O_DIRECTORY,
    O_NONBLOCK, O_RDONLY, O_RDWR,
};

use super::{A, Fd, TempDir, Twin, call, path_call, refused, session};

#[test]
fn duplicates_share_position_and_flags() {
    let mut twin = Twin::new();
    twin.file("file", b"0123456789");
    let fd = twin.open("/data/file", O_RDONLY | O_CLOEXEC);
    let getfd = |fd: Fd| [A::Fd(fd), A::N(libc::F_GETFD.into())];
    twin.expect(libc::SYS_fcntl, &getfd(fd), 1);
    let copy = twin.opens(libc::SYS_dup, &[A::Fd(fd)]);
    twin.expect(libc::SYS_fcntl, &getfd(copy), 0);
    twin.expect(libc::SYS_read, &[A::Fd(copy), A::Out, A::N(4)], 4);
    twin.expect(
        libc::SYS_lseek,
        &[A::Fd(fd), A::N(0), A::N(libc::SEEK_CUR.into())],
        4,
    );
    twin.expect(
        libc::SYS_fcntl,
        &[A::Fd(copy), A::N(libc::F_SETFD.into()), A::N(1)],
        0,
    );
    twin.expect(libc::SYS_fcntl, &getfd(copy), 1);
    let getfl = |fd: Fd| [A::Fd(fd), A::N(libc::F_GETFL.into())];
    twin.same(libc::SYS_fcntl, &getfl(fd));
    let flags = O_NONBLOCK | O_APPEND;
    twin.expect(
        libc::SYS_fcntl,
        &[A::Fd(fd), A::N(libc::F_SETFL.into()), A::N(flags.into())],
        0,
    );
    twin.same(libc::SYS_fcntl, &getfl(copy));
    let dupfd = A::N(libc::F_DUPFD.into());
    let high = twin.opens(libc::SYS_fcntl, &[A::Fd(fd), dupfd, A::N(100)]);
    assert_eq!(high.guest, 100);
    let dupfd_cloexec = A::N(libc::F_DUPFD_CLOEXEC.into());
    let high = twin.opens(libc::SYS_fcntl, &[A::Fd(fd), dupfd_cloexec, A::N(100)]);
    assert_eq!(high.guest, 101);
    twin.expect(libc::SYS_fcntl, &getfd(high), 1);
    twin.refuse(libc::SYS_fcntl, &[A::Fd(fd), dupfd, A::N(-1)], EINVAL);
    twin.refuse(libc::SYS_fcntl, &[A::Fd(fd), A::N(999), A::N(0)], EINVAL);
    twin.refuse(libc::SYS_fcntl, &[A::N(99_999), A::N(1), A::N(0)], EBADF);
    twin.refuse(libc::SYS_dup, &[A::N(-1)], EBADF);
    twin.expect(libc::SYS_close, &[A::Fd(copy)], 0);
    assert_eq!(
        call(
            &mut twin.session,
            libc::SYS_close,
            [copy.guest.into(), 0, 0, 0, 0],
            &[],
            &[]
        )
        .result,
        refused(EBADF)
    );
}

#[test]
fn dup2_and_dup3_take_the_number_given() {
    let dir = TempDir::new();
    fs::write(dir.join("file"), b"x").unwrap();
    let mut session = session(&[(dir.path(), "/data", true)]);
    let fd = path_call(&mut session, libc::SYS_open, "/data/file", 0, 0);
    assert_eq!(fd, 3);
    let mut make = |nr, args| call(&mut session, nr, args, &[], &[]).result;
    let cloexec = i64::from(O_CLOEXEC);
    let getfd = i64::from(libc::F_GETFD);
    assert_eq!(make(libc::SYS_dup2, [3, 1, 0, 0, 0]), 1);
    assert_eq!(make(libc::SYS_read, [1, 0, 9, 0, 0]), 1);
    assert_eq!(make(libc::SYS_dup2, [3, 3, 0, 0, 0]), 3);
    assert_eq!(make(libc::SYS_dup2, [3, 1024, 0, 0, 0]), refused(EBADF));
    assert_eq!(make(libc::SYS_dup2, [9, 9, 0, 0, 0]), refused(EBADF));
    assert_eq!(make(libc::SYS_dup3, [3, 1023, cloexec, 0, 0]), 1023);
    assert_eq!(make(libc::SYS_fcntl, [1023, getfd, 0, 0, 0]), 1);
    assert_eq!(make(libc::SYS_dup3, [3, 3, 0, 0, 0]), refused(EINVAL));
    assert_eq!(make(libc::SYS_dup3, [3, 4, 1, 0, 0]), refused(EINVAL));
}

#[test]
fn a_file_is_no_terminal() {
    let mut twin = Twin::new();
    let fd = twin.open("/data/file", O_CREAT | O_RDWR);
    for request in [libc::TCGETS, libc::TIOCGWINSZ] {
        let request = A::N(i64::try_from(request).unwrap());
        twin.refuse(
            libc::SYS_ioctl,
            &[A::Fd(fd), request, A::Struct(&[])],
            ENOTTY,
        );
    }
    twin.refuse(
        libc::SYS_ioctl,
        &[A::N(99_999), A::N(0x5401), A::Struct(&[])],
        EBADF,
    );
}

#[test]
fn the_working_directory_moves() {
    let dir = TempDir::new();
    fs::create_dir(dir.join("sub")).unwrap();
    fs::write(dir.join("file"), b"x").unwrap();
    let mut session = session(&[(dir.path(), "/data", true)]);
    let cwd = |session: &mut super::Session| {
        let reply = call(session, libc::SYS_getcwd, [0, 100, 0, 0, 0], &[], &[]);
        assert_eq!(usize::try_from(reply.result), Ok(reply.data.len()));
        String::from_utf8(reply.data).unwrap()
    };
    assert_eq!(cwd(&mut session), "/data\0");
    assert_eq!(path_call(&mut session, libc::SYS_chdir, "sub", 0, 0), 0);
    assert_eq!(cwd(&mut session), "/data/sub\0");
    assert_eq!(
        path_call(&mut session, libc::SYS_access, "../file", 0, 0),
        0
    );
    assert_eq!(
        path_call(&mut session, libc::SYS_chdir, "../file", 0, 0),
        refused(ENOTDIR)
    );
    assert_eq!(
        path_call(&mut session, libc::SYS_chdir, "none", 0, 0),
        refused(ENOENT)
    );
    let short = call(&mut session, libc::SYS_getcwd, [0, 5, 0, 0, 0], &[], &[]);
    assert_eq!(short.result, refused(ERANGE));
    let fd = path_call(&mut session, libc::SYS_open, "/data", O_DIRECTORY.into(), 0);
    assert_eq!(
        call(&mut session, libc::SYS_fchdir, [fd, 0, 0, 0, 0], &[], &[]).result,
        0
    );
    assert_eq!(cwd(&mut session), "/data\0");
    let file = path_call(&mut session, libc::SYS_open, "file", 0, 0);
    let result = call(&mut session, libc::SYS_fchdir, [file, 0, 0, 0, 0], &[], &[]).result;
    assert_eq!(result, refused(ENOTDIR));
}

#[test]
fn locks_exclude_the_native_holder() {
    let mut twin = Twin::new();
    twin.file("file", b"x");
    let fd = twin.open("/data/file", O_RDONLY);
    let exclusive = A::N((libc::LOCK_EX | libc::LOCK_NB).into());
    twin.expect(libc::SYS_flock, &[A::Fd(fd), exclusive], 0);
    let other = twin.open("/data/file", O_RDONLY);
    twin.refuse(libc::SYS_flock, &[A::Fd(other), exclusive], libc::EAGAIN);
    twin.expect(libc::SYS_flock, &[A::Fd(fd), A::N(libc::LOCK_UN.into())], 0);
    twin.expect(libc::SYS_flock, &[A::Fd(other), exclusive], 0);
    twin.refuse(libc::SYS_flock, &[A::Fd(fd), A::N(0)], EINVAL);
}
