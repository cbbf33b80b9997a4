//! The run directory: where it is, and opening things below it safely.
//!
//! Used by `enclave-vmm` and `enclavectl`. Every path below the directory is
//! resolved with `openat2` from its descriptor, refusing symbolic links, and
//! the directory itself must belong to us (or root) and be writable by nobody
//! else. So a planted link or a foreign `/tmp/enclave-UID` is an error, never
//! a file of someone else's opened.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use xemem_host::RunDirError;

use super::EnclaveDir;
use crate::config::check_name;
use crate::failure::{Class, Failure};

/// The open run directory.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    dir: OwnedFd,
}

impl RunDir {
    /// The path of this user's run directory, which is made if it is not
    /// there.
    ///
    /// # Errors
    /// When it cannot be made, is no directory, or is not ours alone.
    pub fn default_path() -> Result<PathBuf, Failure> {
        xemem_host::run_dir().map_err(|error| {
            let class = match &error {
                RunDirError::System { source, .. } => Class::of_io(&(*source).into()),
                RunDirError::NotDirectory(_) => Class::Failure,
                RunDirError::Owner { .. } | RunDirError::Writable(_) => Class::Permission,
            };
            Failure::new(class, "find the run directory", error)
                .with_hint("ENCLAVE_RUNDIR=\"$(mktemp -d)\" enclavectl …")
        })
    }

    /// Opens `path`, making it if it is not there.
    ///
    /// # Errors
    /// When it cannot be made, is no directory, or is not ours alone.
    pub fn create(path: &Path) -> Result<Self, Failure> {
        let what = || format!("make the run directory {}", path.display());
        match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => {
                return Err(
                    Failure::io(what(), error).with_hint("export ENCLAVE_RUNDIR=\"$(mktemp -d)\"")
                );
            }
        }
        let run = Self::open(path)?.ok_or_else(|| Failure::io(what(), Errno::NOENT))?;
        for sub in ["ledger", "enclaves"] {
            match rustix::fs::mkdirat(&run.dir, sub, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(Failure::io(what(), error)),
            }
        }
        Ok(run)
    }

    /// Opens `path`; `None` when there is nothing, so no enclave either.
    ///
    /// # Errors
    /// When it is no directory, or is not ours alone.
    pub fn open(path: &Path) -> Result<Option<Self>, Failure> {
        let what = || format!("open the run directory {}", path.display());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                let why = "it is not a directory";
                return Err(Failure::new(Class::Failure, what(), why)
                    .with_hint(format!("ls -ld {}", path.display())));
            }
            Err(error) => return Err(Failure::io(what(), error)),
        };
        let stat = rustix::fs::fstat(&dir).map_err(|e| Failure::io(what(), e))?;
        let euid = rustix::process::geteuid().as_raw();
        if (stat.st_uid != euid && stat.st_uid != 0) || stat.st_mode & 0o022 != 0 {
            let why = format!(
                "owner {} mode {:o}: it must belong to uid {euid} and be writable by nobody else",
                stat.st_uid,
                stat.st_mode & 0o7777
            );
            return Err(Failure::new(Class::Permission, what(), why)
                .with_hint(format!("chmod go-w {}", path.display())));
        }
        Ok(Some(Self {
            path: path.to_owned(),
            dir,
        }))
    }

    /// Its path, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open directory.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Opens (making it if needed) a lock file below `ledger/`.
    pub(crate) fn ledger_file(&self, name: &str) -> Result<File, Failure> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NONBLOCK;
        beneath(self.dir.as_fd(), &format!("ledger/{name}"), flags)
            .map(File::from)
            .map_err(|e| Failure::io(format!("open {}/ledger/{name}", self.path.display()), e))
    }

    /// Whether there is such a file below `ledger/`.
    pub(crate) fn has_ledger_file(&self, name: &str) -> bool {
        let flags = OFlags::PATH;
        beneath(self.dir.as_fd(), &format!("ledger/{name}"), flags).is_ok()
    }

    /// Replaces a file below `ledger/` as a whole. The caller holds the lock that
    /// goes with it.
    pub(crate) fn replace_ledger_file(&self, name: &str, text: &str) -> Result<(), Failure> {
        let what = || format!("write {}/ledger/{name}", self.path.display());
        let (new, old) = (format!("ledger/{name}.new"), format!("ledger/{name}"));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NONBLOCK;
        let written = beneath(self.dir.as_fd(), &new, flags)
            .map_err(std::io::Error::from)
            .and_then(|file| File::from(file).write_all(text.as_bytes()));
        written
            .and_then(|()| Ok(rustix::fs::renameat(&self.dir, &new, &self.dir, &old)?))
            .map_err(|error| Failure::io(what(), error))
    }

    /// Removes a file below `ledger/`, if it is there.
    pub(crate) fn remove_ledger_file(&self, name: &str) -> Result<(), Failure> {
        let path = format!("ledger/{name}");
        match rustix::fs::unlinkat(&self.dir, &path, rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(Failure::io(
                format!("remove {}/{path}", self.path.display()),
                error,
            )),
        }
    }

    /// Opens the directory of enclave `name`, making it if `make` says so.
    ///
    /// # Errors
    /// `Ok(None)` when it is not there; a failure when a file or a link
    /// stands in its place, or the name is none.
    pub fn enclave(&self, name: &str, make: bool) -> Result<Option<EnclaveDir>, Failure> {
        let what = format!("open enclave {name}");
        check_name(name).map_err(|e| Failure::new(Class::Usage, what.as_str(), e))?;
        let inner = format!("enclaves/{name}");
        let path = self.path.join(&inner);
        if make {
            match rustix::fs::mkdirat(&self.dir, &inner, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => {
                    let why = format!("cannot make {}: {error}", path.display());
                    let parent = path.parent().unwrap_or(&path).display();
                    return Err(Failure::new(Class::of_io(&error.into()), what, why)
                        .with_hint(format!("ls -ld {parent}")));
                }
            }
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        match beneath(self.dir.as_fd(), &inner, flags) {
            Ok(dir) => Ok(Some(EnclaveDir::new(name.to_owned(), path, dir))),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                let why = format!("{} is not a directory", path.display());
                Err(Failure::new(Class::Failure, what, why)
                    .with_hint(format!("ls -ld {}", path.display())))
            }
            Err(error) => Err(Failure::io(what, error)),
        }
    }

    /// Names below `enclaves/`, sorted; what cannot be an enclave's name (or
    /// is no directory) is left out.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn names(&self) -> Result<Vec<String>, Failure> {
        let what = || format!("list {}/enclaves", self.path.display());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let dir = match beneath(self.dir.as_fd(), "enclaves", flags) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(Vec::new()),
            Err(error) => return Err(Failure::io(what(), error)),
        };
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(dir).map_err(|e| Failure::io(what(), e))? {
            let entry = entry.map_err(|e| Failure::io(what(), e))?;
            let Ok(name) = entry.file_name().to_str() else {
                continue;
            };
            let unknown = rustix::fs::FileType::Unknown;
            let is_dir = entry.file_type().is_dir() || entry.file_type() == unknown;
            if is_dir && check_name(name).is_ok() {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Removes the (empty) directory of enclave `name`.
    pub(super) fn remove_enclave(&self, name: &str) -> Result<(), Errno> {
        let path = format!("enclaves/{name}");
        rustix::fs::unlinkat(&self.dir, path, rustix::fs::AtFlags::REMOVEDIR)
    }
}

/// Opens `path` below `dir` without following any symbolic link; new files
/// are readable by the owner only.
pub(crate) fn beneath(dir: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mode = if flags.contains(OFlags::CREATE) {
        Mode::RUSR | Mode::WUSR
    } else {
        Mode::empty()
    };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    loop {
        match rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, mode, resolve) {
            // The kernel asks for a retry when a rename raced the look-up.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

/// A path to `name` in the open directory `dir` that fits a socket address
/// however deep the directory lies, and that nobody can swap.
pub(super) fn via_descriptor(dir: BorrowedFd<'_>, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn an_absent_directory_has_no_enclaves() {
        let scratch = Scratch::new("rundir");
        assert!(RunDir::open(&scratch.path().join("no")).unwrap().is_none());
        let run = RunDir::create(&scratch.path().join("yes")).unwrap();
        assert_eq!(run.names().unwrap(), Vec::<String>::new());
        assert!(run.enclave("a1", false).unwrap().is_none());
    }

    #[test]
    fn a_directory_others_can_write_is_refused() {
        let scratch = Scratch::new("rundir");
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(scratch.path(), open).unwrap();
        let failure = RunDir::create(scratch.path()).unwrap_err();
        assert_eq!(failure.class, Class::Permission);
    }

    #[test]
    fn links_and_files_in_place_of_directories_are_refused() {
        let scratch = Scratch::new("rundir");
        let real = scratch.path().join("real");
        let run = RunDir::create(&real).unwrap();
        symlink(&real, scratch.path().join("link")).unwrap();
        assert_eq!(
            RunDir::create(&scratch.path().join("link"))
                .unwrap_err()
                .class,
            Class::Failure
        );
        symlink("/etc", real.join("enclaves/linked")).unwrap();
        std::fs::write(real.join("enclaves/filed"), "mine").unwrap();
        for name in ["linked", "filed"] {
            let failure = run.enclave(name, true).unwrap_err();
            assert!(failure.why.contains("not a directory"), "{failure}");
        }
        assert_eq!(run.names().unwrap(), Vec::<String>::new());
        assert_eq!(std::fs::read(real.join("enclaves/filed")).unwrap(), b"mine");
    }

    #[test]
    fn names_with_slashes_never_reach_the_file_system() {
        let scratch = Scratch::new("rundir");
        let run = RunDir::create(&scratch.path().join("r")).unwrap();
        assert_eq!(run.enclave("../x", true).unwrap_err().class, Class::Usage);
        assert!(!scratch.path().join("r/x").exists());
    }
}
