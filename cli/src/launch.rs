//! Starting an `enclave-vmm` and hearing how it went.
//!
//! Used by `create`, whose enclaves stay, and by `selftest`, whose enclaves
//! end with it. The VMM gets its configuration on standard input and writes
//! one line to a pipe when the enclave is up or why it is not; a deadline and
//! a descriptor of the caller's end the wait.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use enclave_vmm::config::EnclaveConfig;
use enclave_vmm::control::protocol::{MAX_LINE_BYTES, Ready, Started, decode};
use enclave_vmm::failure::{Class, Failure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How long an enclave lives.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lifetime<'a> {
    /// Until somebody stops it.
    OfItsOwn,
    /// As long as the [`Launch`], in the run directory given.
    OfCreator(&'a Path),
}

/// A VMM on its way up.
#[derive(Debug)]
pub(crate) struct Launch {
    child: Child,
    pipe: File,
}

/// What came of waiting.
#[derive(Debug)]
pub(crate) enum Word {
    /// The enclave is up.
    Up(Box<Started>),
    /// It was refused, and nothing of it is left.
    Refused(Failure),
    /// The VMM ended without a word: how.
    Died(String),
    /// The deadline passed.
    Late,
    /// The caller's descriptor spoke first.
    Called,
}

impl Launch {
    /// Starts the VMM for `config`.
    pub(crate) fn start(
        vmm: &Path,
        config: &EnclaveConfig,
        lifetime: Lifetime<'_>,
    ) -> Result<Self, Failure> {
        let what = format!("create enclave {}", config.name);
        let (reader, writer) = ready_pipe().map_err(|e| Failure::io(&what, e))?;
        let mut command = Command::new(vmm);
        command
            .args(["--config", "-", "--ready-fd"])
            .arg(writer.as_raw_fd().to_string());
        if let Lifetime::OfCreator(run_dir) = lifetime {
            command.arg("--with-creator").env("ENCLAVE_RUNDIR", run_dir);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|e| Failure::io(format!("start {}", vmm.display()), e))?;
        // The child has its own; ours would keep the pipe from ending.
        drop(writer);
        let text =
            serde_json::to_vec(config).map_err(|e| Failure::new(Class::Failure, &what, e))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A VMM that died early says why in its report, or by its end.
            let _ = stdin.write_all(&text);
        }
        Ok(Self {
            child,
            pipe: File::from(reader),
        })
    }

    /// Waits for the VMM's report, until `deadline` or until `call` (if any)
    /// is readable or closed.
    pub(crate) fn wait(
        &mut self,
        deadline: Instant,
        call: Option<BorrowedFd<'_>>,
    ) -> Result<Word, Failure> {
        let what = "hear from enclave-vmm";
        let mut line = Vec::new();
        let mut chunk = [0; 4096];
        while !line.ends_with(b"\n") && line.len() < MAX_LINE_BYTES {
            match await_input(self.pipe.as_fd(), deadline, call) {
                Ok(Awaited::Ready) => {}
                Ok(Awaited::Late) => return Ok(Word::Late),
                Ok(Awaited::Called) => return Ok(Word::Called),
                Err(error) => return Err(Failure::io(what, error)),
            }
            match self
                .pipe
                .read(&mut chunk)
                .map_err(|e| Failure::io(what, e))?
            {
                0 => break,
                count => line.extend_from_slice(&chunk[..count]),
            }
        }
        if line.is_empty() {
            let end = self.child.wait();
            return Ok(Word::Died(
                end.map_or_else(|e| e.to_string(), |status| status.to_string()),
            ));
        }
        match decode::<Ready>(&line)? {
            Ready::Ok(started) => Ok(Word::Up(started)),
            Ready::Error(failure) => {
                // It removes its files before it ends: wait, so that a next
                // create finds the name free. The failure is the one reported.
                let _ = self.child.wait();
                Ok(Word::Refused(failure))
            }
        }
    }

    /// Ends the VMM at once.
    pub(crate) fn kill(&mut self) {
        // Fails only for one that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Lets go of a VMM that lives with its creator, and waits for its end;
    /// killed when it takes longer than `patience`.
    pub(crate) fn end(self, patience: Duration) {
        let Self { mut child, pipe } = self;
        drop(pipe);
        let ended = wait_child(&mut child, Instant::now() + patience, None);
        if !matches!(ended, Ok(Waited::Ended(_))) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// How waiting for a process ended.
#[derive(Debug)]
pub(crate) enum Waited {
    /// It ended.
    Ended(ExitStatus),
    /// The deadline passed.
    Late,
    /// The caller's descriptor spoke first.
    Called,
}

/// Waits for the end of `child`, until `deadline` or until `call` (if any) is
/// readable or closed.
pub(crate) fn wait_child(
    child: &mut Child,
    deadline: Instant,
    call: Option<BorrowedFd<'_>>,
) -> std::io::Result<Waited> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    Ok(match await_input(pidfd.as_fd(), deadline, call)? {
        Awaited::Ready => Waited::Ended(child.wait()?),
        Awaited::Late => Waited::Late,
        Awaited::Called => Waited::Called,
    })
}

/// How waiting for a descriptor ended.
#[derive(Debug)]
pub(crate) enum Awaited {
    /// It is readable or closed.
    Ready,
    /// The deadline passed.
    Late,
    /// The caller's descriptor spoke first.
    Called,
}

/// Waits until `fd` is readable or closed; `call` goes first.
pub(crate) fn await_input(
    fd: BorrowedFd<'_>,
    deadline: Instant,
    call: Option<BorrowedFd<'_>>,
) -> std::io::Result<Awaited> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(std::io::Error::other)?;
        let mut fds = vec![PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        fds.extend(call.map(|call| PollFd::from_borrowed_fd(call, PollFlags::IN)));
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Ok(Awaited::Late),
            Ok(_) if fds.get(1).is_some_and(|call| !call.revents().is_empty()) => {
                return Ok(Awaited::Called);
            }
            Ok(_) => return Ok(Awaited::Ready),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A pipe whose writing end a child inherits under the same number.
fn ready_pipe() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::io::fcntl_setfd(&writer, rustix::io::FdFlags::empty())?;
    Ok((reader, writer))
}
