//! What every test that runs programs in enclaves needs: directories of its
//! own, programs built from `guests/programs`, children that are waited for
//! with a limit.
//!
//! Part of each test crate that names it. Fails with the command that mends it
//! when a program of this workspace is missing. It does not create enclaves:
//! what is exported to them and who shares them differs.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

/// Longest time one program may take.
const TIMEOUT_S: i64 = 120;
/// Many programs in one, linked statically.
pub(crate) const BUSYBOX: &str = "/usr/bin/busybox";

/// How a program ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A new directory with its real path, short enough for sockets in it.
pub(crate) fn unique_dir(kind: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let nr = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("xasm-{kind}-{}-{nr}", std::process::id());
    let path = std::env::temp_dir().join(name);
    fs::create_dir(&path).unwrap();
    fs::canonicalize(path).unwrap()
}

/// Fails now, before anything is made, when a program is missing that
/// `enclavectl` needs.
pub(crate) fn require_programs() {
    let enclavectl = Path::new(env!("CARGO_BIN_EXE_enclavectl"));
    for (program, package) in [
        ("enclave-vmm", "enclave-vmm"),
        ("xemem-broker", "xemem-host"),
    ] {
        let path = enclavectl.with_file_name(program);
        let shown = path.display();
        assert!(
            path.is_file(),
            "{shown} is missing; try: cargo build -p {package}"
        );
    }
    let image = kernel_image();
    let shown = image.display();
    assert!(image.is_file(), "{shown} is missing; try: cargo kernel");
}

pub(crate) fn kernel_image() -> PathBuf {
    if let Some(image) = std::env::var_os("ENCLAVE_KERNEL") {
        return image.into();
    }
    let enclavectl = Path::new(env!("CARGO_BIN_EXE_enclavectl"));
    let target = enclavectl.ancestors().nth(2).unwrap();
    target.join("x86_64-unknown-none/kernel/enclave-kernel")
}

/// `enclavectl` for the enclaves of `run_dir`.
pub(crate) fn enclavectl(run_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_enclavectl"));
    command
        .env("ENCLAVE_RUNDIR", run_dir)
        .env("ENCLAVE_KERNEL", kernel_image())
        .env_remove("XEMEM_SOCKET");
    command
}

/// Runs a command to its end, or kills it when it takes too long.
pub(crate) fn finish(command: &mut Command, stdin: &[u8]) -> Ended {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut to, mut out, mut err) = (
        child.stdin.take().unwrap(),
        child.stdout.take().unwrap(),
        child.stderr.take().unwrap(),
    );
    thread::scope(|scope| {
        // A program that does not read its input closes the pipe.
        scope.spawn(move || to.write_all(stdin).ok());
        let stdout = scope.spawn(move || read_all(&mut out));
        let stderr = scope.spawn(move || read_all(&mut err));
        let code = wait(&mut child);
        Ended {
            code,
            stdout: stdout.join().unwrap(),
            stderr: stderr.join().unwrap(),
        }
    })
}

fn read_all(from: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Exit code as a shell tells it.
pub(crate) fn wait(child: &mut Child) -> i32 {
    let pidfd = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty()).unwrap();
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    let timeout = Timespec {
        tv_sec: TIMEOUT_S,
        tv_nsec: 0,
    };
    let ended = rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&timeout)));
    if ended.unwrap() == 0 {
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap())
}

/// Builds `path` of `guests/programs` with `compiler` unless a younger program
/// is there.
pub(crate) fn build(path: &str, name: &str, compiler: &[&str]) -> PathBuf {
    static BUILDING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = lock(&BUILDING);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let source = root.join("guests/programs").join(path);
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("programs");
    fs::create_dir_all(&directory).unwrap();
    let program = directory.join(name);
    let modified = |path: &Path| fs::metadata(path).and_then(|about| about.modified());
    if modified(&program).is_ok_and(|built| built > modified(&source).unwrap()) {
        return program;
    }
    let fresh = directory.join(format!("{name}.{}", std::process::id()));
    let mut command = Command::new(compiler[0]);
    command
        .args(&compiler[1..])
        .arg(&source)
        .arg("-o")
        .arg(&fresh);
    let status = command.status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "{command:?} failed"
    );
    fs::rename(&fresh, &program).unwrap();
    program
}
