//! The private run directory of one self-test, and its broker.
//!
//! Made by the worker; cleared by the worker at its end, or by the front when
//! the worker was killed. Enclaves here are not seen by `enclavectl list`, and
//! theirs are not seen here. Clearing ends every process of the directory
//! before it removes it.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use enclave_vmm::failure::Failure;
use enclave_vmm::ledger::RunDir;
use xemem_host::{Broker as Connection, SOCKET_NAME};

use crate::cmd::{broker, destroy};
use crate::locate;

/// Longest path below which the socket's still fits an address.
const MAX_BASE_BYTES: usize = 60;

/// The directory with a broker that serves it.
#[derive(Debug)]
pub(super) struct Place {
    /// The directory as the ledger knows it.
    pub(super) run: RunDir,
    /// The broker's socket.
    pub(super) socket: PathBuf,
    /// Keeps the broker from ending for want of clients.
    _broker: Connection,
}

impl Place {
    /// A path no other self-test has, in a place that is ours or everybody's.
    pub(super) fn new_path() -> PathBuf {
        let mine = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let base = [mine, Some(std::env::temp_dir())]
            .into_iter()
            .flatten()
            .find(|base| {
                base.is_absolute() && base.is_dir() && base.as_os_str().len() <= MAX_BASE_BYTES
            })
            .unwrap_or_else(|| PathBuf::from("/tmp"));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let nanoseconds = now.map_or(0, |now| now.subsec_nanos());
        let pid = std::process::id();
        base.join(format!("enclavectl-selftest-{pid}-{nanoseconds:08x}"))
    }

    /// Makes the directory, which must not be there, and starts the broker.
    pub(super) fn make(path: &Path) -> Result<Self, Failure> {
        let what = || format!("make the directory {}", path.display());
        DirBuilder::new()
            .mode(0o700)
            .create(path)
            .map_err(|e| Failure::io(what(), e).with_hint("ls -ld \"${TMPDIR:-/tmp}\""))?;
        let made = Self::furnish(path);
        if made.is_err() {
            clear(path);
        }
        made
    }

    fn furnish(path: &Path) -> Result<Self, Failure> {
        let run = RunDir::create(path)?;
        let socket = path.join(SOCKET_NAME);
        let exe = locate::program("xemem-broker")?;
        let connection = Connection::connect_or_start(&socket, &exe)
            .map_err(|error| broker::failure("start the broker", &error))?;
        Ok(Self {
            run,
            socket,
            _broker: connection,
        })
    }
}

/// Ends what runs in `path` and removes it. What cannot be ended or removed is
/// left to whoever looks there: there is nobody to tell any more.
pub(super) fn clear(path: &Path) {
    if let Ok(Some(run)) = RunDir::open(path) {
        for name in run.names().unwrap_or_default() {
            drop(destroy::end(&run, &name));
        }
        end_broker(&path.join(SOCKET_NAME));
        drop(std::fs::remove_dir_all(path));
    }
}

fn end_broker(socket: &Path) {
    if let Ok(broker) = Connection::connect(socket) {
        // Without clients it ends by itself, only later.
        drop(broker::end(broker, true));
    }
}
