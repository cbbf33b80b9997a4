//! `logs` and `console`: the enclave's console, from its beginning or from
//! now on, until the enclave ends.
//!
//! Following waits on inotify. The look once a second covers the one event
//! that can come too early: a dying VMM's lock is seen closed a moment before
//! it is free.

use std::io::Read;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use clap::Args;
use enclave_vmm::console_log::Follower;
use enclave_vmm::failure::Failure;
use enclave_vmm::ledger::{EnclaveDir, Occupancy, RunDir};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::termios::{LocalModes, OptionalActions, Termios, isatty, tcgetattr, tcsetattr};
use serde_json::json;

use crate::locate;
use crate::output::{self, Format, Reader};

/// Ctrl-].
const LEAVE: u8 = 0x1d;
/// Longest vmm.log that is printed.
const MAX_VMM_LOG_BYTES: u64 = 1 << 20;
const LOOK_AGAIN: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Print what an enclave's console said.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Enclave.
    name: String,
    /// Go on with what comes, until the enclave ends.
    #[arg(short, long)]
    follow: bool,
    /// Print the VMM's own log instead.
    #[arg(long, conflicts_with = "follow")]
    vmm: bool,
}

/// Follow an enclave's console from now on; Ctrl-] leaves.
#[derive(Debug, Args)]
pub(crate) struct Console {
    /// Enclave.
    name: String,
}

impl Logs {
    pub(crate) fn run(&self, format: Format) -> Result<(), Failure> {
        let run = locate::run_dir()?;
        let dir = locate::enclave(&run, &self.name)?;
        let failed = |e| Failure::io(format!("read the log of {}", self.name), e);
        let mut printer = Printer {
            name: &self.name,
            format,
            partial: Vec::new(),
        };
        if self.vmm {
            let mut bytes = Vec::new();
            match dir.open_file("vmm.log") {
                Ok(file) => file
                    .take(MAX_VMM_LOG_BYTES)
                    .read_to_end(&mut bytes)
                    .map_err(failed)?,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
                Err(error) => return Err(failed(error)),
            };
            printer.print(&bytes)?;
            return printer.finish();
        }
        let mut follower = Follower::new(dir.fd(), false).map_err(failed)?;
        printer.print(&follower.older().map_err(failed)?)?;
        if self.follow {
            follow(&run, &dir, &mut follower, &mut printer, None)?;
        } else {
            printer.print(&follower.read_new().map_err(failed)?)?;
        }
        printer.finish()
    }
}

impl Console {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let run = locate::run_dir()?;
        let dir = locate::enclave(&run, &self.name)?;
        let mut follower = Follower::new(dir.fd(), true)
            .map_err(|e| Failure::io(format!("read the console of {}", self.name), e))?;
        let mut printer = Printer {
            name: &self.name,
            format: Format::Text,
            partial: Vec::new(),
        };
        let stdin = std::io::stdin();
        let terminal = RawTerminal::new(stdin.as_fd());
        if terminal.is_some() {
            output::talk(format_args!(
                "enclavectl: console of {}; Ctrl-] leaves",
                self.name
            ));
        }
        let keys = terminal.as_ref().map(|raw| raw.fd);
        follow(&run, &dir, &mut follower, &mut printer, keys)
    }
}

/// Prints console bytes: as they are, or line by line as JSON.
struct Printer<'a> {
    name: &'a str,
    format: Format,
    partial: Vec<u8>,
}

impl Printer<'_> {
    fn print(&mut self, bytes: &[u8]) -> Result<Reader, Failure> {
        if self.format == Format::Text {
            return output::stream(bytes);
        }
        let mut reader = Reader::Listens;
        self.partial.extend_from_slice(bytes);
        while let Some(end) = self.partial.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            reader = self.line(&line[..end])?;
        }
        Ok(reader)
    }

    fn finish(&mut self) -> Result<(), Failure> {
        let rest = std::mem::take(&mut self.partial);
        if rest.is_empty() {
            return Ok(());
        }
        self.line(&rest).map(|_| ())
    }

    fn line(&self, line: &[u8]) -> Result<Reader, Failure> {
        let text = String::from_utf8_lossy(line);
        output::json_line("console", &json!({ "enclave": self.name, "line": text }))
    }
}

/// Prints what comes until the enclave ends, nobody reads any more or, with
/// `keys`, Ctrl-] is hit.
fn follow(
    run: &RunDir,
    dir: &EnclaveDir,
    follower: &mut Follower,
    printer: &mut Printer<'_>,
    keys: Option<BorrowedFd<'_>>,
) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::io(format!("follow the log of {}", dir.name()), e);
    let changes = watch(dir).map_err(failed)?;
    loop {
        // First whether it has ended, then what it wrote: nothing gets lost.
        let ended = has_ended(run, dir)?;
        loop {
            let bytes = follower.read_new().map_err(failed)?;
            if bytes.is_empty() {
                break;
            }
            if printer.print(&bytes)? == Reader::Gone {
                return Ok(());
            }
        }
        if ended {
            return Ok(());
        }
        let mut fds = vec![PollFd::new(&changes, PollFlags::IN)];
        fds.extend(keys.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        match poll(&mut fds, Some(&LOOK_AGAIN)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed(error.into())),
        }
        let key_hit = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        if key_hit
            && let Some(fd) = keys
            && leaves(fd)
        {
            return Ok(());
        }
        drain(&changes);
    }
}

fn has_ended(run: &RunDir, dir: &EnclaveDir) -> Result<bool, Failure> {
    if run.enclave(dir.name(), false)?.is_none() {
        return Ok(true);
    }
    Ok(matches!(dir.occupancy()?, Occupancy::Dead(_)))
}

fn watch(dir: &EnclaveDir) -> std::io::Result<OwnedFd> {
    let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let events = WatchFlags::MODIFY
        | WatchFlags::CREATE
        | WatchFlags::MOVED_TO
        | WatchFlags::DELETE
        | WatchFlags::DELETE_SELF
        | WatchFlags::CLOSE_WRITE;
    let path = format!("/proc/self/fd/{}", dir.fd().as_raw_fd());
    inotify::add_watch(&changes, path, events)?;
    Ok(changes)
}

/// Takes all events; what they say does not matter, we look ourselves.
fn drain(changes: &OwnedFd) {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(changes, &mut buffer);
    while reader.next().is_ok() {}
}

/// Whether the keys typed contain Ctrl-], or input has ended.
fn leaves(keys: BorrowedFd<'_>) -> bool {
    let mut typed = [0; 64];
    match rustix::io::read(keys, &mut typed[..]) {
        Ok(0) => true,
        Ok(count) => typed[..count].contains(&LEAVE),
        Err(_) => false,
    }
}

/// A terminal that gives keys at once and does not echo them, until dropped.
struct RawTerminal<'a> {
    fd: BorrowedFd<'a>,
    before: Termios,
}

impl<'a> RawTerminal<'a> {
    /// `None` when `fd` is no terminal. Ctrl-C keeps its meaning.
    fn new(fd: BorrowedFd<'a>) -> Option<Self> {
        if !isatty(fd) {
            return None;
        }
        let before = tcgetattr(fd).ok()?;
        let mut raw = before.clone();
        raw.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
        tcsetattr(fd, OptionalActions::Now, &raw).ok()?;
        Some(Self { fd, before })
    }
}

impl Drop for RawTerminal<'_> {
    fn drop(&mut self) {
        // The terminal may be gone; then there is nothing to restore.
        let _ = tcsetattr(self.fd, OptionalActions::Now, &self.before);
    }
}
