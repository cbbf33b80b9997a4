//! What an `enclave-vmm` may no longer do once it has its enclave's name.
//!
//! Called by `main` before the machine is built ([`enter`]), by whoever starts
//! a thread ([`spawn`]), and by `inspect` and `doctor`, which read back from
//! the host kernel what holds ([`Confinement`]). The order is: capabilities,
//! limits, files (Landlock), system calls (seccomp); each of them is for good.
//!
//! ```text
//!  main thread      every call that some thread of this process needs
//!    ├─ vcpu        … without sockets to listen on, epoll, signals
//!    ├─ helpers     … without files beyond openat, memory objects, KVM
//! ```
//!
//! A thread inherits its maker's filter and can only add to it, so the main
//! thread's is the union. A call that is on no list never runs: the process
//! writes down its name and the thread's and ends ([`BLOCKED_EXIT`]).
//!
//! Not done here: a user of its own per enclave (files are reached as whoever
//! created it), and anything about the broker, which is another process.

mod calls;
mod files;
mod filter;
mod limits;
mod names;
mod observed;
mod trap;

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::path::Path;
use std::sync::OnceLock;
use std::thread::{Builder, JoinHandle};

pub use self::calls::Role;
pub use self::files::landlock_of_host;
pub use self::observed::{Confinement, Limits, ThreadFilter};
pub use self::trap::BLOCKED_EXIT;

use self::filter::Filters;
use crate::machine::Export;

/// What keeps a process from being confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// A system call of its own.
    #[error("cannot {0}")]
    System(&'static str, #[source] io::Error),
    /// Landlock, where the kernel has it.
    #[error("cannot restrict files: {0}")]
    Files(String),
    /// A filter that does not compile or is not accepted.
    #[error("cannot restrict system calls: {0}")]
    Calls(String),
}

/// What an enclave's process still needs.
#[derive(Clone, Copy, Debug)]
pub struct Needs<'a> {
    /// The run directory: locks, records, logs, sockets.
    pub run_dir: &'a Path,
    /// The kernel image.
    pub kernel: &'a Path,
    /// Directories that programs reach.
    pub exports: &'a [Export],
    /// Directory that gets the note of a blocked call; stays open as long as
    /// the process lives.
    pub notes: RawFd,
}

/// The state of this process, once it is confined.
#[derive(Debug)]
struct Entered {
    filters: Filters,
    landlock: u32,
}

static ENTERED: OnceLock<Entered> = OnceLock::new();

/// Confines this process; the calling thread must be its only one.
///
/// # Errors
/// [`ConfineError`]. What was given up before the failing step stays so.
pub fn enter(needs: &Needs<'_>) -> Result<(), ConfineError> {
    // Compiled before files are out of reach and calls are blocked.
    let filters = Filters::compile()?;
    limits::drop_capabilities()?;
    limits::bound()?;
    let landlock = files::restrict(needs)?;
    trap::install(needs.notes).map_err(|e| ConfineError::System("handle blocked calls", e))?;
    filters.install_first()?;
    // A second call would have been refused by the filter of the first.
    let _ = ENTERED.set(Entered { filters, landlock });
    Ok(())
}

/// Starts a thread that can do what `role` needs and no more, if this process
/// is confined; else an ordinary one.
///
/// # Errors
/// The system's, when there is no thread to be had.
pub fn spawn<T: Send + 'static>(
    role: Role,
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(move || {
        if let Some(entered) = ENTERED.get() {
            entered
                .filters
                .narrow(role)
                // A VMM that is less confined than it says must not go on.
                .unwrap_or_else(|error| panic!("confine thread: {error}"));
        }
        body()
    })
}

/// The Landlock version in force here; 0: none.
fn landlock_version() -> u32 {
    ENTERED.get().map_or(0, |entered| entered.landlock)
}

/// A directory's descriptor for [`Needs::notes`], open until the process ends.
///
/// # Errors
/// When there is no descriptor to be had.
pub fn keep_open(dir: BorrowedFd<'_>) -> io::Result<RawFd> {
    use std::os::fd::IntoRawFd;
    Ok(dir.try_clone_to_owned()?.into_raw_fd())
}
