//! The bounded log of an enclave's console, and following it.
//!
//! Written by the VMM's vCPU thread, read by `enclavectl logs` and `console`.
//! Two files of at most [`MAX_FILE_BYTES`]: `console.log` and, once that was
//! full, `console.log.1`. Writing never fails and never waits for a reader:
//! what a full disk does not take is counted. It does not interpret the bytes.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, Mode, OFlags};

/// Name of the file being written.
pub const CONSOLE_LOG: &str = "console.log";
/// Name of the file before it.
pub const CONSOLE_LOG_OLD: &str = "console.log.1";
/// Most bytes of either file.
pub const MAX_FILE_BYTES: u64 = 512 << 10;

/// The writing side.
#[derive(Debug)]
pub struct ConsoleLog {
    dir: OwnedFd,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: Option<File>,
    len_bytes: u64,
    dropped: u64,
}

impl ConsoleLog {
    /// Starts an empty log in the directory `dir`.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(dir: BorrowedFd<'_>) -> std::io::Result<Self> {
        let dir = dir.try_clone_to_owned()?;
        let file = new_file(dir.as_fd())?;
        Ok(Self {
            dir,
            inner: Mutex::new(Inner {
                file: Some(file),
                len_bytes: 0,
                dropped: 0,
            }),
        })
    }

    /// Starts an empty log in the directory at `path`.
    ///
    /// # Errors
    /// When the directory cannot be opened or the file cannot be made.
    pub fn in_directory(path: &Path) -> std::io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty())?;
        Self::create(dir.as_fd())
    }

    /// Appends `bytes`; what cannot be written is counted in
    /// [`ConsoleLog::dropped`].
    pub fn write(&self, mut bytes: &[u8]) {
        let mut inner = self.inner();
        while !bytes.is_empty() {
            if inner.len_bytes >= MAX_FILE_BYTES {
                self.rotate(&mut inner);
            }
            let room = usize::try_from(MAX_FILE_BYTES - inner.len_bytes).unwrap_or(usize::MAX);
            let piece = &bytes[..bytes.len().min(room)];
            let written = inner
                .file
                .as_mut()
                .map_or(0, |file| write_some(file, piece));
            inner.len_bytes += written as u64;
            if written < piece.len() {
                inner.dropped += (bytes.len() - written) as u64;
                return;
            }
            bytes = &bytes[written..];
        }
    }

    /// Bytes that were lost.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.inner().dropped
    }

    /// The last bytes written, at most `max_bytes`, as text.
    #[must_use]
    pub fn tail(&self, max_bytes: u64) -> String {
        let _inner = self.inner();
        let mut bytes = Vec::new();
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        if let Ok(fd) = rustix::fs::openat(&self.dir, CONSOLE_LOG, flags, Mode::empty()) {
            let mut file = File::from(fd);
            let end = file.seek(SeekFrom::End(0)).unwrap_or(0);
            let start = end.saturating_sub(max_bytes);
            // A log that cannot be read back has no tail; nothing depends on it.
            if file.seek(SeekFrom::Start(start)).is_ok() {
                drop(file.take(max_bytes).read_to_end(&mut bytes));
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Moves the full file aside. If that fails the full file is emptied: a
    /// bounded log matters more than its older half.
    fn rotate(&self, inner: &mut Inner) {
        let moved = rustix::fs::renameat(&self.dir, CONSOLE_LOG, &self.dir, CONSOLE_LOG_OLD);
        if moved.is_err() {
            inner.dropped += inner.len_bytes;
        }
        inner.file = new_file(self.dir.as_fd()).ok();
        inner.len_bytes = 0;
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // The state is plain counters: whole even after a panic elsewhere.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn new_file(dir: BorrowedFd<'_>) -> std::io::Result<File> {
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // A pipe in place of the file could block the writer for ever.
    match rustix::fs::unlinkat(dir, CONSOLE_LOG, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let mode = Mode::RUSR | Mode::WUSR;
    let fd = rustix::fs::openat(dir, CONSOLE_LOG, flags | OFlags::EXCL, mode)?;
    Ok(File::from(fd))
}

/// Writes as much as the file takes; returns how much.
fn write_some(file: &mut File, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => break,
            Ok(count) => written += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    written
}

/// The reading side: yields new bytes across the change of files.
#[derive(Debug)]
pub struct Follower {
    dir: OwnedFd,
    file: Option<File>,
}

impl Follower {
    /// Follows the log in `dir`, from its beginning or from now on.
    ///
    /// # Errors
    /// When the log exists and cannot be opened.
    pub fn new(dir: BorrowedFd<'_>, from_now: bool) -> std::io::Result<Self> {
        let mut follower = Self {
            dir: dir.try_clone_to_owned()?,
            file: None,
        };
        follower.file = follower.open(CONSOLE_LOG)?;
        if let (true, Some(file)) = (from_now, &mut follower.file) {
            file.seek(SeekFrom::End(0))?;
        }
        Ok(follower)
    }

    /// The bytes of the older file, for readers that start at the beginning.
    ///
    /// # Errors
    /// When it exists and cannot be read.
    pub fn older(&self) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        if let Some(file) = self.open(CONSOLE_LOG_OLD)? {
            file.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    }

    /// Everything written since the last call; empty when there is nothing.
    ///
    /// # Errors
    /// When reading fails.
    pub fn read_new(&mut self) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        if self.file.is_none() {
            self.file = self.open(CONSOLE_LOG)?;
        }
        if let Some(file) = &mut self.file {
            file.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
        }
        if self.was_replaced() {
            // What came between the read above and the change of files.
            if let Some(file) = &mut self.file {
                file.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
            }
            self.file = self.open(CONSOLE_LOG)?;
            if let Some(file) = &mut self.file {
                file.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
            }
        }
        Ok(bytes)
    }

    fn was_replaced(&self) -> bool {
        let Some(file) = &self.file else { return false };
        let open = rustix::fs::fstat(file).map(|s| (s.st_dev, s.st_ino));
        let there = rustix::fs::statat(&self.dir, CONSOLE_LOG, AtFlags::SYMLINK_NOFOLLOW);
        there.is_ok_and(|s| open != Ok((s.st_dev, s.st_ino)))
    }

    fn open(&self, name: &str) -> std::io::Result<Option<File>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match rustix::fs::openat(&self.dir, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(File::from(fd))),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    fn size(scratch: &Scratch, name: &str) -> u64 {
        std::fs::metadata(scratch.path().join(name)).map_or(0, |m| m.len())
    }

    #[test]
    fn both_files_stay_bounded_and_keep_the_newest_bytes() {
        let scratch = Scratch::new("console");
        let log = ConsoleLog::in_directory(scratch.path()).unwrap();
        let line = vec![b'x'; 1000];
        for _ in 0..3000 {
            log.write(&line);
            assert!(size(&scratch, CONSOLE_LOG) <= MAX_FILE_BYTES);
        }
        log.write(b"the end\n");
        assert_eq!(size(&scratch, CONSOLE_LOG_OLD), MAX_FILE_BYTES);
        assert!(log.tail(100).ends_with("xthe end\n"));
        assert_eq!(log.dropped(), 0);
    }

    #[test]
    fn one_write_larger_than_the_log_is_bounded_too() {
        let scratch = Scratch::new("console");
        let log = ConsoleLog::in_directory(scratch.path()).unwrap();
        log.write(&vec![b'y'; 3 << 20]);
        assert!(size(&scratch, CONSOLE_LOG) <= MAX_FILE_BYTES);
        assert!(size(&scratch, CONSOLE_LOG_OLD) <= MAX_FILE_BYTES);
    }

    #[test]
    fn bytes_a_full_disk_refuses_are_counted() {
        let scratch = Scratch::new("console");
        let log = ConsoleLog::in_directory(scratch.path()).unwrap();
        let full = File::options().write(true).open("/dev/full").unwrap();
        log.inner().file = Some(full);
        log.write(b"lost");
        assert_eq!(log.dropped(), 4);
        log.inner().file = None;
        log.write(b"lost too");
        assert_eq!(log.dropped(), 12);
    }

    #[test]
    fn a_directory_that_vanished_does_not_stop_the_writer() {
        let scratch = Scratch::new("console");
        let inner = scratch.path().join("gone");
        std::fs::create_dir(&inner).unwrap();
        let log = ConsoleLog::in_directory(&inner).unwrap();
        std::fs::remove_dir_all(&inner).unwrap();
        for _ in 0..600 {
            log.write(&[b'z'; 1024]);
        }
        assert!(log.dropped() > 0);
    }

    #[test]
    fn a_follower_sees_every_byte_across_the_change_of_files() {
        let scratch = Scratch::new("console");
        let log = ConsoleLog::in_directory(scratch.path()).unwrap();
        let mut follower = Follower::new(log.dir.as_fd(), false).unwrap();
        let (mut wrote, mut read) = (Vec::new(), Vec::new());
        for n in 0..1500u32 {
            let line = format!("{n:0>999}\n");
            log.write(line.as_bytes());
            wrote.extend_from_slice(line.as_bytes());
            if n % 7 == 0 {
                read.extend(follower.read_new().unwrap());
            }
        }
        read.extend(follower.read_new().unwrap());
        assert!(read == wrote, "{} of {} bytes", read.len(), wrote.len());
    }

    #[test]
    fn a_follower_from_now_skips_what_was_there() {
        let scratch = Scratch::new("console");
        let log = ConsoleLog::in_directory(scratch.path()).unwrap();
        log.write(b"before ");
        let mut follower = Follower::new(log.dir.as_fd(), true).unwrap();
        log.write(b"after");
        assert_eq!(follower.read_new().unwrap(), b"after");
        assert_eq!(follower.read_new().unwrap(), b"");
    }

    #[test]
    fn a_planted_link_is_replaced_and_not_written_through() {
        let scratch = Scratch::new("console");
        let victim = scratch.path().join("victim");
        std::fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, scratch.path().join(CONSOLE_LOG)).unwrap();
        let log = ConsoleLog::in_directory(scratch.path()).unwrap();
        log.write(b"text");
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    }
}
