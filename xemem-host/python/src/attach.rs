//! `attach`: from a name to a [`Stream`].
//!
//! Waits for what may still come: a broker, then the name. A broker is started
//! if its program is on the PATH, so that a reader may be there first.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use rustix::io::Errno;
use xemem_host::wire::Role;
use xemem_host::{Broker, ClientError, Policy, SOCKET_NAME, SegId};

use crate::failure::{self, Class};
use crate::stream::Stream;
use crate::wait::{self, Deadline};

/// The broker's program.
const BROKER: &str = "xemem-broker";
/// Variable that names the broker's socket.
const SOCKET_VARIABLE: &str = "XEMEM_SOCKET";
/// Pause between two looks for a broker.
const BROKER_PAUSE: Duration = Duration::from_millis(20);

/// Attaches the arena `name` and returns the stream of its snapshots.
#[pyfunction]
#[pyo3(signature = (name, *, policy = "latest", timeout = Some(30.0), socket = None))]
pub(crate) fn attach(
    py: Python<'_>,
    name: &str,
    policy: &str,
    timeout: Option<f64>,
    socket: Option<PathBuf>,
) -> PyResult<Stream> {
    let policy = match policy {
        "latest" => Policy::Latest,
        "every" => Policy::Every,
        other => {
            let text = format!("policy must be \"latest\" or \"every\", not {other:?}");
            return Err(PyValueError::new_err(text));
        }
    };
    let timeout = wait::timeout(timeout)?;
    let deadline = Deadline::after(timeout);
    let socket = match socket.or_else(|| std::env::var_os(SOCKET_VARIABLE).map(PathBuf::from)) {
        Some(socket) => socket,
        None => run_dir_socket(py)?,
    };
    let mut broker = connect(py, &socket, deadline)?;
    let segid = lookup(py, &mut broker, name, deadline)?;
    let stream = py.detach(|| xemem_host::Stream::over(broker, segid, policy));
    let stream = stream.map_err(|error| failure::about(py, &error, name))?;
    Ok(Stream::new(name.to_owned(), stream, timeout))
}

fn run_dir_socket(py: Python<'_>) -> PyResult<PathBuf> {
    let run_dir = xemem_host::run_dir();
    let run_dir = run_dir
        .map_err(|error| failure::raise(py, Class::Error, Errno::ACCESS, &error.to_string()))?;
    Ok(run_dir.join(SOCKET_NAME))
}

/// A connection to the broker; waits for one that can be waited for.
fn connect(py: Python<'_>, socket: &Path, deadline: Deadline) -> PyResult<Broker> {
    let program = broker_program();
    let attempt = |slice: Duration| {
        // A broker started for us stays while somebody is connected.
        let started = program
            .as_ref()
            .map(|program| Broker::connect_or_start(socket, program))
            .transpose();
        let connected = started.and_then(|_started| Broker::connect_as(socket, Role::Consumer));
        match connected {
            Ok(broker) => Ok(Some(broker)),
            Err(error) if slice.is_zero() || !may_come(&error) => Err(error),
            Err(_) => {
                std::thread::sleep(BROKER_PAUSE.min(slice));
                Ok(None)
            }
        }
    };
    match wait::sliced(py, deadline, attempt)? {
        Ok(Some(broker)) => Ok(broker),
        Ok(None) => Err(failure::of(py, &ClientError::Timeout)),
        Err(error) => Err(failure::of(py, &error)),
    }
}

/// Whether a broker may still come to where there is none.
fn may_come(error: &ClientError) -> bool {
    match error {
        ClientError::Connect { source, .. } => {
            matches!(*source, Errno::NOENT | Errno::CONNREFUSED)
        }
        _ => false,
    }
}

/// The segment of that name; the broker waits, slice by slice, for a live one.
/// At the end it may be one that has ended and is retained.
fn lookup(py: Python<'_>, broker: &mut Broker, name: &str, deadline: Deadline) -> PyResult<SegId> {
    let mut last_slice = false;
    let mut waited = false;
    let attempt = |slice: Duration| {
        // The broker counts milliseconds; 0 means not to wait.
        last_slice = slice < Duration::from_millis(1);
        let timeout = (!last_slice || waited).then_some(slice.max(Duration::from_millis(1)));
        waited = true;
        let found = if last_slice {
            broker.lookup(name, timeout)
        } else {
            broker.lookup_live(name, timeout)
        };
        match found {
            Err(error) if error.refusal() == Some(Errno::TIMEDOUT) && !last_slice => Ok(None),
            Err(error) => Err(error),
            Ok(segid) => Ok(Some(segid)),
        }
    };
    match wait::sliced(py, deadline, attempt)? {
        Ok(Some(segid)) => Ok(segid),
        Ok(None) => Err(failure::about(py, &ClientError::Timeout, name)),
        Err(error) => Err(failure::about(py, &error, name)),
    }
}

fn broker_program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(BROKER))
        .find(|program| program.is_file())
}
