//! What happened to enclaves, one line of JSON per event, for `enclavectl
//! events`.
//!
//! One pair of files per run directory, appended to by every VMM and by
//! `enclavectl destroy`, so that it outlives the enclaves it tells of. Bounded:
//! a full file becomes the older one. Writing never fails anybody's work and
//! never waits; what a full disk does not take is lost. A VMM that is killed
//! writes nothing: its readers find out by its lock.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, OFlags};
use serde::{Deserialize, Serialize};

use crate::ledger::RunDir;
use crate::machine::RunOutcome;

/// The file being written, and the one before it.
pub const FILES: [&str; 2] = ["events.jsonl", "events.jsonl.1"];
/// Most bytes of either.
pub const MAX_FILE_BYTES: u64 = 1 << 20;
/// Longest text of an event that is kept.
const MAX_DETAIL_CHARS: usize = 500;

/// What can happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Happened {
    /// The enclave is up.
    Created {
        /// Its cores.
        cores: Vec<usize>,
        /// Its memory.
        mem_bytes: u64,
    },
    /// It did not come up.
    CreateFailed {
        /// Why.
        reason: String,
    },
    /// A program starts.
    ProgramStarted {
        /// Number of the run.
        run: u64,
        /// Its path.
        program: String,
    },
    /// A program has ended.
    ProgramEnded {
        /// Number of the run.
        run: u64,
        /// How.
        outcome: RunOutcome,
    },
    /// The kernel or the vCPU failed; told when the VMM notices, which is when
    /// a program ends by it or somebody looks.
    Failed {
        /// Why.
        reason: String,
    },
    /// Its VMM is gone without having been asked to. Told by readers alone.
    Died {
        /// Why, as far as can be told.
        reason: String,
    },
    /// It has more memory.
    MemoryAdded {
        /// By so much.
        bytes: u64,
        /// All of it now.
        mem_bytes: u64,
    },
    /// It has less memory.
    MemoryRemoved {
        /// By so much.
        bytes: u64,
        /// What is left.
        mem_bytes: u64,
    },
    /// It has more cores.
    CoresAdded {
        /// All of them now.
        cores: Vec<usize>,
    },
    /// It has fewer cores.
    CoresRemoved {
        /// What is left.
        cores: Vec<usize>,
    },
    /// Its programs ended, and a fresh kernel runs with what it has.
    Reset {},
    /// Its cores and memory are given back.
    Destroyed {
        /// At whose wish.
        reason: String,
    },
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Wall-clock milliseconds since 1970.
    pub unix_ms: u64,
    /// Enclave.
    pub enclave: String,
    /// What.
    #[serde(flatten)]
    pub happened: Happened,
}

impl Event {
    /// One that happens now.
    #[must_use]
    pub fn now(enclave: &str, happened: Happened) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            unix_ms: since.map_or(0, |t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX)),
            enclave: enclave.to_owned(),
            happened,
        }
    }
}

/// Where this process's own events go.
#[derive(Debug)]
struct Own {
    run: OwnedFd,
    enclave: String,
}

static OWN: OnceLock<Own> = OnceLock::new();

/// Says whose events [`tell`] writes: those of `enclave`. Without it `tell`
/// does nothing.
///
/// # Errors
/// When there is no descriptor to be had.
pub fn begin(run: &RunDir, enclave: &str) -> std::io::Result<()> {
    let own = Own {
        run: run.fd().try_clone_to_owned()?,
        enclave: enclave.to_owned(),
    };
    // A process has one enclave: a second call would name the same.
    let _ = OWN.set(own);
    Ok(())
}

/// Writes an event of this process's enclave.
pub fn tell(happened: Happened) {
    if let Some(own) = OWN.get() {
        // Nobody's work depends on it.
        let _ = write(&own.run, &Event::now(&own.enclave, happened));
    }
}

/// Writes an event of an enclave that cannot do so itself.
pub fn tell_for(run: &RunDir, enclave: &str, happened: Happened) {
    // As above.
    let _ = write(run.fd(), &Event::now(enclave, happened));
}

fn write(run: impl rustix::fd::AsFd, event: &Event) -> std::io::Result<()> {
    let mut event = event.clone();
    shorten(&mut event.happened);
    let mut line = serde_json::to_vec(&event)?;
    line.push(b'\n');
    let mut file = open_to_append(&run)?;
    // Only who gets the lock at once moves a full file away; others write on.
    if file.metadata()?.len() >= MAX_FILE_BYTES
        && rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
        && is_current(&run, &file)
    {
        rustix::fs::renameat(&run, FILES[0], &run, FILES[1])?;
        file = open_to_append(&run)?;
    }
    // One write per line: lines of several processes stay whole.
    file.write_all(&line)
}

fn open_to_append(run: impl rustix::fd::AsFd) -> std::io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NONBLOCK;
    Ok(crate::ledger::beneath(run.as_fd(), FILES[0], flags).map(File::from)?)
}

/// Whether `file` still has its name: another process may have moved it.
fn is_current(run: impl rustix::fd::AsFd, file: &File) -> bool {
    let ours = rustix::fs::fstat(file).map(|s| (s.st_dev, s.st_ino));
    let there = rustix::fs::statat(run, FILES[0], rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
    ours == there.map(|s| (s.st_dev, s.st_ino))
}

/// Cuts texts that came from elsewhere.
fn shorten(happened: &mut Happened) {
    let text = match happened {
        Happened::CreateFailed { reason }
        | Happened::Failed { reason }
        | Happened::Died { reason }
        | Happened::Destroyed { reason } => reason,
        Happened::ProgramStarted { program, .. } => program,
        Happened::ProgramEnded { outcome, .. } => match outcome {
            RunOutcome::Signaled { report, .. } => report,
            RunOutcome::Refused { reason } | RunOutcome::MachineStopped { reason } => reason,
            RunOutcome::Exited { .. } => return,
        },
        Happened::Created { .. }
        | Happened::Reset {}
        | Happened::CoresAdded { .. }
        | Happened::CoresRemoved { .. }
        | Happened::MemoryAdded { .. }
        | Happened::MemoryRemoved { .. } => return,
    };
    if let Some((at, _)) = text.char_indices().nth(MAX_DETAIL_CHARS) {
        text.truncate(at);
    }
}

/// The reading side: yields events across the change of files.
#[derive(Debug)]
pub struct Reader {
    run: OwnedFd,
    file: Option<File>,
    partial: Vec<u8>,
}

impl Reader {
    /// Reads from the beginning of what is kept.
    ///
    /// # Errors
    /// When there is no descriptor to be had.
    pub fn new(run: &RunDir) -> std::io::Result<Self> {
        let run = run.fd().try_clone_to_owned()?;
        let older = open_to_read(&run, FILES[1])?;
        Ok(Self {
            run,
            file: older,
            partial: Vec::new(),
        })
    }

    /// Every event since the last call; a line that is none is left out.
    ///
    /// # Errors
    /// When reading fails.
    pub fn read_new(&mut self) -> std::io::Result<Vec<Event>> {
        let mut events = Vec::new();
        loop {
            let current = open_to_read(&self.run, FILES[0])?;
            if let Some(file) = &mut self.file {
                // First whether it is the last one, then what is in it.
                let is_last = match &current {
                    Some(current) => same(file, current),
                    None => true,
                };
                file.take(2 * MAX_FILE_BYTES)
                    .read_to_end(&mut self.partial)?;
                self.take_lines(&mut events);
                if is_last {
                    return Ok(events);
                }
            }
            if current.is_none() {
                return Ok(events);
            }
            self.partial.clear();
            self.file = current;
        }
    }

    fn take_lines(&mut self, events: &mut Vec<Event>) {
        while let Some(end) = self.partial.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            events.extend(serde_json::from_slice::<Event>(&line).ok());
        }
    }
}

fn open_to_read(run: &OwnedFd, name: &str) -> std::io::Result<Option<File>> {
    use rustix::fd::AsFd;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    match crate::ledger::beneath(run.as_fd(), name, flags) {
        Ok(fd) => Ok(Some(File::from(fd))),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn same(one: &File, other: &File) -> bool {
    let identity = |file| rustix::fs::fstat(file).map(|s| (s.st_dev, s.st_ino));
    identity(one) == identity(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    fn ended(run: u64, text: &str) -> Happened {
        let outcome = RunOutcome::Refused {
            reason: text.to_owned(),
        };
        Happened::ProgramEnded { run, outcome }
    }

    fn numbers(events: &[Event]) -> Vec<u64> {
        let of = |event: &Event| match event.happened {
            Happened::ProgramEnded { run, .. } => Some(run),
            _ => None,
        };
        events.iter().filter_map(of).collect()
    }

    #[test]
    fn events_are_read_back_in_order_and_only_once() {
        let scratch = Scratch::new("events");
        let run = RunDir::create(&scratch.path().join("r")).unwrap();
        let mut reader = Reader::new(&run).unwrap();
        assert_eq!(reader.read_new().unwrap(), []);
        tell_for(&run, "a1", ended(1, "x"));
        tell_for(&run, "a2", ended(2, "y"));
        let events = reader.read_new().unwrap();
        assert_eq!(numbers(&events), [1, 2]);
        assert_eq!(events[1].enclave, "a2");
        assert_eq!(reader.read_new().unwrap(), []);
    }

    #[test]
    fn the_log_is_bounded_and_a_reader_that_keeps_up_misses_nothing() {
        let scratch = Scratch::new("events");
        let run = RunDir::create(&scratch.path().join("r")).unwrap();
        let mut reader = Reader::new(&run).unwrap();
        let mut seen = Vec::new();
        let long = "z".repeat(10 * MAX_DETAIL_CHARS);
        let count = 6000;
        for nr in 0..count {
            tell_for(&run, "a1", ended(nr, &long));
            if nr % 100 == 0 {
                seen.extend(numbers(&reader.read_new().unwrap()));
            }
        }
        seen.extend(numbers(&reader.read_new().unwrap()));
        assert_eq!(seen, (0..count).collect::<Vec<_>>());
        let bytes = |name: &str| std::fs::metadata(scratch.path().join("r").join(name));
        for name in FILES {
            assert!(bytes(name).unwrap().len() < MAX_FILE_BYTES + 4096);
        }
        // Who comes late gets the newest of it.
        let late = numbers(&Reader::new(&run).unwrap().read_new().unwrap());
        assert_eq!(late.last(), Some(&(count - 1)));
        assert!(late.len() > 1000 && (late.len() as u64) < count);
    }

    #[test]
    fn nonsense_between_events_is_left_out() {
        let scratch = Scratch::new("events");
        let run = RunDir::create(&scratch.path().join("r")).unwrap();
        let path = scratch.path().join("r").join(FILES[0]);
        std::fs::write(&path, "\n{}\n{\"event\":\"flown\"}\n\u{fffd}[[\n").unwrap();
        tell_for(&run, "a1", ended(7, ""));
        let events = Reader::new(&run).unwrap().read_new().unwrap();
        assert_eq!(numbers(&events), [7]);
    }

    #[test]
    fn a_planted_link_is_not_written_through() {
        let scratch = Scratch::new("events");
        let run = RunDir::create(&scratch.path().join("r")).unwrap();
        let victim = scratch.path().join("victim");
        std::fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, scratch.path().join("r").join(FILES[0])).unwrap();
        tell_for(&run, "a1", ended(1, ""));
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
        assert!(Reader::new(&run).unwrap().read_new().is_err());
    }
}
