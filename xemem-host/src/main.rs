//! `xemem-broker`: owns arenas, names and leases of one run directory.
//!
//! Started by the first client that needs it, or by hand; ends by itself when
//! nobody needs it any more. Parses arguments and reports errors; the rest is
//! [`xemem_host::server`].

use anyhow::Context;
use clap::Parser;
use rustix::fs::{Mode, OFlags};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use xemem_host::broker::RINGS_PER_SECOND;
use xemem_host::server::{Options, Server};

const AFTER_HELP: &str = "\
Examples:
  xemem-broker                        serve $ENCLAVE_RUNDIR, in the foreground
  xemem-broker --linger-ms 3600000    stay an hour after the last client

Files in the run directory ($ENCLAVE_RUNDIR, else /run/enclave for root, else
$XDG_RUNTIME_DIR/enclave, else /tmp/enclave-UID):
  xemem.sock  where clients connect
  xemem.lock  locked by the broker that serves
  xemem.log   what a broker started by a client writes

Exit codes:
  0  ended when it should: no clients left, asked to, SIGTERM or SIGINT;
     or another broker serves this run directory already
  1  could not serve: run directory, lock or socket unusable
  2  wrong arguments";

/// Owns arenas, names, permits and leases, and shares them between enclaves
/// and Linux processes.
#[derive(Debug, Parser)]
#[command(name = "xemem-broker", version, after_help = AFTER_HELP)]
struct Arguments {
    /// Socket to listen at, instead of xemem.sock in the run directory.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Milliseconds to stay when there is no client at all.
    #[arg(long, value_name = "N", default_value_t = 2000)]
    linger_ms: u64,
    /// Rings per second (and at once) that a doorbell may cost work.
    #[arg(long, value_name = "N", default_value_t = RINGS_PER_SECOND)]
    rings_per_second: u64,
    /// Leave the terminal, and say "ready" on standard output once serving.
    #[arg(long, hide = true)]
    detach: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xemem-broker: {error}");
            let causes: Vec<String> = error.chain().skip(1).map(ToString::to_string).collect();
            eprintln!("why: {}", causes.join(": "));
            eprintln!("try: ENCLAVE_RUNDIR=DIRECTORY xemem-broker");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let socket = match &arguments.socket {
        Some(path) => std::path::absolute(path).context("cannot use the socket path")?,
        None => xemem_host::run_dir()
            .context("cannot find a place for the socket")?
            .join(xemem_host::SOCKET_NAME),
    };
    if arguments.detach {
        // Fails only for the leader of a process group: then we are detached.
        let _ = rustix::process::setsid();
        std::env::set_current_dir("/").context("cannot leave the directory")?;
    }
    let options = Options {
        linger: Duration::from_millis(arguments.linger_ms),
        rings_per_second: arguments.rings_per_second,
    };
    let server = Server::start(&socket, options).context("cannot start")?;
    if arguments.detach {
        say_ready().context("cannot tell that the broker is ready")?;
    }
    server.map_or(Ok(()), |server| server.run().context("cannot go on"))
}

/// Answers whoever started us, then lets go of its pipe.
fn say_ready() -> anyhow::Result<()> {
    // Whoever started us may be gone by now; others may want us.
    let _ = std::io::stdout().write_all(b"ready\n");
    let _ = std::io::stdout().flush();
    let null = rustix::fs::open("/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdout(null)?;
    Ok(())
}
