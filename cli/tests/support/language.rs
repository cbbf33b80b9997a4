//! Programs in several languages, linked with `libxasm.a`, in an enclave or on
//! Linux, with a reader beside them. Part of each test crate that names it,
//! beside `support`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use xemem_host::wire::Policy;
use xemem_host::{Broker, Stream};

use crate::support::{enclavectl, finish, require_programs, unique_dir, wait};

/// Longest wait for anything that should happen at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What is below the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Below {
    Enclave,
    Linux,
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The folder with the archive and the guest programs.
pub(crate) fn out() -> PathBuf {
    let out = std::env::var_os("XASM_OUT").map_or_else(|| repository().join("out"), PathBuf::from);
    let shown = out.display();
    assert!(
        out.join("libxasm.a").is_file() && out.join("xasm-churn").is_file(),
        "libxasm.a or xasm-churn is missing in {shown}; try: cargo xtask image"
    );
    out
}

/// A program that is removed, with its folder, when dropped.
pub(crate) struct Program(pub(crate) PathBuf);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.0.parent().unwrap());
    }
}

/// Compiles `sources` of `guests/libxasm` and links them statically.
pub(crate) fn compile(compiler: &str, flags: &[&str], sources: &[&str]) -> Program {
    let dir = unique_dir("language");
    let program = Program(dir.join("program"));
    let library = repository().join("guests/libxasm");
    let mut compile = Command::new(compiler);
    compile.args(["-static", "-O2"]).args(flags);
    compile.args(sources.iter().map(|source| library.join(source)));
    compile.arg("-I").arg(library.join("include"));
    // Fortran's module files go to where the compiler runs.
    compile.current_dir(&dir).arg("-L").arg(out());
    let compiled = finish(compile.args(["-lxasm", "-o"]).arg(&program.0), b"");
    assert_eq!(compiled.code, 0, "{}", compiled.stderr);
    program
}

/// A program that runs, in a run directory of its own.
pub(crate) struct Run {
    pub(crate) run_dir: PathBuf,
    /// Waited for when it is taken.
    program: Option<Child>,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// Keeps the broker until the end.
    _broker: Broker,
}

impl Run {
    /// Starts `program` with one argument.
    pub(crate) fn start(below: Below, program: &Path, argument: u64) -> Self {
        Self::on(1, below, program, argument)
    }

    /// The same in an enclave of so many cores.
    pub(crate) fn on(cores: usize, below: Below, program: &Path, argument: u64) -> Self {
        require_programs();
        let run_dir = unique_dir("run");
        let mut command = match below {
            Below::Enclave => in_enclave(&run_dir, program, cores),
            Below::Linux => on_linux(&run_dir, program),
        };
        let enclavectl = Path::new(env!("CARGO_BIN_EXE_enclavectl"));
        let broker = enclavectl.with_file_name("xemem-broker");
        let broker = Broker::connect_or_start(&run_dir.join("xemem.sock"), &broker).unwrap();
        command.arg(argument.to_string()).stdin(Stdio::piped());
        let mut program = command.stdout(Stdio::piped()).spawn().unwrap();
        Self {
            run_dir,
            stdin: program.stdin.take().unwrap(),
            stdout: BufReader::new(program.stdout.take().unwrap()),
            program: Some(program),
            _broker: broker,
        }
    }

    /// A reader of arena `name`, which need not be there yet.
    pub(crate) fn attach(&self, name: &str, policy: Policy) -> Stream {
        let socket = self.run_dir.join("xemem.sock");
        Stream::attach(&socket, name, policy, PATIENCE).unwrap()
    }

    /// A connection to the broker, as a process of Linux has it.
    pub(crate) fn connect(&self) -> Broker {
        Broker::connect(&self.run_dir.join("xemem.sock")).unwrap()
    }

    /// Lets a program go on that waits for a line.
    pub(crate) fn go_on(&mut self) {
        self.stdin.write_all(b"\n").unwrap();
    }

    /// The next line that the program prints.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Waits for the program, which must succeed; what else it printed.
    pub(crate) fn end(&mut self) -> String {
        let (code, text) = self.end_with();
        assert_eq!(code, 0, "{text}");
        text
    }

    /// Waits for the program; its exit code, and what else it printed.
    pub(crate) fn end_with(&mut self) -> (i32, String) {
        let mut program = self.program.take().unwrap();
        let mut text = String::new();
        self.stdout.read_to_string(&mut text).unwrap();
        (wait(&mut program), text)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Some(mut program) = self.program.take() {
            let _ = program.kill();
            wait(&mut program);
        }
        for arguments in [&["destroy", "--all"][..], &["broker", "stop", "--force"]] {
            finish(enclavectl(&self.run_dir).args(arguments), b"");
        }
        let _ = std::fs::remove_dir_all(&self.run_dir);
    }
}

/// The program in a new enclave.
fn in_enclave(run_dir: &Path, program: &Path, cores: usize) -> Command {
    let create = "create l --share-cores --mem 96M --no-prefault --backing small --cores";
    let cores = cores.to_string();
    let create = create.split(' ').chain([cores.as_str()]);
    let created = finish(enclavectl(run_dir).args(create), b"");
    assert_eq!(created.code, 0, "{}", created.stderr);
    let mut command = enclavectl(run_dir);
    command.args(["run", "l", "--"]).arg(program);
    command
}

/// The program as a process of Linux; it starts the broker itself.
fn on_linux(run_dir: &Path, program: &Path) -> Command {
    let mut command = Command::new(program);
    let enclavectl = Path::new(env!("CARGO_BIN_EXE_enclavectl"));
    command
        .env("ENCLAVE_RUNDIR", run_dir)
        .env("XASM_BACKEND", "linux")
        .env("PATH", enclavectl.parent().unwrap());
    command
}
