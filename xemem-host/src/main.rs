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
use xemem_host::broker::{RINGS_PER_SECOND, Retention};
use xemem_host::keeper::{Command, DEATHS_PER_MINUTE, Role};
use xemem_host::server::{Options, ServerError};
use xemem_host::user::{User, UserError};

const AFTER_HELP: &str = "\
Examples:
  xemem-broker                        serve $ENCLAVE_RUNDIR, in the foreground
  xemem-broker --linger-ms 3600000    stay an hour after the last client
  xemem-broker --retain-ms 0          let ended arenas go with their readers
  xemem-broker --user xemem           started by root, serve as that user

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
    /// Milliseconds that an arena can be attached after its end; 0 = not at all.
    /// Without it: $XEMEM_RETAIN_MS, else ten minutes.
    #[arg(long, value_name = "N")]
    retain_ms: Option<u64>,
    /// Most bytes of ended arenas of one user; without it a quarter of memory.
    #[arg(long, value_name = "N")]
    retain_bytes: Option<u64>,
    /// Rings per second (and at once) that a doorbell may cost work.
    #[arg(long, value_name = "N", default_value_t = RINGS_PER_SECOND)]
    rings_per_second: u64,
    /// User that a broker started by root becomes; `root` to stay root. Without
    /// it: $XEMEM_USER, else xemem, else nobody.
    #[arg(long, value_name = "NAME|UID")]
    user: Option<String>,
    /// Brokers that may die within a minute before it is given up.
    #[arg(long, value_name = "N", default_value_t = DEATHS_PER_MINUTE)]
    deaths_per_minute: u32,
    /// Who may do what root may, for a broker that is another user.
    #[arg(long, hide = true, value_name = "UID")]
    owner: Option<u32>,
    /// What this process is; those at work start each other.
    #[arg(long, hide = true, value_enum, default_value_t = RoleName::First)]
    role: RoleName,
    /// Leave the terminal, and say "ready" on standard output once serving.
    #[arg(long, hide = true)]
    detach: bool,
}

/// [`Role`] as an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum RoleName {
    First,
    Broker,
    Keeper,
    Porter,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::First => Self::First,
            RoleName::Broker => Self::Broker,
            RoleName::Keeper => Self::Keeper,
            RoleName::Porter => Self::Porter,
        }
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xemem-broker: {error}");
            let causes: Vec<String> = error.chain().skip(1).map(ToString::to_string).collect();
            eprintln!("why: {}", causes.join(": "));
            eprintln!("try: {}", hint(&error));
            ExitCode::FAILURE
        }
    }
}

fn hint(error: &anyhow::Error) -> &'static str {
    if error.is::<UserError>() || matches!(error.downcast_ref(), Some(ServerError::User(_))) {
        "xemem-broker --user nobody (as root), or xemem-broker without --user"
    } else {
        "ENCLAVE_RUNDIR=DIRECTORY xemem-broker"
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let user = user(arguments).context("cannot choose the user to serve as")?;
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
        retention: retention(arguments)?,
        owner_uid: arguments.owner,
    };
    let command = Command {
        socket,
        options,
        deaths_per_minute: arguments.deaths_per_minute,
        user,
    };
    let announce = || {
        if arguments.detach {
            say_ready();
        }
    };
    command
        .run(arguments.role.into(), announce)
        .context("cannot serve")
}

/// Who to become. Those that the first process starts are that user already;
/// the environment counts for root alone.
fn user(arguments: &Arguments) -> Result<Option<User>, UserError> {
    if arguments.role != RoleName::First {
        return Ok(None);
    }
    let is_root = rustix::process::geteuid().is_root();
    let from_environment = std::env::var("XEMEM_USER").ok();
    let from_environment = from_environment.filter(|name| is_root && !name.is_empty());
    let asked = arguments.user.clone().or(from_environment);
    let user = User::choose(asked.as_deref())?;
    if is_root && user.is_none() {
        eprintln!("xemem-broker: warning: it stays root, with all that root may do");
    }
    Ok(user)
}

/// How long and how much is retained. The environment counts, too, because
/// clients start brokers on demand and pass no such arguments.
fn retention(arguments: &Arguments) -> anyhow::Result<Retention> {
    let from_environment = match std::env::var("XEMEM_RETAIN_MS") {
        Ok(text) => Some(text.parse().context("XEMEM_RETAIN_MS is no number")?),
        Err(_) => None,
    };
    let for_ms = arguments.retain_ms.or(from_environment);
    Ok(Retention {
        for_ms: for_ms.unwrap_or(Retention::DEFAULT_MS),
        bytes_per_user: arguments
            .retain_bytes
            .unwrap_or_else(Retention::default_bytes),
    })
}

/// Answers whoever started us, then lets go of its pipe.
fn say_ready() {
    // Whoever started us may be gone by now; others may want us.
    let _ = std::io::stdout().write_all(b"ready\n");
    let _ = std::io::stdout().flush();
    // At worst it waits for more until we end.
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    if let Ok(null) = rustix::fs::open("/dev/null", flags, Mode::empty()) {
        let _ = rustix::stdio::dup2_stdout(null);
    }
}
