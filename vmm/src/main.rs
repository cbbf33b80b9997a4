//! `enclave-vmm`: one process per enclave.
//!
//! Started by `enclavectl create`, or by hand in the foreground. Confines
//! itself, takes the locks, boots the kernel, serves the control socket, and
//! removes its files when told to stop. If it is killed instead, the host
//! kernel frees all it held; the files left tell `enclavectl list` why.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use enclave_vmm::config::EnclaveConfig;
use enclave_vmm::confine::{self, Needs};
use enclave_vmm::console_log::ConsoleLog;
use enclave_vmm::control::Control;
use enclave_vmm::control::protocol::{Ready, encode};
use enclave_vmm::control::server::Ended;
use enclave_vmm::event_log::{self, Happened};
use enclave_vmm::failure::{Class, Failure};
use enclave_vmm::ledger::{EnclaveDir, Reservation, RunDir, allowed_cores};
use enclave_vmm::lifecycle::Enclave;
use enclave_vmm::machine::{MachineConfig, MachineError, Renewable};
use enclave_vmm::signals::{SIGHUP, SIGINT, SIGTERM, SignalFd, keep_only};
use enclave_vmm::topology::Topology;
use enclave_vmm::vmm_log::note;

/// Longest configuration that is read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Runs one enclave until it is told to stop.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Args {
    /// Configuration as JSON: a file, or - for standard input.
    #[arg(long, value_name = "FILE|-")]
    config: PathBuf,
    /// Descriptor that gets one line of JSON when the enclave is up or has
    /// failed; also detaches from the terminal and logs to the enclave's
    /// vmm.log.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(3..))]
    ready_fd: Option<RawFd>,
    /// End when nobody reads --ready-fd any more.
    #[arg(long, requires = "ready_fd", hide = true)]
    with_creator: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut ready = match keep_only(args.ready_fd) {
        Ok(None) if args.ready_fd.is_some() => {
            let what = "report through --ready-fd";
            return fail(&Failure::new(Class::Usage, what, "it is not open"));
        }
        Ok(fd) => fd.map(File::from),
        Err(error) => return fail(&Failure::io("close inherited descriptors", error)),
    };
    match run(&args, &mut ready) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let piped = ready.is_some();
            let told = tell(&mut ready, &Ready::Error(failure.clone()));
            if piped && told.is_ok() {
                // The creator prints it.
                return ExitCode::from(failure.class.exit_code());
            }
            fail(&failure)
        }
    }
}

fn fail(failure: &Failure) -> ExitCode {
    note(failure);
    ExitCode::from(failure.class.exit_code())
}

fn run(args: &Args, ready: &mut Option<File>) -> Result<(), Failure> {
    // Before any thread, so that all inherit the mask and the confinement.
    let signals =
        SignalFd::new(&[SIGTERM, SIGINT, SIGHUP]).map_err(|e| Failure::io("block signals", e))?;
    give_up_rights()?;
    let detached = ready.is_some();
    if detached {
        // Fails only for a process that leads its group already.
        let _ = rustix::process::setsid();
    }
    let config = read_config(&args.config)?;
    config
        .check()
        .map_err(|e| e.into_failure(format!("create enclave {}", config.name)))?;
    let run_dir_path = RunDir::default_path()?;
    let run_dir = RunDir::create(&run_dir_path)?;
    let reservation = Reservation::take_name(run_dir, &config.name)?;
    write_last_words(reservation.dir())?;
    if detached {
        redirect(reservation.dir())?;
    }
    event_log::begin(reservation.run(), &config.name)
        .map_err(|e| Failure::io("keep the run directory", e))?;
    confine(&config, run_dir_path.as_path(), reservation.dir())?;
    let topology = Topology::read(Path::new("/"))
        .map_err(|e| Failure::new(Class::Failure, "read the host's topology", e))?;
    let (enclave, started) = Enclave::bring_up(
        reservation,
        config,
        &topology,
        &allowed_cores()?,
        make_machine,
    )
    .inspect_err(|failure| {
        let reason = failure.why.clone();
        event_log::tell(Happened::CreateFailed { reason });
    })?;
    event_log::tell(Happened::Created {
        cores: started.effective.cores.clone(),
        mem_bytes: started.effective.config.mem_bytes,
    });
    let creator = match ready {
        Some(pipe) if args.with_creator => Some(OwnedFd::from(
            pipe.try_clone()
                .map_err(|e| Failure::io("keep the creator's pipe", e))?,
        )),
        _ => None,
    };
    if let Err(error) = tell(ready, &Ready::Ok(Box::new(started))) {
        // Whoever asked for the enclave is gone: nobody would know of it.
        enclave.abandon()?;
        destroyed("nobody waited for it");
        return Err(Failure::io("report to the creator", error));
    }
    let ended = enclave.serve(signals, creator)?;
    destroyed(match ended {
        Ended::Requested => "requested",
        Ended::Signal(_) => "a signal",
        Ended::CreatorGone => "its creator is gone",
    });
    Ok(())
}

fn destroyed(why: &str) {
    let reason = why.to_owned();
    event_log::tell(Happened::Destroyed { reason });
}

/// Builds the machine under KVM.
fn make_machine(config: &MachineConfig, log: Arc<ConsoleLog>) -> Result<Arc<dyn Control>, Failure> {
    let machine = Renewable::create(config, log).map_err(|error| refusal(&config.name, &error))?;
    Ok(Arc::new(machine))
}

/// Why there is no machine, with the whole chain of causes.
fn refusal(name: &str, error: &MachineError) -> Failure {
    let lack_hint = match error {
        MachineError::Lack(lack) => lack.hint(),
        _ => String::new(),
    };
    let (class, hint) = match error {
        MachineError::Lack(_) => (Class::Failure, lack_hint.as_str()),
        MachineError::Kvm(..) => (Class::Failure, "enclavectl doctor"),
        MachineError::Memory(_) => (Class::Resources, "enclavectl doctor"),
        MachineError::Load(_) => (Class::Failure, "cargo xtask image"),
        MachineError::Exports(_) => (Class::Usage, ""),
        MachineError::Broker(_) => (Class::Failure, "enclavectl broker status"),
        _ => (Class::Failure, ""),
    };
    let mut why = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        why = format!("{why}: {cause}");
        source = cause.source();
    }
    Failure {
        class,
        what: format!("create enclave {name}"),
        why,
        hint: hint.into(),
    }
}

/// Gives up what a VMM never needs: being dumped or traced by its user, and
/// gaining rights through a program.
fn give_up_rights() -> Result<(), Failure> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    let failed = |e| Failure::io("confine this process", e);
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed)?;
    rustix::thread::set_no_new_privs(true).map_err(failed)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    Ok(())
}

/// Gives up everything else that this enclave does not need, while this is the
/// only thread.
fn confine(config: &EnclaveConfig, run_dir: &Path, dir: &EnclaveDir) -> Result<(), Failure> {
    let what = "confine this process";
    let needs = Needs {
        run_dir,
        kernel: &config.kernel,
        exports: &config.exports,
        notes: confine::keep_open(dir.fd()).map_err(|e| Failure::io(what, e))?,
    };
    confine::enter(&needs).map_err(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        let why = match cause {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        };
        Failure::new(Class::Failure, what, why).with_hint("enclavectl doctor")
    })
}

fn read_config(path: &Path) -> Result<EnclaveConfig, Failure> {
    let what = || format!("read the configuration {}", path.display());
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin()
            .take(MAX_CONFIG_BYTES)
            .read_to_string(&mut text)
    } else {
        File::open(path).and_then(|f| f.take(MAX_CONFIG_BYTES).read_to_string(&mut text))
    };
    read.map_err(|e| Failure::io(what(), e))?;
    serde_json::from_str(&text).map_err(|e| Failure::new(Class::Usage, what(), e))
}

/// From here on a panic leaves a note for `enclavectl list`, and ends the
/// whole process: a VMM in an unknown state must not hold an enclave.
fn write_last_words(dir: &EnclaveDir) -> Result<(), Failure> {
    let fd: OwnedFd = dir
        .fd()
        .try_clone_to_owned()
        .map_err(|e| Failure::io("keep the enclave's directory", e))?;
    std::panic::set_hook(Box::new(move |info| {
        let text = info.to_string().replace('\n', " ");
        note(&text);
        use rustix::fs::{Mode, OFlags};
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        if let Ok(crash) = rustix::fs::openat(&fd, "crash", flags, mode) {
            drop(File::from(crash).write_all(text.as_bytes()));
        }
        std::process::abort();
    }));
    Ok(())
}

/// Sends standard output and error to the enclave's vmm.log, and leaves the
/// caller's directory, which may be meant to go away.
fn redirect(dir: &EnclaveDir) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::io("open vmm.log", e);
    let log = dir.append_file("vmm.log").map_err(failed)?;
    let null = File::open("/dev/null").map_err(failed)?;
    let dup = rustix::stdio::dup2_stdin(&null)
        .and_then(|()| rustix::stdio::dup2_stdout(&log))
        .and_then(|()| rustix::stdio::dup2_stderr(&log));
    dup.and_then(|()| rustix::process::chdir("/"))
        .map_err(|e| failed(e.into()))
}

/// Writes the one line to the ready pipe and closes it.
fn tell(ready: &mut Option<File>, message: &Ready) -> std::io::Result<()> {
    let Some(mut pipe) = ready.take() else {
        return Ok(());
    };
    let line = encode(message).map_err(std::io::Error::other)?;
    pipe.write_all(&line)
}
