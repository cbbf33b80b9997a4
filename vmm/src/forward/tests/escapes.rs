//! No path, link or descriptor leads out of the exports.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use libc::{EBUSY, ELOOP, ENOENT, EROFS, O_CREAT, O_DIRECTORY, O_RDONLY, O_WRONLY};

use super::{Exports, TempDir, call, path_call, refused, session, two_paths};
use crate::machine::Export;

/// A directory to export, next to a file that must stay out of reach.
struct Scene {
    outer: TempDir,
}

impl Scene {
    fn new() -> Self {
        let outer = TempDir::new();
        fs::create_dir(outer.join("inside")).unwrap();
        fs::write(outer.join("secret"), b"secret").unwrap();
        fs::create_dir(outer.join("hidden")).unwrap();
        fs::write(outer.join("hidden/secret"), b"secret").unwrap();
        Self { outer }
    }

    fn session(&self) -> super::Session {
        session(&[(&self.outer.join("inside"), "/data", true)])
    }

    fn link(&self, target: impl AsRef<Path>, name: &str) {
        symlink(target, self.outer.join("inside").join(name)).unwrap();
    }

    fn is_untouched(&self) -> bool {
        let names = fs::read_dir(self.outer.path()).unwrap().count();
        let hidden = fs::read_dir(self.outer.join("hidden")).unwrap().count();
        names == 3
            && hidden == 1
            && fs::read(self.outer.join("secret")).unwrap() == b"secret"
            && fs::read(self.outer.join("hidden/secret")).unwrap() == b"secret"
    }
}

/// Tries every call that takes a path; none may find or change anything.
fn nothing_works(session: &mut super::Session, path: &str) {
    let calls = [
        (libc::SYS_open, i64::from(O_RDONLY)),
        (libc::SYS_open, i64::from(O_WRONLY)),
        (
            libc::SYS_open,
            i64::from(O_WRONLY | O_CREAT | libc::O_TRUNC),
        ),
        (libc::SYS_open, i64::from(libc::O_PATH)),
        (libc::SYS_creat, 0o644),
        (libc::SYS_stat, 4096),
        (libc::SYS_access, 0),
        (libc::SYS_truncate, 0),
        (libc::SYS_chmod, 0o777),
        (libc::SYS_chdir, 0),
        (libc::SYS_statfs, 4096),
    ];
    for (nr, argument) in calls {
        let result = path_call(session, nr, path, argument, 0o644);
        let creates = nr == libc::SYS_creat || argument & i64::from(O_CREAT) != 0;
        // A synthetic directory is there, and nothing can be made in it.
        let is_refused = result == refused(ENOENT) || (creates && result == refused(EROFS));
        assert!(is_refused, "call {nr} on {path}: {result}");
    }
}

#[test]
fn dots_end_at_the_root() {
    let scene = Scene::new();
    let mut session = scene.session();
    for path in [
        "../secret",
        "/data/../secret",
        "/../../data/../secret",
        "x/../../secret",
    ] {
        nothing_works(&mut session, path);
    }
    let fd = path_call(&mut session, libc::SYS_open, "/data", O_DIRECTORY.into(), 0);
    let args = [fd, 0, 0, 0, 0];
    let reply = call(&mut session, libc::SYS_openat, args, b"../secret\0", &[]);
    assert_eq!(reply.result, refused(ENOENT));
    assert!(scene.is_untouched());
}

#[test]
fn absolute_links_lead_nowhere() {
    let scene = Scene::new();
    scene.link(scene.outer.join("secret"), "absolute");
    scene.link(scene.outer.path(), "directory");
    scene.link("/", "slash");
    let mut session = scene.session();
    nothing_works(&mut session, "/data/absolute");
    nothing_works(&mut session, "/data/directory/secret");
    nothing_works(&mut session, "/data/slash/etc/passwd");
    assert!(scene.is_untouched());
}

#[test]
fn relative_links_out_lead_nowhere() {
    let scene = Scene::new();
    scene.link("../secret", "relative");
    scene.link("..", "up");
    scene.link("up/hidden", "chained");
    let mut session = scene.session();
    nothing_works(&mut session, "/data/relative");
    nothing_works(&mut session, "/data/up/secret");
    nothing_works(&mut session, "/data/chained/secret");
    for nr in [libc::SYS_unlink, libc::SYS_mkdir, libc::SYS_rmdir] {
        let result = path_call(&mut session, nr, "/data/up/hidden/secret", 0o755, 0);
        assert_eq!(result, refused(ENOENT));
    }
    let out = two_paths(
        &mut session,
        libc::SYS_rename,
        "/data/up/secret",
        "/data/mine",
    );
    assert_eq!(out, refused(ENOENT));
    let new = path_call(&mut session, libc::SYS_creat, "/data/file", 0o644, 0);
    assert_eq!(new, 3);
    for nr in [libc::SYS_rename, libc::SYS_link] {
        let result = two_paths(&mut session, nr, "/data/file", "/data/up/planted");
        assert_eq!(result, refused(ENOENT));
    }
    assert!(scene.is_untouched());
}

#[test]
fn links_that_stay_inside_work() {
    let scene = Scene::new();
    let inside = scene.outer.join("inside");
    fs::create_dir_all(inside.join("a/b")).unwrap();
    fs::write(inside.join("file"), b"x").unwrap();
    symlink("../../file", inside.join("a/b/link")).unwrap();
    let mut session = scene.session();
    assert_eq!(
        path_call(&mut session, libc::SYS_open, "/data/a/b/link", 0, 0),
        3
    );
}

#[test]
fn magic_links_are_not_followed() {
    // Our own entry in /proc stands for a directory with magic links in it.
    let own = PathBuf::from(format!("/proc/{}", std::process::id()));
    let mut session = session(&[(&own, "/data", true)]);
    for path in ["/data/slash/etc", "/data/cwd/x", "/data/exe"] {
        let result = path_call(&mut session, libc::SYS_open, path, 0, 0);
        assert!(
            result == refused(ELOOP) || result == refused(ENOENT),
            "{path}: {result}"
        );
    }
}

#[test]
fn a_hard_link_to_a_link_stays_a_link() {
    let scene = Scene::new();
    scene.link("../secret", "relative");
    let mut session = scene.session();
    for old in ["/data/relative", "/data/relative/"] {
        two_paths(&mut session, libc::SYS_link, old, "/data/linked");
        nothing_works(&mut session, "/data/linked");
    }
    assert!(scene.is_untouched());
}

#[test]
fn a_swapped_directory_does_not_carry_descriptors_along() {
    let scene = Scene::new();
    let inside = scene.outer.join("inside");
    fs::create_dir(inside.join("dir")).unwrap();
    let mut session = scene.session();
    let fd = path_call(
        &mut session,
        libc::SYS_open,
        "/data/dir",
        O_DIRECTORY.into(),
        0,
    );
    assert_eq!(fd, 3);
    // Another user of the host moves the directory out and puts a link there.
    fs::rename(inside.join("dir"), scene.outer.join("hidden/dir")).unwrap();
    scene.link("../hidden", "dir");
    for path in ["../secret", "secret", "dir/../../secret"] {
        let path = format!("{path}\0");
        let args = [fd, 0, 0, 0, 0];
        let reply = call(&mut session, libc::SYS_openat, args, path.as_bytes(), &[]);
        assert_eq!(reply.result, refused(ENOENT), "{path}");
    }
}

#[test]
fn what_is_not_exported_does_not_exist() {
    let scene = Scene::new();
    let mut session = scene.session();
    for path in [
        "/etc/passwd",
        "/proc/self/root",
        "/proc/1",
        "/dev/mem",
        "/database/x",
    ] {
        nothing_works(&mut session, path);
    }
    assert_eq!(
        path_call(&mut session, libc::SYS_rmdir, "/data", 0, 0),
        refused(EBUSY)
    );
}

#[test]
fn bad_exports_are_told_apart() {
    let dir = TempDir::new();
    fs::write(dir.join("file"), b"x").unwrap();
    symlink(dir.path(), dir.join("link")).unwrap();
    let open = |host: &str, guest: &str| {
        let export = |guest: &str| Export {
            host: dir.join(host),
            guest: guest.to_owned(),
            writable: true,
        };
        let first = Export {
            host: dir.path().to_path_buf(),
            guest: "/first".to_owned(),
            writable: true,
        };
        Exports::open(&[first, export(guest)])
            .map(drop)
            .map_err(|error| error.to_string())
    };
    assert_eq!(open("", "/second"), Ok(()));
    let message = |host, guest| open(host, guest).unwrap_err();
    assert!(message("none", "/data").contains("none"));
    assert!(message("file", "/data").contains("not a directory"));
    assert!(message("link", "/data").contains("not a directory"));
    assert!(message("", "data").contains("absolute"));
    assert!(message("", "/first/").contains("another"));
    assert!(message("", "/dev/null").contains("taken"));
    assert!(message("", "/proc").contains("taken"));
    assert!(message("", "/a\0b").contains("zero byte"));
}
