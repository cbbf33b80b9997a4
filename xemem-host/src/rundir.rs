//! Where sockets and locks of this user's enclaves are.
//!
//! Used by broker, clients, VMM and command line, so that all agree without
//! being told. Everything else in the directory is its users' business.

use rustix::fs::{CWD, FileType, Mode, lstat, mkdirat};
use rustix::io::Errno;
use std::path::{Path, PathBuf};

pub use enclave_abi::exporter::SOCKET_NAME;

/// Why there is no run directory.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// It cannot be made or looked at.
    #[error("cannot use run directory {path}: {source}")]
    System {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: Errno,
    },
    /// Something else has its name; a symlink counts as something else.
    #[error("run directory {0} is not a directory (a symlink is not accepted)")]
    NotDirectory(PathBuf),
    /// Another user, not root, could put anything in there.
    #[error("run directory {path} belongs to uid {owner}, neither to uid {uid} nor to root")]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Who we are.
        uid: u32,
    },
    /// Everybody could put anything in there.
    #[error("run directory {0} is writable by group or others")]
    Writable(PathBuf),
}

/// The run directory, [`run_dir_path`], made if it is not there.
///
/// # Errors
/// It cannot be made, is no directory of ours or root's, or others may write in it.
pub fn run_dir() -> Result<PathBuf, RunDirError> {
    let path = run_dir_path();
    check_or_make(&path, rustix::process::geteuid().as_raw())?;
    Ok(path)
}

/// Where the run directory is, or would be: `$ENCLAVE_RUNDIR`, else
/// `/run/enclave` for root, else `$XDG_RUNTIME_DIR/enclave`, else
/// `/tmp/enclave-UID`.
#[must_use]
pub fn run_dir_path() -> PathBuf {
    let uid = rustix::process::geteuid().as_raw();
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    match (variable("ENCLAVE_RUNDIR"), uid, variable("XDG_RUNTIME_DIR")) {
        (Some(path), _, _) => PathBuf::from(path),
        (None, 0, _) => PathBuf::from("/run/enclave"),
        (None, _, Some(runtime)) => Path::new(&runtime).join("enclave"),
        (None, uid, None) => PathBuf::from(format!("/tmp/enclave-{uid}")),
    }
}

/// Checks that `path` is a directory, no symlink, that only root can change.
pub(crate) fn check_root_alone(path: &Path) -> Result<(), RunDirError> {
    check_or_make(path, 0)
}

fn check_or_make(path: &Path, uid: u32) -> Result<(), RunDirError> {
    let failed = |source| RunDirError::System {
        path: path.to_owned(),
        source,
    };
    match mkdirat(CWD, path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(failed(errno)),
    }
    let stat = lstat(path).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(RunDirError::NotDirectory(path.to_owned()));
    }
    if !is_trusted(stat.st_uid, uid) {
        return Err(RunDirError::Owner {
            path: path.to_owned(),
            owner: stat.st_uid,
            uid,
        });
    }
    if stat.st_mode & 0o022 != 0 {
        return Err(RunDirError::Writable(path.to_owned()));
    }
    Ok(())
}

/// Ours, or root's: a reader may use the directory of the system's broker.
fn is_trusted(owner: u32, uid: u32) -> bool {
    owner == uid || owner == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// A fresh directory, removed at the end of the test.
    struct Fresh(PathBuf);

    impl Fresh {
        fn new(name: &str) -> Self {
            let pid = std::process::id();
            let path = std::env::temp_dir().join(format!("xemem-rundir-{pid}-{name}"));
            std::fs::create_dir(&path).expect("a fresh directory");
            Self(path)
        }
    }

    impl Drop for Fresh {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn uid() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    #[test]
    fn a_missing_directory_is_made_once() {
        let fresh = Fresh::new("made");
        let path = fresh.0.join("run");
        check_or_make(&path, uid()).expect("made");
        check_or_make(&path, uid()).expect("found");
        let mode = std::fs::metadata(&path).expect("stat").permissions().mode();
        assert_eq!(mode & 0o022, 0);
    }

    #[test]
    fn symlinks_files_strangers_and_open_directories_are_refused() {
        let fresh = Fresh::new("refused");
        let (dir, link, file) = (
            fresh.0.join("dir"),
            fresh.0.join("link"),
            fresh.0.join("file"),
        );
        check_or_make(&dir, uid()).expect("made");
        symlink(&dir, &link).expect("symlink");
        std::fs::write(&file, "").expect("file");
        for path in [&link, &file] {
            let refused = check_or_make(path, uid());
            assert!(matches!(refused, Err(RunDirError::NotDirectory(_))));
        }
        assert!(!is_trusted(1001, 1002));
        assert!(!is_trusted(1001, 0));
        assert!(is_trusted(0, 1002));
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(&dir, open).expect("chmod");
        let refused = check_or_make(&dir, uid());
        assert!(matches!(refused, Err(RunDirError::Writable(_))));
        let below = check_or_make(&fresh.0.join("no/such"), uid());
        assert!(matches!(below, Err(RunDirError::System { .. })));
    }
}
