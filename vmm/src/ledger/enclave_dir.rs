//! One enclave's directory: its lock, record, files, and removal.
//!
//! ```text
//!              lock taken                 holder dies
//!   absent ───────────────► live ──────────────────────► dead
//!     ▲                      │ stop: files removed         │ destroy, or
//!     └──────────────────────┴─────────────────────────────┘ create again
//! ```
//!
//! Used by `enclave-vmm` (takes the lock) and `enclavectl` (asks who holds it).

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, FlockOperation, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::RunDir;
use super::run_dir::{beneath, via_descriptor};
use crate::failure::{Class, Failure};

const LOCK: &str = "lock";
const SOCKET: &str = "control.sock";
/// Every file an enclave's VMM makes; the lock is removed last.
const FILES: [&str; 7] = [
    SOCKET,
    "config.json",
    "config.json.new",
    "console.log",
    "console.log.1",
    "vmm.log",
    "crash",
];
/// Longest record or crash note that is read.
const MAX_NOTE_BYTES: u64 = 64 << 10;
/// Tries and pause while somebody probes the lock or writes the record (which takes
/// microseconds).
const LOCK_TRIES: u32 = 25;
const LOCK_PAUSE: Duration = Duration::from_millis(4);

/// What the holder of an enclave's lock writes into the lock file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Process id of the VMM.
    pub pid: i32,
    /// Cores granted.
    pub cores: Vec<usize>,
    /// Other threads of the same physical cores, kept idle.
    #[serde(default)]
    pub idle: Vec<usize>,
    /// Are they shared?
    pub share_cores: bool,
    /// Is the rest of the host to be kept off its cores?
    #[serde(default)]
    pub isolated: bool,
    /// Private RAM in bytes.
    pub mem_bytes: u64,
    /// The NUMA node it comes from, if one was asked for.
    #[serde(default)]
    pub node: Option<usize>,
    /// Is that RAM in use already (so that the host's own figures show it)?
    pub settled: bool,
}

impl Record {
    /// Every core that nobody else may have.
    pub fn taken(&self) -> impl Iterator<Item = usize> {
        self.cores.iter().chain(&self.idle).copied()
    }

    /// That of an enclave nothing was granted to yet.
    #[must_use]
    pub fn of_this_process() -> Self {
        Self {
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            ..Self::default()
        }
    }
}

/// Who is behind an enclave's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Occupancy {
    /// A VMM holds the lock. Before admission its record names only its pid,
    /// and for a moment not even that (pid 0).
    Live(Record),
    /// Nobody: left over from a VMM that died; why, as far as can be told.
    Dead(String),
}

/// The open directory of one enclave.
#[derive(Debug)]
pub struct EnclaveDir {
    name: String,
    path: PathBuf,
    dir: OwnedFd,
}

impl EnclaveDir {
    pub(super) fn new(name: String, path: PathBuf, dir: OwnedFd) -> Self {
        Self { name, path, dir }
    }

    /// The enclave's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory's path, for messages and for watching.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open directory.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Where to connect; valid as long as this value lives.
    #[must_use]
    pub fn socket_path(&self) -> PathBuf {
        via_descriptor(self.fd(), SOCKET)
    }

    /// Opens one of the enclave's files for reading.
    ///
    /// # Errors
    /// That of the operating system; a symbolic link is `ELOOP`.
    pub fn open_file(&self, name: &str) -> std::io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        Ok(beneath(self.fd(), name, flags).map(File::from)?)
    }

    /// Opens one of the enclave's files for appending, making it if needed.
    ///
    /// # Errors
    /// That of the operating system; a symbolic link is `ELOOP`.
    pub fn append_file(&self, name: &str) -> std::io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NONBLOCK;
        Ok(beneath(self.fd(), name, flags).map(File::from)?)
    }

    /// Replaces `config.json` as a whole.
    ///
    /// # Errors
    /// That of the operating system.
    pub fn write_config(&self, text: &str) -> std::io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NONBLOCK;
        let mut file = File::from(beneath(self.fd(), "config.json.new", flags)?);
        file.write_all(text.as_bytes())?;
        rustix::fs::renameat(&self.dir, "config.json.new", &self.dir, "config.json")?;
        Ok(())
    }

    /// Finds out who holds the lock.
    ///
    /// # Errors
    /// When the lock file cannot be opened or tested.
    pub fn occupancy(&self) -> Result<Occupancy, Failure> {
        let what = || format!("look at enclave {}", self.name);
        let mut lock = match beneath(self.fd(), LOCK, OFlags::RDONLY | OFlags::NONBLOCK) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) => return Ok(Occupancy::Dead("its creation was cut off".into())),
            Err(error) => return Err(Failure::io(what(), error)),
        };
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(Occupancy::Dead(self.last_words())),
            Err(Errno::WOULDBLOCK) => Ok(Occupancy::Live(read_record(&mut lock))),
            Err(error) => Err(Failure::io(what(), error)),
        }
    }

    /// Why a dead VMM died, from what it left.
    fn last_words(&self) -> String {
        let mut text = String::new();
        let crash = self.open_file("crash");
        let read = crash.and_then(|f| f.take(MAX_NOTE_BYTES).read_to_string(&mut text));
        match (read, text.lines().next()) {
            (Ok(_), Some(line)) => format!("crashed: {line}"),
            _ => "killed".to_owned(),
        }
    }

    /// Takes the lock for this process and clears a dead owner's files.
    ///
    /// `Ok(None)` when the directory was removed meanwhile: make it again.
    pub(super) fn take(&self, run: &RunDir) -> Result<Option<File>, Failure> {
        let what = || format!("create enclave {}", self.name);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NONBLOCK;
        let mut lock = match beneath(self.fd(), LOCK, flags) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => {
                let why = format!("{}/{LOCK}: {error}", self.path.display());
                return Err(Failure::new(Class::Failure, what(), why));
            }
        };
        if !try_lock(&lock).map_err(|e| Failure::io(what(), e))? {
            return Err(self.exists(read_record(&mut lock).pid));
        }
        // The lock may be that of a directory its last owner has just removed.
        let current = run.enclave(&self.name, false)?;
        if !current.is_some_and(|now| now.holds(&lock)) {
            return Ok(None);
        }
        // From now on the holder can be told, and what a dead one had is free.
        write_record(&lock, &Record::of_this_process()).map_err(|e| Failure::io(what(), e))?;
        self.remove_files()?;
        Ok(Some(lock))
    }

    /// The failure of making it again while `pid` has it.
    pub(super) fn exists(&self, pid: i32) -> Failure {
        let what = format!("create enclave {}", self.name);
        let why = format!("it exists already (enclave-vmm has pid {pid})");
        let hint = format!("enclavectl destroy {}", self.name);
        Failure::new(Class::Busy, what, why).with_hint(hint)
    }

    /// Whether `lock` is this directory's lock file.
    fn holds(&self, lock: &File) -> bool {
        let ours = rustix::fs::fstat(lock).map(|s| (s.st_dev, s.st_ino));
        let there = rustix::fs::statat(&self.dir, LOCK, AtFlags::SYMLINK_NOFOLLOW);
        ours == there.map(|s| (s.st_dev, s.st_ino))
    }

    /// Removes the known files except the lock. Only the owner calls this.
    fn remove_files(&self) -> Result<(), Failure> {
        for name in FILES {
            match rustix::fs::unlinkat(&self.dir, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => {
                    let path = self.path.join(name);
                    let why = match error {
                        Errno::ISDIR => "a directory stands in its place".to_owned(),
                        error => error.to_string(),
                    };
                    return Err(Failure::new(
                        Class::Failure,
                        format!("remove {}", path.display()),
                        why,
                    )
                    .with_hint(format!("ls -l {}", self.path.display())));
                }
            }
        }
        Ok(())
    }

    /// Listens on the control socket.
    ///
    /// # Errors
    /// When something else than a socket stands in its place: it is left alone.
    pub fn listen(&self) -> Result<UnixListener, Failure> {
        let what = || format!("make the control socket of {}", self.name);
        match rustix::fs::statat(&self.dir, SOCKET, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_socket() => {
                rustix::fs::unlinkat(&self.dir, SOCKET, AtFlags::empty())
                    .map_err(|e| Failure::io(what(), e))?;
            }
            Ok(_) => return Err(Failure::new(Class::Failure, what(), self.not_a_socket())),
            Err(error) => return Err(Failure::io(what(), error)),
        }
        UnixListener::bind(self.socket_path()).map_err(|e| Failure::io(what(), e))
    }

    /// The text for something else than a socket at the socket's place.
    #[must_use]
    pub fn not_a_socket(&self) -> String {
        format!("{} is not a socket", self.path.join(SOCKET).display())
    }

    /// Whether something else than a socket stands at the socket's place.
    #[must_use]
    pub fn socket_is_blocked(&self) -> bool {
        rustix::fs::statat(&self.dir, SOCKET, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| !FileType::from_raw_mode(stat.st_mode).is_socket())
    }

    /// Removes what a dead VMM left, directory included.
    ///
    /// # Errors
    /// [`Class::Busy`] when a VMM lives there after all; others when something
    /// unknown is in the directory (it is kept).
    pub fn remove_dead(&self, run: &RunDir) -> Result<(), Failure> {
        match self.take(run)? {
            Some(lock) => self.remove_owned(run, &lock),
            None => Ok(()),
        }
    }

    /// Removes everything; the caller holds `lock`.
    pub(super) fn remove_owned(&self, run: &RunDir, lock: &File) -> Result<(), Failure> {
        self.remove_files()?;
        debug_assert!(self.holds(lock), "removal without the lock");
        let what = || format!("remove {}", self.path.display());
        match rustix::fs::unlinkat(&self.dir, LOCK, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(Failure::io(what(), error)),
        }
        match run.remove_enclave(&self.name) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                let why = "it holds files that are not the enclave's; they are kept";
                Err(Failure::new(Class::Failure, what(), why)
                    .with_hint(format!("ls -la {}", self.path.display())))
            }
            Err(error) => Err(Failure::io(what(), error)),
        }
    }
}

/// Replaces the record in a lock file this process holds. It is there twice, over what
/// was there: who reads meanwhile finds two that differ.
pub(super) fn write_record(mut lock: &File, record: &Record) -> std::io::Result<()> {
    let line = serde_json::to_string(record)?;
    let text = format!("{line}\n{line}\n");
    lock.seek(SeekFrom::Start(0))?;
    lock.write_all(text.as_bytes())?;
    // The rest of a longer one.
    lock.set_len(text.len() as u64)
}

/// The record in a lock file that somebody holds. While it is being written, which
/// takes microseconds, it looks again. An empty one if there is none.
fn read_record(lock: &mut File) -> Record {
    for attempt in 0..LOCK_TRIES {
        if let Some(record) = read_whole_record(lock) {
            return record;
        }
        if attempt + 1 < LOCK_TRIES {
            std::thread::sleep(LOCK_PAUSE);
        }
    }
    Record::default()
}

fn read_whole_record(lock: &mut File) -> Option<Record> {
    let mut text = String::new();
    lock.seek(SeekFrom::Start(0)).ok()?;
    lock.take(MAX_NOTE_BYTES).read_to_string(&mut text).ok()?;
    let mut lines = text.lines();
    let (line, again) = (lines.next()?, lines.next()?);
    serde_json::from_str(line).ok().filter(|_| line == again)
}

/// Takes an exclusive lock; `false` when another process keeps it. A prober's
/// lock lasts microseconds, so a few tries tell the two apart.
fn try_lock(lock: &File) -> Result<bool, Errno> {
    for attempt in 0..LOCK_TRIES {
        match rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK | Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        if attempt + 1 < LOCK_TRIES {
            std::thread::sleep(LOCK_PAUSE);
        }
    }
    Ok(false)
}
