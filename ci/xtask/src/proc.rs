//! Looks at running processes through /proc.
//!
//! Used by `demo` and `test` to prove that nothing is left, and by the warden
//! to end what is. A process belongs to a run when it was started with that
//! run's directory in its environment.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Variable that tells all of the project's programs their run directory.
pub(crate) const RUN_DIR_VARIABLE: &str = "ENCLAVE_RUNDIR";

/// A memory object as (device, inode).
pub(crate) type Object = (u64, u64);

/// A running process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    /// Process id.
    pub(crate) pid: u32,
    /// Its executable.
    pub(crate) exe: PathBuf,
}

/// All processes that this user may look at.
fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

fn process(pid: u32) -> Option<Process> {
    let exe = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    Some(Process { pid, exe })
}

/// Does a process of this number run? One that only waits to be reaped does not.
#[cfg(test)]
pub(crate) fn is_running(pid: u32) -> bool {
    process(pid).is_some()
}

/// Processes started with `run_dir` as their run directory.
pub(crate) fn of_run(run_dir: &Path) -> Vec<Process> {
    let mut wanted = format!("{RUN_DIR_VARIABLE}=").into_bytes();
    wanted.extend_from_slice(run_dir.as_os_str().as_bytes());
    let belongs = |pid: &u32| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ
            .split(|&byte| byte == 0)
            .any(|entry| entry == wanted)
    };
    pids()
        .into_iter()
        .filter(belongs)
        .filter_map(process)
        .collect()
}

/// Processes whose executable lies in `folder`.
pub(crate) fn from_folder(folder: &Path) -> BTreeSet<Process> {
    pids()
        .into_iter()
        .filter_map(process)
        .filter(|process| process.exe.starts_with(folder))
        .collect()
}

/// Anonymous memory objects a process holds open or mapped.
fn objects_of(pid: u32) -> BTreeSet<Object> {
    let mut objects = BTreeSet::new();
    let fds = fs::read_dir(format!("/proc/{pid}/fd"));
    for entry in fds.into_iter().flatten().flatten() {
        let path = entry.path();
        let is_memory = fs::read_link(&path)
            .is_ok_and(|target| target.as_os_str().as_bytes().starts_with(b"/memfd:"));
        if is_memory && let Ok(meta) = fs::metadata(&path) {
            objects.insert((meta.dev(), meta.ino()));
        }
    }
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    objects.extend(maps.lines().filter_map(mapped_object));
    objects
}

/// The memory object of one line of /proc/PID/maps.
fn mapped_object(line: &str) -> Option<Object> {
    let mut fields = line.split_ascii_whitespace().skip(3);
    let (major, minor) = fields.next()?.split_once(':')?;
    let inode = fields.next()?.parse().ok()?;
    if !fields.next()?.starts_with("/memfd:") {
        return None;
    }
    let major = u64::from_str_radix(major, 16).ok()?;
    let minor = u64::from_str_radix(minor, 16).ok()?;
    // The kernel's own packing of a device number (makedev(3)).
    let device = (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
    Some((device, inode))
}

/// Memory objects of all `processes`.
pub(crate) fn objects(processes: &[Process]) -> BTreeSet<Object> {
    processes
        .iter()
        .flat_map(|process| objects_of(process.pid))
        .collect()
}

/// Processes, of anybody, that still hold one of `objects`.
pub(crate) fn holders(objects: &BTreeSet<Object>) -> Vec<Process> {
    pids()
        .into_iter()
        .filter(|&pid| !objects_of(pid).is_disjoint(objects))
        .filter_map(process)
        .collect()
}

/// Regular files below `folder` that somebody holds a lock (flock) on.
pub(crate) fn locked_files(folder: &Path) -> Vec<PathBuf> {
    let is_locked = |path: &PathBuf| {
        path.is_file()
            && File::open(path)
                .is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
    };
    files_below(folder).into_iter().filter(is_locked).collect()
}

/// Everything below `folder` that is no directory.
pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => waiting.push(entry.path()),
                _ => files.push(entry.path()),
            }
        }
    }
    files.sort();
    files
}

/// The name of a process's program, for messages.
pub(crate) fn name(process: &Process) -> String {
    let name = process.exe.file_name().unwrap_or(OsStr::new("?"));
    format!("{} (pid {})", name.to_string_lossy(), process.pid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    #[test]
    fn a_mapping_of_a_memory_object_is_recognised() {
        let line = "7f00-7f10 rw-s 00000000 00:01 4711    /memfd:arena (deleted)";
        assert_eq!(mapped_object(line), Some((1, 4711)));
        let file = "7f00-7f10 r--p 00000000 08:01 4711    /usr/lib/libc.so.6";
        assert_eq!(mapped_object(file), None);
        assert_eq!(mapped_object("7f00-7f10 rw-p 00000000 00:00 0"), None);
    }

    #[test]
    fn a_child_is_found_by_its_run_directory_until_it_is_gone() {
        let run_dir = std::env::temp_dir().join(format!("xtask-proc-{}", std::process::id()));
        let mut child = Command::new("cat")
            .env(RUN_DIR_VARIABLE, &run_dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Until it has exec'ed, the child shows this process's environment.
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut found = of_run(&run_dir);
        while found.is_empty() && Instant::now() < deadline {
            std::thread::yield_now();
            found = of_run(&run_dir);
        }
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(
            found.iter().map(|p| p.pid).collect::<Vec<_>>(),
            [child.id()]
        );
        assert_eq!(of_run(&run_dir), []);
    }
}
