//! One run: its private directory, its programs, its enclaves.
//!
//! Everything the measurements start goes through here and gets the run
//! directory in its environment, which is how the [`Janitor`] recognises what
//! belongs to the run. Dropping an [`Enclave`] destroys it; dropping the
//! session cleans up all the rest.

use crate::janitor::Janitor;
use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Variable that tells all of the project's programs their run directory.
pub(crate) const RUN_DIR_VARIABLE: &str = "ENCLAVE_RUNDIR";

/// A command for one of the project's programs.
pub(crate) fn program(programs: &Path, run_dir: &Path, name: &str) -> Command {
    let mut command = Command::new(programs.join(name));
    command
        .env(RUN_DIR_VARIABLE, run_dir)
        // The files beside the program, whatever the caller works on.
        .env_remove("ENCLAVE_KERNEL")
        .env_remove("XEMEM_SOCKET")
        .stdin(Stdio::null());
    command
}

/// Pages behind enclaves and arenas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pages {
    /// So many of 2 MiB, as far as they can be had.
    Huge(u64),
    /// Only those of 4 KiB.
    Small,
}

/// A run.
#[derive(Debug)]
pub(crate) struct Session {
    programs: PathBuf,
    run_dir: PathBuf,
    pages: Pages,
    janitor: Janitor,
}

impl Session {
    /// Makes the run directory and asks for pages.
    ///
    /// # Errors
    /// A program or /dev/kvm is missing, or the directory cannot be made.
    pub(crate) fn open(programs: &Path, pages: Pages) -> anyhow::Result<Self> {
        for name in [
            "enclavectl",
            "enclave-vmm",
            "enclave-kernel",
            "xemem-broker",
            "xasm-bench",
            "snap-mini",
            "spectrum",
        ] {
            let path = programs.join(name);
            ensure!(path.is_file(), "{} is not there", path.display());
        }
        let device = Path::new("/dev/kvm");
        std::fs::File::options()
            .read(true)
            .write(true)
            .open(device)
            .context("open /dev/kvm")?;
        // Short, because socket paths may have 107 bytes at most.
        let name = format!("xasm-bench-{}", std::process::id());
        let run_dir = std::env::temp_dir().join(name);
        let wanted = match pages {
            Pages::Huge(wanted) => wanted,
            Pages::Small => 0,
        };
        let janitor = Janitor::start(&run_dir, programs, wanted)?;
        let granted = janitor.hugepages;
        eprintln!("==> bench: {granted} of {wanted} huge pages reserved");
        make_folder(&run_dir)?;
        Ok(Self {
            programs: programs.to_owned(),
            run_dir,
            pages,
            janitor,
        })
    }

    /// Makes a folder that goes with the run.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let folder = self.run_dir.join(name);
        make_folder(&folder)?;
        Ok(folder)
    }

    /// A command for one of the project's programs.
    pub(crate) fn program(&self, name: &str) -> Command {
        program(&self.programs, &self.run_dir, name)
    }

    /// Path of one of the project's programs.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// The broker's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.run_dir.join(xemem_host::SOCKET_NAME)
    }

    /// Creates an enclave of one core; `more` are further arguments.
    ///
    /// # Errors
    /// What `enclavectl create` says.
    pub(crate) fn create(
        &self,
        name: &str,
        mem_mib: u64,
        more: &[&str],
    ) -> anyhow::Result<Enclave<'_>> {
        let mut command = self.program("enclavectl");
        command.args(["create", name, "--json", "--cores", "1", "--share-cores"]);
        command.args(["--mem", &format!("{mem_mib}M")]).args(more);
        if self.pages == Pages::Small {
            command.args(["--backing", "small"]);
        }
        // From here on there may be something to destroy.
        let mut enclave = Enclave {
            session: self,
            name: name.to_owned(),
            created: Value::Null,
        };
        let text = capture(&mut command)?;
        let created: Value = serde_json::from_str(&text).context("understand create --json")?;
        enclave.created = created["enclave"].clone();
        Ok(enclave)
    }

    /// Cleans up, and says what did not end by itself.
    ///
    /// # Errors
    /// Something had to be killed or did not come back.
    pub(crate) fn close(self) -> anyhow::Result<()> {
        let report = self.janitor.dismiss()?;
        if !report.killed.is_empty() {
            bail!("left behind and killed: {}", report.killed.join(", "));
        }
        let left = report.hugepages_left;
        ensure!(left == 0, "{left} huge pages did not go back");
        Ok(())
    }
}

fn make_folder(path: &Path) -> anyhow::Result<()> {
    DirBuilder::new()
        .mode(0o700)
        .create(path)
        .with_context(|| format!("create {}", path.display()))
}

/// A created enclave.
#[derive(Debug)]
pub(crate) struct Enclave<'a> {
    session: &'a Session,
    /// Its name.
    pub(crate) name: String,
    /// What `create --json` said.
    pub(crate) created: Value,
}

impl Enclave<'_> {
    /// A command that runs `program` in the enclave.
    pub(crate) fn run(&self, program: &str) -> Command {
        let mut command = self.session.program("enclavectl");
        command.args(["run", &self.name, "--"]);
        command.arg(self.session.path(program));
        command
    }

    /// Host cores it runs on.
    pub(crate) fn cores(&self) -> Vec<usize> {
        let cores = self.created["effective"]["cores"].as_array();
        let numbers = cores.into_iter().flatten().filter_map(Value::as_u64);
        numbers
            .filter_map(|core| usize::try_from(core).ok())
            .collect()
    }
}

impl Drop for Enclave<'_> {
    fn drop(&mut self) {
        // The janitor tries again and reports what stays.
        let _ = self
            .session
            .program("enclavectl")
            .args(["destroy", "--ignore-missing", &self.name])
            .stdout(Stdio::null())
            .status();
    }
}

/// Runs `command` and returns its standard output.
///
/// # Errors
/// It does not succeed; what it wrote to standard error is part of the reason.
pub(crate) fn capture(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .output()
        .with_context(|| format!("start {}", command.get_program().display()))?;
    if output.status.success() {
        return String::from_utf8(output.stdout).context("output that is no text");
    }
    let words: Vec<_> = command
        .get_args()
        .map(|word| word.to_string_lossy())
        .collect();
    let stderr = String::from_utf8_lossy(&output.stderr);
    bail!(
        "{} {}: {}: {}",
        command.get_program().display(),
        words.join(" "),
        output.status,
        stderr.trim()
    )
}
