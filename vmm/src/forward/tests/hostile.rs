//! Arguments no honest program passes: refused, bounded, never a panic.

use std::fs;
use std::os::fd::AsFd;

use libc::{EBADF, EINVAL, EMFILE, ENAMETOOLONG, ENOENT, ENOSYS, O_CREAT, O_RDWR};

use super::super::calls::CALLS;
use super::{DATA_MAX, TempDir, call, eventfd, path_call, refused, session};

#[test]
fn numbers_not_served_are_unknown() {
    let dir = TempDir::new();
    let mut session = session(&[(dir.path(), "/data", true)]);
    for nr in [9, 57, 59, 101, 1024, 9999, i64::MAX, -1] {
        let reply = call(&mut session, nr, [0; 5], &[], &[]);
        assert_eq!(reply.result, refused(ENOSYS), "{nr}");
    }
}

#[test]
fn every_call_survives_hostile_arguments() {
    let dir = TempDir::new();
    fs::write(dir.join("x"), b"x").unwrap();
    let values = [
        0,
        1,
        3,
        4096,
        1 << 31,
        1 << 32,
        u64::MAX,
        u64::MAX - 99,
        1 << 63,
    ];
    let long = vec![b'a'; 9000];
    let mut path = b"/data/x\0".to_vec();
    path.resize(8192, 0xff);
    let inputs: [&[u8]; 5] = [&[], b"x", b"\0", &long, &path];
    let cancel = eventfd(1);
    for &nr in CALLS.iter().map(|call| &call.nr) {
        for (at, input) in inputs.iter().enumerate() {
            for first in values {
                for second in values {
                    let mut session = session(&[(dir.path(), "/data", true)]);
                    let args = [first, second, values[at], second, first];
                    let reply = session.call(nr.cast_unsigned(), args, input, cancel.as_fd());
                    let end = reply.data_offset + reply.data.len();
                    assert!(end <= DATA_MAX && reply.result > -4096, "call {nr}");
                }
            }
        }
    }
}

#[test]
fn a_huge_read_is_cut_to_the_bounce_area() {
    let dir = TempDir::new();
    fs::write(dir.join("big"), vec![7; 3 * DATA_MAX]).unwrap();
    let mut session = session(&[(dir.path(), "/data", true)]);
    let fd = path_call(&mut session, libc::SYS_open, "/data/big", 0, 0);
    for length in [i64::MAX, -1, 1 << 40] {
        let reply = call(
            &mut session,
            libc::SYS_read,
            [fd, 0, length, 0, 0],
            &[],
            &[],
        );
        assert_eq!(reply.data.len(), DATA_MAX);
    }
}

#[test]
fn a_write_takes_no_more_than_came_along() {
    let dir = TempDir::new();
    let mut session = session(&[(dir.path(), "/data", true)]);
    let flags = (O_CREAT | O_RDWR).into();
    let fd = path_call(&mut session, libc::SYS_open, "/data/file", flags, 0o644);
    let args = [fd, 0, i64::MAX, 0, 0].map(i64::cast_unsigned);
    let cancel = eventfd(0);
    let reply = session.call(1, args, b"three", cancel.as_fd());
    assert_eq!(reply.result, 5);
    assert_eq!(fs::read(dir.join("file")).unwrap(), b"three");
}

#[test]
fn paths_are_bytes_with_an_end() {
    let dir = TempDir::new();
    let mut session = session(&[(dir.path(), "/data", true)]);
    let name = b"/data/\xff\xfe\x01 name\0";
    let reply = call(
        &mut session,
        libc::SYS_creat,
        [0, 0o644, 0, 0, 0],
        name,
        &[],
    );
    assert_eq!(reply.result, 3);
    use std::os::unix::ffi::OsStrExt;
    let entry = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap();
    assert_eq!(entry.file_name().as_bytes(), b"\xff\xfe\x01 name");
    let cancel = eventfd(0);
    let mut open = |input: &[u8]| session.call(2, [0; 5], input, cancel.as_fd()).result;
    assert_eq!(open(b"/data/no end"), refused(EINVAL));
    assert_eq!(open(&[b'a'; 8192]), refused(ENAMETOOLONG));
    assert_eq!(
        open(&[b"/data/", &[b'a'; 300][..], b"\0"].concat()),
        refused(ENAMETOOLONG)
    );
    assert_eq!(open(b"\0"), refused(ENOENT));
}

#[test]
fn joined_paths_beyond_the_limit_are_refused() {
    let dir = TempDir::new();
    let mut session = session(&[(dir.path(), "/data", true)]);
    let step = "d".repeat(200);
    let mut depth = 0;
    let result = loop {
        assert_eq!(path_call(&mut session, libc::SYS_mkdir, &step, 0o755, 0), 0);
        match path_call(&mut session, libc::SYS_chdir, &step, 0, 0) {
            0 => depth += 1,
            other => break other,
        }
        if depth == 19 {
            break path_call(&mut session, libc::SYS_mkdir, &"d".repeat(300), 0o755, 0);
        }
    };
    assert_eq!(result, refused(ENAMETOOLONG));
}

#[test]
fn the_table_ends_at_1024() {
    let dir = TempDir::new();
    let mut session = session(&[(dir.path(), "/data", true)]);
    let dup = |session: &mut super::Session| {
        call(session, libc::SYS_dup, [0, 0, 0, 0, 0], &[], &[]).result
    };
    for expected in 3..1024 {
        assert_eq!(dup(&mut session), expected);
    }
    assert_eq!(dup(&mut session), refused(EMFILE));
    assert_eq!(
        path_call(&mut session, libc::SYS_open, "/data", 0, 0),
        refused(EMFILE)
    );
    let close = |session: &mut super::Session, fd| {
        call(session, libc::SYS_close, [fd, 0, 0, 0, 0], &[], &[]).result
    };
    // One number is too few for a pipe, and it stays free.
    assert_eq!(close(&mut session, 500), 0);
    let pipe = call(&mut session, libc::SYS_pipe, [4096, 0, 0, 0, 0], &[], &[]);
    assert_eq!(pipe.result, refused(EMFILE));
    assert_eq!(dup(&mut session), 500);
    assert_eq!(close(&mut session, 1024), refused(EBADF));
    assert_eq!(close(&mut session, -1), refused(EBADF));
}
