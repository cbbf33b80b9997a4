//! `gdb`: connects a debugger with an enclave.
//!
//! The connection is handed to the enclave's VMM, which speaks gdb's protocol on
//! it from then on; this process has nothing more to do. With no address the
//! connection is standard input and output, as `target remote | …` of gdb has it.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use enclave_vmm::control::client::Client;
use enclave_vmm::failure::{Class, Failure};

use crate::locate;
use crate::output;

/// The VMM answers at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Connect gdb with an enclave: its program and its kernel.
#[derive(Debug, Args)]
pub(crate) struct Gdb {
    /// The enclave.
    name: String,
    /// Wait for gdb at this address, 127.0.0.1:PORT or the path of a socket, instead
    /// of speaking to it through standard input and output.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
}

/// Removes the socket again.
struct Removed<'a>(&'a Path);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        // Somebody may have removed it before.
        let _ = std::fs::remove_file(self.0);
    }
}

impl Gdb {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let dir = locate::enclave(&locate::run_dir()?, &self.name)?;
        let connect = || Client::connect(&dir, ANSWER_TIMEOUT);
        let Some(address) = &self.listen else {
            let (input, output) = (std::io::stdin(), std::io::stdout());
            return connect()?.debug(input.as_fd(), output.as_fd());
        };
        let connection = accept(address)?;
        connect()?.debug(connection.as_fd(), connection.as_fd())
    }
}

/// The first connection to `address`.
fn accept(address: &str) -> Result<OwnedFd, Failure> {
    let what = format!("wait for gdb at {address}");
    let failed = |error: std::io::Error| Failure::io(&*what, error);
    if let Some(address) = loopback(address)? {
        let listener = TcpListener::bind(address).map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        output::line(&format!("target remote {bound}"))?;
        let (stream, _) = listener.accept().map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        return Ok(stream.into());
    }
    let path = PathBuf::from(address);
    let listener = UnixListener::bind(&path).map_err(failed)?;
    let _removed = Removed(&path);
    output::line(&format!("target remote {address}"))?;
    let (stream, _) = listener.accept().map_err(failed)?;
    Ok(stream.into())
}

/// The address, if it is one of TCP. Whoever reaches it has the enclave, so only
/// this host may.
fn loopback(address: &str) -> Result<Option<SocketAddrV4>, Failure> {
    match address.parse::<SocketAddrV4>() {
        Ok(it) if *it.ip() == Ipv4Addr::LOCALHOST => Ok(Some(it)),
        Ok(it) => {
            let why = format!("{} can be reached from elsewhere", it.ip());
            let what = format!("wait for gdb at {address}");
            Err(Failure::new(Class::Usage, what, why)
                .with_hint(format!("--listen 127.0.0.1:{}", it.port())))
        }
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_this_host_or_paths() {
        assert_eq!(loopback("/run/gdb.sock").unwrap(), None);
        let here = loopback("127.0.0.1:1234").unwrap().unwrap();
        assert_eq!(here.port(), 1234);
        let failure = loopback("0.0.0.0:1234").unwrap_err();
        assert_eq!(failure.class, Class::Usage);
        assert_eq!(failure.hint, "--listen 127.0.0.1:1234");
    }
}
