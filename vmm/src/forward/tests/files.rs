//! Opening, reading, writing, positioning: as Linux does it.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use libc::{
    EBADF, EEXIST, EINVAL, EISDIR, ELOOP, ENOENT, ENOTDIR, ENXIO, EPERM, EROFS, ESPIPE, O_APPEND,
    O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY,
};

use super::{A, Fd, TempDir, Twin, call, path_call, refused, session, u32_at};

#[test]
fn open_succeeds_and_fails_as_natively() {
    let mut twin = Twin::new();
    twin.file("file", b"content");
    fs::create_dir(twin.dir.join("sub")).unwrap();
    fs::create_dir(twin.native.join("sub")).unwrap();
    twin.link("file", "link");
    twin.link("loop", "loop");
    twin.open("/data/file", O_RDONLY);
    twin.open("/data/new", O_CREAT | O_EXCL | O_WRONLY);
    twin.open("/data/link", O_RDWR | O_TRUNC);
    twin.open("/data/sub/", O_RDONLY | O_DIRECTORY);
    let cases = [
        ("/data/none", O_RDONLY, ENOENT),
        ("/data/none/x", O_CREAT | O_WRONLY, ENOENT),
        ("/data/file", O_CREAT | O_EXCL | O_WRONLY, EEXIST),
        ("/data/file", O_RDONLY | O_DIRECTORY, ENOTDIR),
        ("/data/file/", O_RDONLY, ENOTDIR),
        ("/data/file/x", O_RDONLY, ENOTDIR),
        ("/data/sub", O_WRONLY, EISDIR),
        ("/data/sub", O_RDONLY | O_CREAT, EISDIR),
        ("/data/link", O_RDONLY | O_NOFOLLOW, ELOOP),
        ("/data/loop", O_RDONLY, ELOOP),
    ];
    for (path, flags, errno) in cases {
        let args = [A::Path(path), A::N(flags.into()), A::N(0o644)];
        twin.refuse(libc::SYS_open, &args, errno);
    }
    twin.refuse(libc::SYS_open, &[A::Path(""), A::N(0)], ENOENT);
}

#[test]
fn modes_follow_the_session_s_umask_alone() {
    let dir = TempDir::new();
    let mut session = session(&[(dir.path(), "/data", true)]);
    assert_eq!(
        call(&mut session, libc::SYS_umask, [0; 5], &[], &[]).result,
        0o022
    );
    let created = path_call(&mut session, libc::SYS_creat, "/data/open", 0o666, 0);
    assert_eq!(created, 3);
    assert_eq!(
        path_call(&mut session, libc::SYS_mkdir, "/data/dir", 0o777, 0),
        0
    );
    call(&mut session, libc::SYS_umask, [0o077, 0, 0, 0, 0], &[], &[]);
    path_call(&mut session, libc::SYS_creat, "/data/closed", 0o666, 0);
    let mode = |name: &str| fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("open"), 0o666);
    assert_eq!(mode("dir"), 0o777);
    assert_eq!(mode("closed"), 0o600);
}

#[test]
fn openat_starts_at_a_directory_only() {
    let mut twin = Twin::new();
    twin.file("file", b"content");
    let dir = twin.open("/data", O_RDONLY | O_DIRECTORY);
    let place = twin.open("/data", libc::O_PATH);
    let file = twin.open("/data/file", O_RDONLY);
    twin.opens(libc::SYS_openat, &[A::Fd(dir), A::Path("file"), A::N(0)]);
    twin.opens(libc::SYS_openat, &[A::Fd(place), A::Path("file"), A::N(0)]);
    twin.refuse(
        libc::SYS_openat,
        &[A::Fd(file), A::Path("file"), A::N(0)],
        ENOTDIR,
    );
    twin.refuse(
        libc::SYS_openat,
        &[A::N(-7), A::Path("file"), A::N(0)],
        EBADF,
    );
    twin.refuse(
        libc::SYS_openat,
        &[A::Fd(dir), A::Path("none"), A::N(0)],
        ENOENT,
    );
    twin.refuse(libc::SYS_read, &[A::Fd(place), A::Out, A::N(1)], EBADF);
}

#[test]
fn bytes_written_are_read_back() {
    let mut twin = Twin::new();
    let fd = twin.open("/data/file", O_CREAT | O_RDWR);
    let write = |data| [A::Fd(fd), A::Data(data), A::N(5)];
    twin.expect(libc::SYS_write, &write(b"hello"), 5);
    twin.expect(
        libc::SYS_pwrite64,
        &[A::Fd(fd), A::Data(b"J"), A::N(1), A::N(0)],
        1,
    );
    twin.expect(
        libc::SYS_lseek,
        &[A::Fd(fd), A::N(1), A::N(libc::SEEK_SET.into())],
        1,
    );
    let answer = twin.expect(libc::SYS_read, &[A::Fd(fd), A::Out, A::N(100)], 4);
    assert_eq!(answer.guest.data, b"ello");
    let args = [A::Fd(fd), A::Out, A::N(3), A::N(0)];
    let answer = twin.expect(libc::SYS_pread64, &args, 3);
    assert_eq!(answer.guest.data, b"Jel");
    twin.expect(libc::SYS_read, &[A::Fd(fd), A::Out, A::N(9)], 0);
    twin.refuse(
        libc::SYS_pread64,
        &[A::Fd(fd), A::Out, A::N(3), A::N(-1)],
        EINVAL,
    );
    twin.refuse(
        libc::SYS_pwrite64,
        &[A::Fd(fd), A::Out, A::N(3), A::N(-1)],
        EINVAL,
    );
    let reader = twin.open("/data/file", O_RDONLY);
    let writer = twin.open("/data/file", O_WRONLY);
    twin.refuse(
        libc::SYS_write,
        &[A::Fd(reader), A::Data(b"x"), A::N(1)],
        EBADF,
    );
    twin.refuse(libc::SYS_read, &[A::Fd(writer), A::Out, A::N(1)], EBADF);
    twin.expect(libc::SYS_fsync, &[A::Fd(fd)], 0);
    twin.expect(libc::SYS_fdatasync, &[A::Fd(fd)], 0);
    let advice = [
        A::Fd(fd),
        A::N(0),
        A::N(0),
        A::N(libc::POSIX_FADV_SEQUENTIAL.into()),
    ];
    twin.expect(libc::SYS_fadvise64, &advice, 0);
}

#[test]
fn appending_writes_go_to_the_end() {
    let mut twin = Twin::new();
    twin.file("file", b"one ");
    let fd = twin.open("/data/file", O_WRONLY | O_APPEND);
    twin.expect(libc::SYS_write, &[A::Fd(fd), A::Data(b"two"), A::N(3)], 3);
    assert_eq!(fs::read(twin.dir.join("file")).unwrap(), b"one two");
    twin.expect(
        libc::SYS_fcntl,
        &[A::Fd(fd), A::N(libc::F_SETFL.into()), A::N(0)],
        0,
    );
    twin.expect(libc::SYS_write, &[A::Fd(fd), A::Data(b"T"), A::N(1)], 1);
    let native = fs::read(twin.native.join("file")).unwrap();
    assert_eq!(fs::read(twin.dir.join("file")).unwrap(), native);
}

#[test]
fn seeking_is_checked_as_natively() {
    let mut twin = Twin::new();
    twin.file("file", b"0123456789");
    let fd = twin.open("/data/file", O_RDONLY);
    let cases = [
        (3, libc::SEEK_SET),
        (2, libc::SEEK_CUR),
        (-1, libc::SEEK_END),
        (-1, libc::SEEK_SET),
        (i64::MAX, libc::SEEK_CUR),
        (2, libc::SEEK_DATA),
        (2, libc::SEEK_HOLE),
        (-1, libc::SEEK_DATA),
        (0, 99),
    ];
    for (offset, whence) in cases {
        twin.same(
            libc::SYS_lseek,
            &[A::Fd(fd), A::N(offset), A::N(whence.into())],
        );
    }
    twin.refuse(libc::SYS_lseek, &[A::N(-1), A::N(0), A::N(0)], EBADF);
}

#[test]
fn lengths_are_set_as_natively() {
    let mut twin = Twin::new();
    twin.file("file", b"0123456789");
    twin.expect(libc::SYS_truncate, &[A::Path("/data/file"), A::N(4)], 0);
    assert_eq!(fs::read(twin.dir.join("file")).unwrap(), b"0123");
    twin.refuse(
        libc::SYS_truncate,
        &[A::Path("/data/file"), A::N(-1)],
        EINVAL,
    );
    twin.refuse(libc::SYS_truncate, &[A::Path("/data"), A::N(0)], EISDIR);
    twin.refuse(
        libc::SYS_truncate,
        &[A::Path("/data/none"), A::N(0)],
        ENOENT,
    );
    let fd = twin.open("/data/file", O_RDWR);
    twin.expect(libc::SYS_ftruncate, &[A::Fd(fd), A::N(2)], 0);
    assert_eq!(fs::read(twin.dir.join("file")).unwrap(), b"01");
    let reader = twin.open("/data/file", O_RDONLY);
    twin.refuse(libc::SYS_ftruncate, &[A::Fd(reader), A::N(2)], EINVAL);
    twin.refuse(libc::SYS_ftruncate, &[A::N(-1), A::N(2)], EBADF);
}

#[test]
fn directories_list_every_name_once() {
    let mut twin = Twin::new();
    for at in 0..300 {
        twin.file(&format!("file with a long name {at}"), b"");
    }
    let fd = twin.open("/data", O_RDONLY | O_DIRECTORY);
    let mut names = [Vec::new(), Vec::new()];
    loop {
        let answer = twin.both(libc::SYS_getdents64, &[A::Fd(fd), A::Out, A::N(2048)]);
        assert_eq!(answer.guest.result == 0, answer.native == 0);
        if answer.native == 0 {
            break;
        }
        assert!(answer.guest.data.len() <= 2048);
        names[0].extend(names_in(&answer.guest.data));
        let length = usize::try_from(answer.native).unwrap();
        names[1].extend(names_in(&answer.bounce[..length]));
    }
    names.iter_mut().for_each(|names| names.sort());
    assert_eq!(names[0].len(), 302);
    assert_eq!(names[0], names[1]);
    twin.expect(libc::SYS_lseek, &[A::Fd(fd), A::N(0), A::N(0)], 0);
    twin.refuse(libc::SYS_getdents64, &[A::Fd(fd), A::Out, A::N(10)], EINVAL);
    let file = twin.open("/data/file with a long name 0", O_RDONLY);
    twin.refuse(
        libc::SYS_getdents64,
        &[A::Fd(file), A::Out, A::N(2048)],
        ENOTDIR,
    );
    twin.refuse(libc::SYS_read, &[A::Fd(fd), A::Out, A::N(10)], EISDIR);
}

/// Names and types in the bytes of getdents64.
fn names_in(mut bytes: &[u8]) -> Vec<(Vec<u8>, u8)> {
    let mut names = Vec::new();
    while !bytes.is_empty() {
        let length = usize::from(u16::from_le_bytes([bytes[16], bytes[17]]));
        let name = bytes[19..length].split(|&byte| byte == 0).next().unwrap();
        names.push((name.to_vec(), bytes[18]));
        bytes = &bytes[length..];
    }
    names
}

#[test]
fn directories_above_the_exports_are_listed() {
    let dir = TempDir::new();
    let mut session = session(&[(dir.path(), "/data", true), (dir.path(), "/a/b/c", true)]);
    let list = |session: &mut super::Session, path: &str| {
        let fd = path_call(session, libc::SYS_open, path, O_DIRECTORY.into(), 0);
        assert!(fd >= 0, "{path}: {fd}");
        let args = [fd, 0, 4096, 0, 0];
        let names = names_in(&call(session, libc::SYS_getdents64, args, &[], &[]).data);
        let end = call(session, libc::SYS_getdents64, args, &[], &[]);
        assert_eq!(end.result, 0);
        names
            .into_iter()
            .map(|(name, kind)| (String::from_utf8(name).unwrap(), kind))
            .collect::<Vec<_>>()
    };
    let expect = |names: &[(&str, u8)]| {
        names
            .iter()
            .map(|&(name, kind)| (name.to_owned(), kind))
            .collect::<Vec<_>>()
    };
    let root = [(".", 4), ("..", 4), ("a", 4), ("data", 4), ("dev", 4)];
    assert_eq!(list(&mut session, "/"), expect(&root));
    assert_eq!(
        list(&mut session, "/a"),
        expect(&[(".", 4), ("..", 4), ("b", 4)])
    );
    let dev = [
        (".", 4),
        ("..", 4),
        ("null", 2),
        ("urandom", 2),
        ("zero", 2),
    ];
    assert_eq!(list(&mut session, "/dev"), expect(&dev));
    let open = |session: &mut super::Session, path: &str, flags: i32| {
        path_call(session, libc::SYS_open, path, flags.into(), 0o644)
    };
    assert_eq!(open(&mut session, "/", O_WRONLY), refused(EISDIR));
    assert_eq!(
        open(&mut session, "/a/x", O_CREAT | O_WRONLY),
        refused(EROFS)
    );
    assert_eq!(open(&mut session, "/etc/passwd", O_RDONLY), refused(ENOENT));
    let stat = call(
        &mut session,
        libc::SYS_stat,
        [0, 4096, 0, 0, 0],
        b"/a\0",
        &[],
    );
    assert_eq!(u32_at(&stat.data, 24), 0o040_555);
    assert_eq!(path_call(&mut session, libc::SYS_chdir, "/a", 0, 0), 0);
    assert!(open(&mut session, "b/c", O_DIRECTORY) >= 0);
    let statfs = path_call(&mut session, libc::SYS_statfs, "/", 4096, 0);
    assert_eq!(statfs, 0);
}

#[test]
fn devices_are_the_host_s() {
    let mut twin = Twin::new();
    let zero = twin.open("/dev/zero", O_RDONLY);
    let answer = twin.expect(libc::SYS_read, &[A::Fd(zero), A::Out, A::N(16)], 16);
    assert_eq!(answer.guest.data, [0; 16]);
    let null = twin.open("/dev/null", O_WRONLY | O_CREAT | O_TRUNC);
    twin.expect(libc::SYS_write, &[A::Fd(null), A::Data(b"x"), A::N(1)], 1);
    let random = twin.open("/dev/urandom", O_RDONLY);
    let answer = twin.expect(libc::SYS_read, &[A::Fd(random), A::Out, A::N(16)], 16);
    assert_ne!(answer.guest.data, [0; 16]);
    twin.expect(libc::SYS_access, &[A::Path("/dev/null"), A::N(6)], 0);
    twin.refuse(
        libc::SYS_open,
        &[A::Path("/dev/null"), A::N(O_DIRECTORY.into())],
        ENOTDIR,
    );
    let session = &mut twin.session;
    assert_eq!(
        path_call(session, libc::SYS_chmod, "/dev/null", 0o600, 0),
        refused(EPERM)
    );
    let fchmod = [null.guest.into(), 0o600, 0, 0, 0];
    assert_eq!(
        call(session, libc::SYS_fchmod, fchmod, &[], &[]).result,
        refused(EPERM)
    );
    assert_eq!(
        path_call(session, libc::SYS_unlink, "/dev/null", 0, 0),
        refused(EROFS)
    );
    assert_eq!(
        path_call(session, libc::SYS_open, "/dev/tty", 0, 0),
        refused(ENOENT)
    );
}

#[test]
fn sendfile_copies_and_moves_the_position() {
    let mut twin = Twin::new();
    twin.file("from", b"0123456789");
    let from = twin.open("/data/from", O_RDONLY);
    let to = twin.open("/data/to", O_CREAT | O_RDWR);
    let args = [A::Fd(to), A::Fd(from), A::N(0), A::N(4)];
    twin.expect(libc::SYS_sendfile, &args, 4);
    twin.expect(
        libc::SYS_lseek,
        &[A::Fd(from), A::N(0), A::N(libc::SEEK_CUR.into())],
        4,
    );
    let offset = 8_i64.to_le_bytes();
    let args = [A::Fd(to), A::Fd(from), A::Struct(&offset), A::N(400)];
    let answer = twin.expect(libc::SYS_sendfile, &args, 2);
    assert_eq!(answer.guest.data, 10_i64.to_le_bytes());
    assert_eq!(answer.guest.data, answer.native_data());
    assert_eq!(fs::read(twin.dir.join("to")).unwrap(), b"012389");
    let reader = twin.open("/data/to", O_RDONLY);
    let args = [A::Fd(reader), A::Fd(from), A::N(0), A::N(4)];
    twin.refuse(libc::SYS_sendfile, &args, EBADF);
}

#[test]
fn device_nodes_and_sockets_are_not_opened() {
    let dir = TempDir::new();
    let _socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
    let mut session = session(&[(dir.path(), "/data", true)]);
    let result = path_call(&mut session, libc::SYS_open, "/data/socket", 0, 0);
    assert_eq!(result, refused(ENXIO));
    // The host's own device directory stands for one with nodes in it.
    let mut session = super::session(&[(std::path::Path::new("/dev"), "/data", true)]);
    for name in ["/data/null", "/data/full"] {
        let result = path_call(&mut session, libc::SYS_open, name, O_RDWR.into(), 0);
        assert_eq!(result, refused(ENXIO), "{name}");
        let result = path_call(&mut session, libc::SYS_truncate, name, 0, 0);
        assert_eq!(result, refused(EINVAL), "{name}");
    }
}

#[test]
fn positions_are_refused_on_pipes() {
    let mut twin = Twin::new();
    let answer = twin.both(libc::SYS_pipe2, &[A::Struct(&[]), A::N(0)]);
    let fd = |bytes: &[u8], at| i32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let reader = Fd {
        guest: fd(&answer.guest.data, 0),
        native: fd(answer.native_data(), 0),
    };
    twin.refuse(libc::SYS_lseek, &[A::Fd(reader), A::N(0), A::N(0)], ESPIPE);
    twin.refuse(
        libc::SYS_pread64,
        &[A::Fd(reader), A::Out, A::N(1), A::N(0)],
        ESPIPE,
    );
    let advice = [A::Fd(reader), A::N(0), A::N(0), A::N(0)];
    twin.refuse(libc::SYS_fadvise64, &advice, ESPIPE);
}

#[test]
fn random_bytes_come_from_the_host() {
    let mut twin = Twin::new();
    let answer = twin.expect(libc::SYS_getrandom, &[A::Out, A::N(64), A::N(0)], 64);
    assert_ne!(answer.guest.data, answer.native_data());
    assert_ne!(answer.guest.data, [0; 64]);
    twin.refuse(libc::SYS_getrandom, &[A::Out, A::N(64), A::N(99)], EINVAL);
}
