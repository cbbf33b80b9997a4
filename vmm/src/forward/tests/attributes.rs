//! Attributes, access, times, link targets: as Linux does it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use libc::{EBADF, EINVAL, ENOENT, EPERM, O_RDONLY};

use super::{A, TempDir, Twin, call, path_call, refused, session, u32_at, u64_at};

#[test]
fn stat_tells_kind_links_and_size() {
    let mut twin = Twin::new();
    twin.file("file", b"0123456789");
    twin.link("file", "link");
    let fd = twin.open("/data/file", O_RDONLY);
    let cwd = A::N(libc::AT_FDCWD.into());
    let empty = A::N(libc::AT_EMPTY_PATH.into());
    let at = A::Struct(&[]);
    let calls: [(i64, &[A<'_>]); 7] = [
        (libc::SYS_stat, &[A::Path("/data/file"), at]),
        (libc::SYS_stat, &[A::Path("/data/link"), at]),
        (libc::SYS_lstat, &[A::Path("/data/link"), at]),
        (libc::SYS_fstat, &[A::Fd(fd), at]),
        (libc::SYS_newfstatat, &[cwd, A::Path("/data"), at, A::N(0)]),
        (libc::SYS_newfstatat, &[A::Fd(fd), A::Path(""), at, empty]),
        (
            libc::SYS_newfstatat,
            &[
                cwd,
                A::Path("/data/link"),
                at,
                A::N(libc::AT_SYMLINK_NOFOLLOW.into()),
            ],
        ),
    ];
    for (nr, args) in calls {
        let answer = twin.expect(nr, args, 0);
        let (guest, native) = (&answer.guest.data, answer.native_data());
        assert_eq!(answer.guest.data_offset, 4096);
        assert_eq!(guest.len(), 144);
        // Link count; mode, user and group; size, block size and blocks.
        assert_eq!(guest[16..40], native[16..40]);
        assert_eq!(guest[48..72], native[48..72]);
        assert_ne!(u64_at(guest, 8), 0, "inode number");
        // Both trees were made within the same day.
        assert!(u64_at(guest, 88).abs_diff(u64_at(native, 88)) < 86_400);
    }
    twin.refuse(libc::SYS_stat, &[A::Path("/data/none"), at], ENOENT);
    twin.refuse(libc::SYS_fstat, &[A::N(77), at], EBADF);
    twin.refuse(
        libc::SYS_newfstatat,
        &[cwd, A::Path("/data"), at, A::N(0x40_0000)],
        EINVAL,
    );
    twin.refuse(
        libc::SYS_newfstatat,
        &[cwd, A::Path(""), at, A::N(0)],
        ENOENT,
    );
}

#[test]
fn statx_tells_what_stat_tells() {
    let dir = TempDir::new();
    fs::write(dir.path().join("file"), b"12345").unwrap();
    let mut session = session(&[(dir.path(), "/data", true)]);
    let mut told = |path: &str, flags: i64, mask: i64| {
        let cwd = libc::AT_FDCWD.into();
        let path = format!("{path}\0");
        let args = [cwd, 0, flags, mask, 0];
        call(&mut session, libc::SYS_statx, args, path.as_bytes(), &[])
    };
    let here = told("/data/file", 0, libc::STATX_BASIC_STATS.into());
    assert_eq!(here.result, 0);
    let number = |at: usize, bytes: usize| {
        let mut word = [0; 8];
        word[..bytes].copy_from_slice(&here.data[at..at + bytes]);
        u64::from_le_bytes(word)
    };
    let native = fs::metadata(dir.path().join("file")).unwrap();
    assert_eq!(here.data.len(), 256);
    assert_eq!(number(28, 2), u64::from(native.mode()));
    assert_eq!(number(32, 8), native.ino());
    assert_eq!(number(40, 8), 5);
    assert_eq!(number(112, 8), native.mtime().cast_unsigned());
    assert_eq!(number(140, 4), u64::from(rustix::fs::minor(native.dev())));
    assert_eq!(told("/data/missing", 0, 0).result, refused(ENOENT));
    assert_eq!(told("/", 0, 0).result, 0);
    assert_eq!(told("/data/file", 0x4000_0000, 0).result, refused(EINVAL));
    assert_eq!(told("/data/file", 0x6000, 0).result, refused(EINVAL));
    assert_eq!(told("/data/file", 0, 1 << 31).result, refused(EINVAL));
}

#[test]
fn access_answers_as_natively() {
    let mut twin = Twin::new();
    twin.file("file", b"x");
    let cwd = A::N(libc::AT_FDCWD.into());
    for mode in [libc::F_OK, libc::R_OK | libc::W_OK, libc::X_OK, 99] {
        let mode = A::N(mode.into());
        twin.same(libc::SYS_access, &[A::Path("/data/file"), mode]);
        twin.same(libc::SYS_faccessat, &[cwd, A::Path("/data/file"), mode]);
        let effective = A::N(libc::AT_EACCESS.into());
        twin.same(
            libc::SYS_faccessat2,
            &[cwd, A::Path("/data/file"), mode, effective],
        );
    }
    twin.refuse(libc::SYS_access, &[A::Path("/data/none"), A::N(0)], ENOENT);
    twin.refuse(
        libc::SYS_faccessat2,
        &[cwd, A::Path("/data"), A::N(0), A::N(1)],
        EINVAL,
    );
}

#[test]
fn modes_and_times_are_set() {
    let mut twin = Twin::new();
    twin.file("file", b"x");
    let fd = twin.open("/data/file", O_RDONLY);
    let cwd = A::N(libc::AT_FDCWD.into());
    let at = A::Struct(&[]);
    for (nr, args) in [
        (libc::SYS_chmod, vec![A::Path("/data/file"), A::N(0o640)]),
        (libc::SYS_fchmod, vec![A::Fd(fd), A::N(0o604)]),
        (
            libc::SYS_fchmodat,
            vec![cwd, A::Path("/data/file"), A::N(0o600)],
        ),
    ] {
        twin.expect(nr, &args, 0);
        let answer = twin.expect(libc::SYS_stat, &[A::Path("/data/file"), at], 0);
        assert_eq!(
            u32_at(&answer.guest.data, 24),
            u32_at(answer.native_data(), 24)
        );
    }
    twin.refuse(
        libc::SYS_chmod,
        &[A::Path("/data/none"), A::N(0o640)],
        ENOENT,
    );
    let times: Vec<u8> = [1_000_i64, 7, 2_000, 9]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    let args = [cwd, A::Path("/data/file"), A::Struct(&times), A::N(0)];
    twin.expect(libc::SYS_utimensat, &args, 0);
    let answer = twin.expect(libc::SYS_stat, &[A::Path("/data/file"), at], 0);
    assert_eq!(answer.guest.data[72..104], answer.native_data()[72..104]);
    assert_eq!(u64_at(&answer.guest.data, 88), 2_000);
    let wrong: Vec<u8> = [0_i64, -5, 0, 0]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    let args = [cwd, A::Path("/data/file"), A::Struct(&wrong), A::N(0)];
    twin.refuse(libc::SYS_utimensat, &args, EINVAL);
    // A null path means the descriptor: packed as an empty one.
    let fd_only = [fd.guest.into(), 0, 4096, 0, 0];
    assert_eq!(
        call(
            &mut twin.session,
            libc::SYS_utimensat,
            fd_only,
            b"\0",
            &times
        )
        .result,
        0
    );
    let now = [fd.guest.into(), 0, 0, 0, 0];
    assert_eq!(
        call(&mut twin.session, libc::SYS_utimensat, now, b"\0", &[]).result,
        0
    );
    let answer = twin.both(libc::SYS_stat, &[A::Path("/data/file"), at]);
    assert!(u64_at(&answer.guest.data, 88) > 1_000_000_000);
}

#[test]
fn set_user_id_is_never_given() {
    let dir = TempDir::new();
    let mut session = session(&[(dir.path(), "/data", true)]);
    let fd = path_call(&mut session, libc::SYS_creat, "/data/file", 0o6755, 0);
    assert_eq!(fd, 3);
    let mode = || fs::metadata(dir.join("file")).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(), 0o755);
    let result = path_call(&mut session, libc::SYS_chmod, "/data/file", 0o4755, 0);
    assert_eq!(result, refused(EPERM));
    let result = call(
        &mut session,
        libc::SYS_fchmod,
        [fd, 0o2755, 0, 0, 0],
        &[],
        &[],
    );
    assert_eq!(result.result, refused(EPERM));
    assert_eq!(mode(), 0o755);
}

#[test]
fn link_targets_are_read_and_cut() {
    let mut twin = Twin::new();
    twin.file("file", b"x");
    twin.link("target/of/link", "link");
    let cwd = A::N(libc::AT_FDCWD.into());
    for size in [100, 6] {
        let answer = twin.same(
            libc::SYS_readlink,
            &[A::Path("/data/link"), A::Out, A::N(size)],
        );
        assert_eq!(answer.guest.data, answer.native_data());
    }
    let args = [cwd, A::Path("/data/link"), A::Out, A::N(100)];
    twin.expect(libc::SYS_readlinkat, &args, 14);
    twin.refuse(
        libc::SYS_readlink,
        &[A::Path("/data/file"), A::Out, A::N(9)],
        EINVAL,
    );
    twin.refuse(
        libc::SYS_readlink,
        &[A::Path("/data/none"), A::Out, A::N(9)],
        ENOENT,
    );
    twin.refuse(
        libc::SYS_readlink,
        &[A::Path("/data/link"), A::Out, A::N(0)],
        EINVAL,
    );
    twin.session.set_program("/data/program");
    let reply = call(
        &mut twin.session,
        libc::SYS_readlink,
        [0, 0, 100, 0, 0],
        b"/proc/self/exe\0",
        &[],
    );
    assert_eq!(reply.data, b"/data/program");
}

#[test]
fn file_system_facts_are_the_host_s() {
    let mut twin = Twin::new();
    let fd = twin.open("/data", O_RDONLY);
    let calls: [(i64, &[A<'_>]); 2] = [
        (libc::SYS_statfs, &[A::Path("/data"), A::Struct(&[])]),
        (libc::SYS_fstatfs, &[A::Fd(fd), A::Struct(&[])]),
    ];
    for (nr, args) in calls {
        let answer = twin.expect(nr, args, 0);
        let (guest, native) = (&answer.guest.data, answer.native_data());
        assert_eq!(guest.len(), 120);
        // Type, block size and blocks; name length, fragment size, flags.
        assert_eq!(guest[..24], native[..24]);
        assert_eq!(guest[64..88], native[64..88]);
    }
    twin.refuse(
        libc::SYS_statfs,
        &[A::Path("/data/none"), A::Struct(&[])],
        ENOENT,
    );
    twin.refuse(libc::SYS_fstatfs, &[A::N(-1), A::Struct(&[])], EBADF);
}

#[test]
fn owners_stay_as_the_host_has_them() {
    let mut twin = Twin::new();
    twin.file("file", b"x");
    let fd = twin.open("/data/file", O_RDONLY);
    let about = fs::metadata(twin.dir.join("file")).unwrap();
    let (owner, group) = (A::N(about.uid().into()), A::N(about.gid().into()));
    let (keep, cwd) = (A::N(-1), A::N(libc::AT_FDCWD.into()));
    let path = A::Path("/data/file");
    twin.expect(libc::SYS_chown, &[path, owner, group], 0);
    twin.expect(libc::SYS_lchown, &[path, keep, group], 0);
    twin.expect(libc::SYS_fchown, &[A::Fd(fd), owner, keep], 0);
    twin.expect(libc::SYS_fchownat, &[cwd, path, owner, group, A::N(0)], 0);
    twin.refuse(
        libc::SYS_chown,
        &[A::Path("/data/none"), owner, group],
        ENOENT,
    );
    let other = i64::from(about.uid()) + 1;
    let result = path_call(&mut twin.session, libc::SYS_chown, "/data/file", other, -1);
    assert_eq!(result, refused(EPERM));
    let result = path_call(&mut twin.session, libc::SYS_chown, "/data/file", -1, other);
    assert_eq!(result, refused(EPERM));
}
