//! Names made, moved and removed: as Linux does it, and never on a read-only
//! export.

use std::fs;

use libc::{
    EBUSY, EEXIST, EINVAL, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, EPERM, EROFS, EXDEV, O_CREAT,
    O_RDONLY, O_TRUNC, O_WRONLY,
};

use super::{A, TempDir, Twin, call, path_call, refused, session, two_paths};

#[test]
fn names_are_removed_as_natively() {
    let mut twin = Twin::new();
    twin.file("file", b"x");
    twin.file("other", b"x");
    let cwd = A::N(libc::AT_FDCWD.into());
    let mkdir = |path| [A::Path(path), A::N(0o755)];
    twin.expect(libc::SYS_mkdir, &mkdir("/data/dir"), 0);
    twin.expect(
        libc::SYS_mkdirat,
        &[cwd, A::Path("/data/dir/sub/"), A::N(0o755)],
        0,
    );
    twin.refuse(libc::SYS_mkdir, &mkdir("/data/dir"), EEXIST);
    twin.refuse(libc::SYS_mkdir, &mkdir("/data/dir/."), EEXIST);
    twin.refuse(libc::SYS_mkdir, &mkdir("/data/none/x"), ENOENT);
    twin.refuse(libc::SYS_rmdir, &[A::Path("/data/dir")], ENOTEMPTY);
    twin.refuse(libc::SYS_rmdir, &[A::Path("/data/dir/.")], EINVAL);
    twin.refuse(libc::SYS_rmdir, &[A::Path("/data/dir/..")], ENOTEMPTY);
    twin.refuse(libc::SYS_rmdir, &[A::Path("/data/file")], ENOTDIR);
    twin.expect(libc::SYS_rmdir, &[A::Path("/data/dir/sub")], 0);
    twin.refuse(libc::SYS_unlink, &[A::Path("/data/dir")], EISDIR);
    twin.refuse(libc::SYS_unlink, &[A::Path("/data/file/")], ENOTDIR);
    twin.refuse(libc::SYS_unlink, &[A::Path("/data/none")], ENOENT);
    twin.expect(libc::SYS_unlink, &[A::Path("/data/file")], 0);
    twin.expect(
        libc::SYS_unlinkat,
        &[cwd, A::Path("/data/other"), A::N(0)],
        0,
    );
    let remove_dir = A::N(libc::AT_REMOVEDIR.into());
    twin.expect(
        libc::SYS_unlinkat,
        &[cwd, A::Path("/data/dir"), remove_dir],
        0,
    );
    twin.refuse(
        libc::SYS_unlinkat,
        &[cwd, A::Path("/data/dir"), A::N(7)],
        EINVAL,
    );
    assert_eq!(fs::read_dir(twin.dir.path()).unwrap().count(), 0);
}

#[test]
fn names_are_moved_as_natively() {
    let mut twin = Twin::new();
    twin.file("a", b"a");
    twin.file("b", b"b");
    fs::create_dir(twin.dir.join("dir")).unwrap();
    fs::create_dir(twin.native.join("dir")).unwrap();
    let cwd = A::N(libc::AT_FDCWD.into());
    let rename = |old, new| [A::Path(old), A::Second(new)];
    twin.expect(libc::SYS_rename, &rename("/data/a", "/data/c"), 0);
    twin.refuse(libc::SYS_rename, &rename("/data/a", "/data/c"), ENOENT);
    twin.refuse(libc::SYS_rename, &rename("/data/c", "/data/dir"), EISDIR);
    twin.refuse(libc::SYS_rename, &rename("/data/dir", "/data/c"), ENOTDIR);
    twin.refuse(
        libc::SYS_rename,
        &rename("/data/dir", "/data/dir/in"),
        EINVAL,
    );
    twin.refuse(libc::SYS_rename, &rename("/data/dir/.", "/data/x"), EBUSY);
    let at = [cwd, A::Path("/data/c"), cwd, A::Second("/data/dir/c")];
    twin.expect(libc::SYS_renameat, &at, 0);
    let at2 = |old, new, flags: u32| [cwd, A::Path(old), cwd, A::Second(new), A::N(flags.into())];
    let keep = libc::RENAME_NOREPLACE;
    twin.refuse(
        libc::SYS_renameat2,
        &at2("/data/b", "/data/dir/c", keep),
        EEXIST,
    );
    let swap = libc::RENAME_EXCHANGE;
    twin.expect(libc::SYS_renameat2, &at2("/data/b", "/data/dir/c", swap), 0);
    assert_eq!(fs::read(twin.dir.join("dir/c")).unwrap(), b"b");
    assert_eq!(fs::read(twin.dir.join("b")).unwrap(), b"a");
    twin.refuse(libc::SYS_renameat2, &at2("/data/b", "/data/d", 99), EINVAL);
}

#[test]
fn a_whiteout_is_refused() {
    let dir = TempDir::new();
    fs::write(dir.join("a"), b"a").unwrap();
    let mut session = session(&[(dir.path(), "/data", true)]);
    let here = i64::from(libc::AT_FDCWD);
    let args = [here, 0, here, 4096, libc::RENAME_WHITEOUT.into()];
    let reply = call(
        &mut session,
        libc::SYS_renameat2,
        args,
        b"/data/a\0",
        b"/data/b\0",
    );
    assert_eq!(reply.result, refused(EINVAL));
    assert!(dir.join("a").exists());
}

#[test]
fn hard_links_stay_inside() {
    let mut twin = Twin::new();
    twin.file("file", b"x");
    let cwd = A::N(libc::AT_FDCWD.into());
    twin.expect(
        libc::SYS_link,
        &[A::Path("/data/file"), A::Second("/data/second")],
        0,
    );
    twin.refuse(
        libc::SYS_link,
        &[A::Path("/data/file"), A::Second("/data/second")],
        EEXIST,
    );
    twin.refuse(
        libc::SYS_link,
        &[A::Path("/data/none"), A::Second("/data/x")],
        ENOENT,
    );
    twin.refuse(
        libc::SYS_link,
        &[A::Path("/data/file/"), A::Second("/data/x")],
        ENOTDIR,
    );
    twin.refuse(
        libc::SYS_link,
        &[A::Path("/data"), A::Second("/data/x")],
        EPERM,
    );
    let at = [
        cwd,
        A::Path("/data/file"),
        cwd,
        A::Second("/data/third"),
        A::N(0),
    ];
    twin.expect(libc::SYS_linkat, &at, 0);
    let answer = twin.expect(libc::SYS_stat, &[A::Path("/data/file"), A::Struct(&[])], 0);
    assert_eq!(answer.guest.data[16], 3, "link count");
}

#[test]
fn symbolic_links_are_not_made() {
    let dir = TempDir::new();
    let mut session = session(&[(dir.path(), "/data", true)]);
    let result = two_paths(&mut session, libc::SYS_symlink, "/etc", "/data/link");
    assert_eq!(result, refused(EPERM));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn an_export_itself_stays() {
    let dir = TempDir::new();
    let mut session = session(&[(dir.path(), "/data", true)]);
    assert_eq!(
        path_call(&mut session, libc::SYS_rmdir, "/data", 0, 0),
        refused(EBUSY)
    );
    assert_eq!(
        path_call(&mut session, libc::SYS_mkdir, "/data", 0, 0),
        refused(EEXIST)
    );
    assert_eq!(
        path_call(&mut session, libc::SYS_mkdir, "/", 0, 0),
        refused(EEXIST)
    );
    let result = two_paths(&mut session, libc::SYS_rename, "/data", "/data/x");
    assert_eq!(result, refused(EBUSY));
    assert!(dir.path().exists());
}

#[test]
fn a_read_only_export_is_never_changed() {
    let dir = TempDir::new();
    fs::write(dir.join("file"), b"kept").unwrap();
    fs::create_dir(dir.join("sub")).unwrap();
    let before = fs::metadata(dir.join("file")).unwrap();
    let mut session = session(&[(dir.path(), "/data", false)]);
    let mut path = |nr, path: &str, a1: i64| path_call(&mut session, nr, path, a1, 0o644);
    let (open, read_only) = (libc::SYS_open, refused(EROFS));
    let fd = path(open, "/data/file", (O_RDONLY | O_CREAT).into());
    assert_eq!(fd, 3);
    for flags in [O_WRONLY, libc::O_RDWR, O_TRUNC] {
        assert_eq!(path(open, "/data/file", flags.into()), read_only);
    }
    assert_eq!(
        path(open, "/data/new", (O_CREAT | O_WRONLY).into()),
        read_only
    );
    assert_eq!(path(open, "/data/no/new", O_CREAT.into()), refused(ENOENT));
    assert_eq!(path(libc::SYS_creat, "/data/file", 0o644), read_only);
    assert_eq!(path(libc::SYS_truncate, "/data/file", 0), read_only);
    assert_eq!(path(libc::SYS_mkdir, "/data/new", 0o755), read_only);
    assert_eq!(path(libc::SYS_mkdir, "/data/sub", 0o755), refused(EEXIST));
    assert_eq!(path(libc::SYS_rmdir, "/data/sub", 0), read_only);
    assert_eq!(path(libc::SYS_unlink, "/data/file", 0), read_only);
    assert_eq!(path(libc::SYS_chmod, "/data/file", 0o600), read_only);
    assert_eq!(
        path(libc::SYS_access, "/data/file", libc::W_OK.into()),
        read_only
    );
    assert_eq!(path(libc::SYS_access, "/data/file", libc::R_OK.into()), 0);
    let rename = two_paths(&mut session, libc::SYS_rename, "/data/file", "/data/x");
    assert_eq!(rename, read_only);
    let link = two_paths(&mut session, libc::SYS_link, "/data/file", "/data/x");
    assert_eq!(link, read_only);
    let mut number = |nr, args| call(&mut session, nr, args, b"\0", &[]).result;
    assert_eq!(number(libc::SYS_fchmod, [fd, 0o600, 0, 0, 0]), read_only);
    assert_eq!(number(libc::SYS_utimensat, [fd, 0, 0, 0, 0]), read_only);
    assert_eq!(
        number(libc::SYS_ftruncate, [fd, 0, 0, 0, 0]),
        refused(EINVAL)
    );
    let after = fs::metadata(dir.join("file")).unwrap();
    assert_eq!(before.modified().unwrap(), after.modified().unwrap());
    assert_eq!(before.permissions(), after.permissions());
    assert_eq!(fs::read(dir.join("file")).unwrap(), b"kept");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn two_exports_are_two_file_systems() {
    let (one, two) = (TempDir::new(), TempDir::new());
    fs::write(one.join("file"), b"x").unwrap();
    let mut session = session(&[(one.path(), "/data", true), (two.path(), "/data/two", true)]);
    for nr in [libc::SYS_rename, libc::SYS_link] {
        let result = two_paths(&mut session, nr, "/data/file", "/data/two/file");
        assert_eq!(result, refused(EXDEV));
    }
    // The longest guest path wins: the file appears in the inner export.
    let fd = path_call(&mut session, libc::SYS_creat, "/data/two/new", 0o644, 0);
    assert_eq!(fd, 3);
    assert!(two.join("new").exists());
}
