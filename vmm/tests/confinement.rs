//! What a confined VMM can no longer do, tried from inside one: each test
//! splits off a process that confines itself as `enclave-vmm` does and then
//! misbehaves.
//!
//! Guests cannot reach any of this: the calls are made by the test's own code.

// UNSAFETY: fork, and system calls that exist to be refused.
#![expect(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::ffi::CStr;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use enclave_vmm::confine::{self, BLOCKED_EXIT, Confinement, Needs, Role};
use enclave_vmm::forward::{self, Exports, Session};
use enclave_vmm::machine::Export;

/// A run directory, two exports and a place that is none of these.
struct Stage {
    root: PathBuf,
    exports: Vec<Export>,
}

impl Stage {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let nr = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("enclave-confine-{}-{nr}", std::process::id());
        let root = std::env::temp_dir().join(name);
        for dir in ["run", "data", "fixed", "private"] {
            fs::create_dir_all(root.join(dir)).unwrap();
            fs::write(root.join(dir).join("file"), "before").unwrap();
        }
        let export = |name: &str, writable| Export {
            host: root.join(name),
            guest: format!("/{name}"),
            writable,
        };
        let exports = vec![export("data", true), export("fixed", false)];
        Self { root, exports }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Runs `body` in a confined process; its exit code and its crash note.
    fn confined(&self, body: impl FnOnce() -> i32) -> (i32, String) {
        let run_dir = self.path("run");
        let notes = fs::File::open(&run_dir).unwrap();
        let kernel = self.path("kernel");
        // SAFETY: the child is a copy of this thread alone. It calls nothing
        // that another thread's lock could hold up but the allocator, whose
        // locks the C library hands over, and it ends by `_exit`.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            let entered = confine::enter(&Needs {
                run_dir: &run_dir,
                kernel: &kernel,
                exports: &self.exports,
                notes: notes.as_raw_fd(),
            });
            let code = match entered {
                Ok(()) => body(),
                Err(_) => 99,
            };
            // SAFETY: ends the child without running what belongs to its
            // parent.
            unsafe { libc::_exit(code) };
        }
        let mut status = 0;
        // SAFETY: `child` is a child of ours, `status` a place for its status.
        let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!(waited, child);
        assert!(libc::WIFEXITED(status), "status {status:#x}");
        let note = fs::read_to_string(run_dir.join("crash")).unwrap_or_default();
        let _ = fs::remove_file(run_dir.join("crash"));
        (libc::WEXITSTATUS(status), note)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.root));
    }
}

fn system_call(nr: i64, args: [i64; 6]) -> i64 {
    let [a, b, c, d, e, f] = args;
    // SAFETY: the arguments are numbers or addresses that outlive the call.
    unsafe { libc::syscall(nr, a, b, c, d, e, f) }
}

fn address(text: &CStr) -> i64 {
    text.as_ptr() as i64
}

#[test]
fn a_forbidden_call_ends_the_process_and_is_named() {
    let stage = Stage::new();
    let shell = address(c"/bin/sh");
    let (pid, inet) = (i64::from(std::process::id()), i64::from(libc::AF_INET));
    let exec = i64::from(libc::PROT_READ | libc::PROT_EXEC);
    let private = i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let tries: &[(i64, [i64; 6], &str)] = &[
        (libc::SYS_execve, [shell, 0, 0, 0, 0, 0], "execve"),
        (libc::SYS_fork, [0; 6], "fork"),
        (libc::SYS_clone, [17, 0, 0, 0, 0, 0], "clone"),
        (libc::SYS_socket, [inet, 1, 0, 0, 0, 0], "socket"),
        (libc::SYS_ptrace, [16, pid, 0, 0, 0, 0], "ptrace"),
        (
            libc::SYS_process_vm_readv,
            [pid, 0, 0, 0, 0, 0],
            "process_vm_readv",
        ),
        (libc::SYS_kill, [pid, 0, 0, 0, 0, 0], "kill"),
        (libc::SYS_tgkill, [pid, pid, 0, 0, 0, 0], "tgkill"),
        (libc::SYS_mmap, [0, 4096, exec, private, -1, 0], "mmap"),
        (libc::SYS_mprotect, [0, 4096, exec, 0, 0, 0], "mprotect"),
        (libc::SYS_bpf, [0; 6], "bpf"),
        (
            libc::SYS_io_uring_setup,
            [8, 0, 0, 0, 0, 0],
            "io_uring_setup",
        ),
        (libc::SYS_userfaultfd, [0; 6], "userfaultfd"),
        (libc::SYS_unshare, [0x1000_0000, 0, 0, 0, 0, 0], "unshare"),
        (libc::SYS_mount, [0; 6], "mount"),
        (libc::SYS_open_by_handle_at, [0; 6], "open_by_handle_at"),
        // TIOCSTI: typing into the caller's terminal.
        (libc::SYS_ioctl, [0, 0x5412, shell, 0, 0, 0], "ioctl"),
        // F_SETOWN: having a signal sent to somebody else.
        (libc::SYS_fcntl, [0, 8, 1, 0, 0, 0], "fcntl"),
        (libc::SYS_prctl, [4, 1, 0, 0, 0, 0], "prctl"),
        (libc::SYS_seccomp, [1, 8, 0, 0, 0, 0], "seccomp"),
        (libc::SYS_prlimit64, [0, 2, shell, 0, 0, 0], "prlimit64"),
        (libc::SYS_setuid, [0; 6], "setuid"),
        (libc::SYS_mknodat, [0; 6], "mknodat"),
        (libc::SYS_symlinkat, [0; 6], "symlinkat"),
    ];
    for &(nr, args, name) in tries {
        let (code, note) = stage.confined(|| {
            system_call(nr, args);
            0
        });
        assert_eq!(code, BLOCKED_EXIT, "{name}");
        let wanted = format!("blocked system call {nr} ({name}) on thread ");
        assert!(note.starts_with(&wanted), "{name}: {note}");
    }
}

#[test]
fn a_new_form_of_clone_is_answered_as_unknown() {
    let stage = Stage::new();
    let (code, _) = stage.confined(|| {
        system_call(libc::SYS_clone3, [0; 6]);
        std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
    });
    assert_eq!(code, libc::ENOSYS);
}

#[test]
fn each_thread_can_do_less_than_the_one_that_made_it() {
    let stage = Stage::new();
    let tries: [(Role, &str, i64, Option<&str>); 5] = [
        (Role::Main, "main2", libc::SYS_epoll_create1, None),
        (Role::Vcpu, "vcpu7", libc::SYS_eventfd2, None),
        (
            Role::Vcpu,
            "vcpu7",
            libc::SYS_epoll_create1,
            Some("epoll_create1"),
        ),
        (Role::Helper, "watch", libc::SYS_sched_yield, None),
        (Role::Helper, "watch", libc::SYS_eventfd2, Some("eventfd2")),
    ];
    for (role, thread, nr, blocked) in tries {
        let (code, note) = stage.confined(|| {
            let tried = confine::spawn(role, thread, move || system_call(nr, [0; 6]) >= 0);
            i32::from(!tried.unwrap().join().unwrap())
        });
        match blocked {
            None => assert_eq!((code, note.as_str()), (0, "")),
            Some(name) => {
                assert_eq!(code, BLOCKED_EXIT);
                let wanted = format!("blocked system call {nr} ({name}) on thread {thread}\n");
                assert_eq!(note, wanted);
            }
        }
    }
}

#[test]
fn a_helper_started_by_a_vcpu_runs() {
    let stage = Stage::new();
    let (code, note) = stage.confined(|| {
        let vcpu = confine::spawn(Role::Vcpu, "vcpu0", || {
            confine::spawn(Role::Helper, "broker-watch", || 7)
                .unwrap()
                .join()
                .unwrap()
        });
        vcpu.unwrap().join().unwrap()
    });
    assert_eq!((code, note.as_str()), (7, ""));
}

#[test]
fn files_outside_the_exports_are_out_of_reach() {
    if confine::landlock_of_host() == 0 {
        // `inspect` and `doctor` say that nothing holds here.
        let stage = Stage::new();
        let (version, _) =
            stage.confined(|| i32::try_from(Confinement::of_self().landlock).unwrap());
        assert_eq!(version, 0);
        return;
    }
    let stage = Stage::new();
    let file = |dir: &str| stage.path(dir).join("file");
    let refused = |result: std::io::Result<()>| {
        result.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
    };
    let read = |path: &Path| fs::read(path).map(drop);
    let write = |path: &Path| fs::write(path, "after");
    let (private, fixed, data) = (file("private"), file("fixed"), file("data"));
    let made = stage.path("data").join("made");
    let (code, note) = stage.confined(|| {
        let checks = [
            refused(read(&private)),
            refused(write(&private)),
            refused(read(Path::new("/etc/passwd"))),
            refused(fs::read_dir("/").map(drop)),
            refused(write(Path::new("/proc/self/comm"))),
            read(&fixed).is_ok(),
            refused(write(&fixed)),
            read(&data).is_ok(),
            write(&data).is_ok(),
            write(&made).is_ok(),
            // To another directory: out of the only place where it may be.
            fs::rename(&made, &private).is_err(),
            fs::read_to_string("/proc/self/status").is_ok(),
        ];
        let failed = checks.iter().position(|held| !held);
        failed.map_or(0, |at| 10 + i32::try_from(at).unwrap())
    });
    assert_eq!((code, note.as_str()), (0, ""));
    assert_eq!(fs::read_to_string(private).unwrap(), "before");
    assert_eq!(fs::read_to_string(fixed).unwrap(), "before");
    assert_eq!(fs::read_to_string(data).unwrap(), "after");
}

#[test]
fn everything_that_holds_is_read_back() {
    let stage = Stage::new();
    let (code, note) = stage.confined(|| {
        // As `main` has done before.
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        let dumpable = Confinement::of_self().dumpable;
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
        i32::from(dumpable)
    });
    // The dumpable flag cannot be set any more, in either direction.
    assert_eq!(code, BLOCKED_EXIT);
    assert!(note.contains("(prctl)"), "{note}");
    let (code, _) = stage.confined(|| {
        let seen = Confinement::of_self();
        let gaps = seen.gaps();
        let only_dumpable = gaps.len() == 1 && gaps[0].contains("dumped");
        let threads = seen.threads.len() == 1 && seen.threads[0].filters == 2;
        let limits = seen.limits.core_bytes == Some(0) && seen.limits.data_bytes.is_some();
        i32::from(!(only_dumpable && threads && limits))
    });
    assert_eq!(code, 0);
}

#[test]
fn memory_of_its_own_is_bounded_and_shared_memory_is_not() {
    let stage = Stage::new();
    let map = |flags: i32| {
        let bytes = 1i64 << 30;
        let rights = i64::from(libc::PROT_READ | libc::PROT_WRITE);
        let flags = i64::from(flags | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
        system_call(libc::SYS_mmap, [0, bytes, rights, flags, -1, 0])
    };
    let (code, _) = stage.confined(|| {
        let private = map(libc::MAP_PRIVATE);
        let shared = map(libc::MAP_SHARED);
        i32::from(private != -1) + 2 * i32::from(shared == -1)
    });
    assert_eq!(code, 0);
}

/// Every forwarded call with descriptors and with paths, good and bad: what
/// each does is tested elsewhere, here only that no filter ends it.
#[test]
fn every_forwarded_call_passes_the_filter_of_a_vcpu() {
    let stage = Stage::new();
    let exports = stage.exports.clone();
    let (code, note) = stage.confined(|| {
        let body = move || forward_everything(&exports);
        let vcpu = confine::spawn(Role::Vcpu, "vcpu0", body);
        vcpu.unwrap().join().unwrap()
    });
    assert_eq!((code, note.as_str()), (0, ""));
}

/// 0 when the calls did what they are expected to do in sum.
fn forward_everything(list: &[Export]) -> i32 {
    let null = || OwnedFd::from(fs::File::open("/dev/null").unwrap());
    let exports = Exports::open(list).unwrap();
    let mut session = Session::new(&exports, "/data", [null(), null(), null()], None);
    // Readable from the start: nothing waits.
    let cancel = rustix::event::eventfd(1, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let mut input = vec![0; 8192];
    let mut served = 0;
    for nr in (0..1000).filter(|&nr| forward::name(nr).is_some()) {
        // In an order that leaves the descriptors used below open.
        for (first, second) in [
            ("/data/file", "/data/other"),
            ("/data/dir", "/data/dir2"),
            ("/dev/zero", "/fixed/file"),
            ("file", ""),
        ] {
            input.fill(0);
            input[..first.len()].copy_from_slice(first.as_bytes());
            input[4096..4096 + second.len()].copy_from_slice(second.as_bytes());
            let at = libc::AT_FDCWD.cast_unsigned().into();
            let create = (libc::O_RDWR | libc::O_CREAT).unsigned_abs().into();
            for args in [
                [0, create, 0o644, 0, 0],
                [at, 0, create, 0o644, 0],
                [at, 0, at, 4096, 0],
                [0, 4096, 0, 0, 0],
                [3, 0, 16, 0, 0],
                [4, 16, 0, 0, 0],
                [1, 3, 0, 0, 0],
            ] {
                let reply = session.call(nr, args, &input, cancel.as_fd());
                served += i32::from(reply.result >= 0);
            }
        }
    }
    i32::from(served < 200)
}
