//! `create`: checks the request, makes sure the broker runs, starts the VMM
//! and waits for its one line that says the enclave is up or why not.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use enclave_vmm::config::{
    ConfigError, CoreRequest, EnclaveConfig, parse_cores, parse_export, parse_size,
};
use enclave_vmm::control::protocol::{MAX_LINE_BYTES, Ready, Started, decode};
use enclave_vmm::failure::{Class, Failure};
use enclave_vmm::machine::{Backing, Export, Ring};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::output::{self, Format};
use crate::{cmd, locate};

/// Longest time a VMM may take to come up, touching all memory included.
const CREATE_TIMEOUT: Duration = Duration::from_secs(120);

/// Give an enclave cores and memory, and boot its kernel.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Name: letters, digits, '.', '_' and '-', at most 63.
    name: String,
    /// How many cores, or which: a list such as 2,4-5 (2-2 is core 2).
    #[arg(long, value_name = "N|LIST", default_value = "1", value_parser = parse_cores)]
    cores: CoreRequest,
    /// Private memory, such as 512M or 1G.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    mem: u64,
    /// Directory the programs may reach; read-only unless :rw.
    #[arg(long, value_name = "HOST[=GUEST][:rw]", value_parser = parse_export)]
    export: Vec<Export>,
    /// Privilege ring of the kernel.
    #[arg(long, value_enum, default_value_t = RingChoice::Auto)]
    ring: RingChoice,
    /// Pages behind the memory: 2 MiB (huge), 4 KiB (small), or what there is.
    #[arg(long, value_enum, default_value_t = BackingChoice::Auto)]
    backing: BackingChoice,
    /// Do not touch all memory at create.
    #[arg(long)]
    no_prefault: bool,
    /// Share cores with other enclaves that do, and with the host.
    #[arg(long)]
    share_cores: bool,
    /// Kernel image.
    #[arg(long, value_name = "PATH", env = "ENCLAVE_KERNEL")]
    kernel: Option<PathBuf>,
    /// Kernel self-test to run at boot.
    #[arg(long, value_name = "N", default_value_t = 0, hide = true)]
    selftest: u32,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RingChoice {
    Auto,
    #[value(name = "0")]
    Ring0,
    #[value(name = "3")]
    Ring3,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BackingChoice {
    Auto,
    Huge,
    Small,
}

impl Create {
    pub(crate) fn run(&self, format: Format) -> Result<(), Failure> {
        let what = format!("create enclave {}", self.name);
        let mut config = self.config();
        // Before looking for files, so that nonsense is called nonsense.
        config
            .check()
            .map_err(|e: ConfigError| e.into_failure(&what))?;
        config.kernel = locate::kernel(self.kernel.as_deref())?;
        for export in &mut config.exports {
            export.host = export_directory(export)?;
        }
        let vmm = locate::program("enclave-vmm")?;
        // Makes the run directory, so that broker and VMM find the same one.
        locate::run_dir()?;
        let (socket, broker) = cmd::broker::ensure_running()?;
        config.broker_socket = socket;
        let started = start(&vmm, &config)?;
        // By now the VMM has its own connection.
        drop(broker);
        for warning in started
            .effective
            .warnings
            .iter()
            .chain(&started.report.warnings)
        {
            output::warning(warning);
        }
        match format {
            Format::Json => output::json("enclave", &started),
            Format::Text => output::line(&summary(&started)),
        }
    }

    fn config(&self) -> EnclaveConfig {
        EnclaveConfig {
            name: self.name.clone(),
            cores: self.cores.clone(),
            share_cores: self.share_cores,
            mem_bytes: self.mem,
            exports: self.export.clone(),
            ring: match self.ring {
                RingChoice::Auto => Ring::Auto,
                RingChoice::Ring0 => Ring::Ring0,
                RingChoice::Ring3 => Ring::Ring3,
            },
            backing: match self.backing {
                BackingChoice::Auto => Backing::Auto,
                BackingChoice::Huge => Backing::Huge2m,
                BackingChoice::Small => Backing::Small,
            },
            prefault: !self.no_prefault,
            kernel: PathBuf::new(),
            broker_socket: PathBuf::new(),
            selftest: self.selftest,
        }
    }
}

/// The exported directory without links, so that it stays the one meant.
fn export_directory(export: &Export) -> Result<PathBuf, Failure> {
    let what = || format!("export {}", export.host.display());
    let path = std::fs::canonicalize(&export.host).map_err(|e| {
        Failure::io(what(), e).with_hint(format!("mkdir -p {}", export.host.display()))
    })?;
    if path.is_dir() {
        Ok(path)
    } else {
        Err(Failure::new(Class::Usage, what(), "it is not a directory")
            .with_hint("enclavectl create --help"))
    }
}

/// Starts the VMM and waits for its report.
fn start(vmm: &PathBuf, config: &EnclaveConfig) -> Result<Box<Started>, Failure> {
    let what = format!("create enclave {}", config.name);
    let (reader, writer) = ready_pipe().map_err(|e| Failure::io(&what, e))?;
    let mut child = Command::new(vmm)
        .args(["--config", "-", "--ready-fd"])
        .arg(writer.as_raw_fd().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|e| Failure::io(format!("start {}", vmm.display()), e))?;
    // The child has its own; ours would keep the pipe from ending.
    drop(writer);
    let text = serde_json::to_vec(config).map_err(|e| Failure::new(Class::Failure, &what, e))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A VMM that died early says why below, or its exit status does.
        let _ = stdin.write_all(&text);
    }
    let line = match read_line(reader, Instant::now() + CREATE_TIMEOUT) {
        Ok(line) => line,
        Err(error) => {
            // It must not come up after we said it did not.
            let _ = child.kill();
            let _ = child.wait();
            return Err(Failure::io(&what, error));
        }
    };
    if line.is_empty() {
        return Err(died(&what, &mut child));
    }
    match decode::<Ready>(&line)? {
        Ready::Ok(started) => Ok(started),
        Ready::Error(failure) => {
            // It removes its files before it ends: wait, so that a next
            // create finds the name free. The failure is the one reported.
            let _ = child.wait();
            Err(failure)
        }
    }
}

fn died(what: &str, child: &mut Child) -> Failure {
    let end = child
        .wait()
        .map_or_else(|e| e.to_string(), |status| status.to_string());
    let why = format!("enclave-vmm ended without a report ({end})");
    Failure::new(Class::Failure, what, why)
}

/// A pipe whose writing end a child inherits under the same number.
fn ready_pipe() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::io::fcntl_setfd(&writer, rustix::io::FdFlags::empty())?;
    Ok((reader, writer))
}

/// Reads up to the first newline or the end.
fn read_line(pipe: OwnedFd, deadline: Instant) -> std::io::Result<Vec<u8>> {
    let mut pipe = File::from(pipe);
    let mut line = Vec::new();
    let mut chunk = [0; 4096];
    while !line.ends_with(b"\n") && line.len() < MAX_LINE_BYTES {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(std::io::Error::other)?;
        let mut fds = [PollFd::new(&pipe, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Err(std::io::ErrorKind::TimedOut.into()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        match pipe.read(&mut chunk)? {
            0 => break,
            count => line.extend_from_slice(&chunk[..count]),
        }
    }
    Ok(line)
}

fn summary(started: &Started) -> String {
    let cores: Vec<String> = started
        .effective
        .cores
        .iter()
        .map(usize::to_string)
        .collect();
    format!(
        "{}: core {}, {} of memory in {} pages, kernel in {}",
        started.effective.config.name,
        cores.join(","),
        output::size(started.effective.config.mem_bytes),
        output::size(started.report.backing_page_bytes),
        started.report.kernel_mode,
    )
}
