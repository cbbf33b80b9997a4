//! Which system calls each kind of thread makes, as data.
//!
//! Used by the filter compiler. A call is on a list because code of this crate
//! (or the C library under it: both GNU and musl) makes it; arguments are
//! restricted where that keeps a class of attacks out. Not on any list, so
//! never possible: running programs, sockets other than Unix ones, tracing,
//! other processes' memory, mounts, namespaces, BPF, io_uring, userfaultfd,
//! executable memory, signals to other processes.

/// What a thread is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Control socket, signals, the machine's set-up and end; may start every
    /// other kind, so it can do what each of them can.
    Main,
    /// Runs the guest, serves its queue and its forwarded calls.
    Vcpu,
    /// Waits for something and passes it on.
    Helper,
    /// Changes what the machine has: memory objects, KVM, the ledger.
    Update,
}

impl Role {
    /// Every role.
    pub(super) const ALL: [Self; 4] = [Self::Main, Self::Vcpu, Self::Helper, Self::Update];
}

/// A condition on one argument: `value == argument & mask`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Only {
    pub(super) argument: u8,
    pub(super) mask: u64,
    pub(super) value: u64,
}

/// A call and the forms of it that are allowed: any of them will do, and within
/// one all conditions have to hold. No forms: the call as such.
pub(super) type Allowed = (i64, Vec<Vec<Only>>);

/// Bits of an `ioctl` request that say whose it is; KVM's are 0xae.
const IOCTL_TYPE: u64 = 0xff00;
const KVM_TYPE: u64 = 0xae00;
/// Terminal and pipe queries; FIOCLEX and FIONBIO are the C library's.
const OTHER_IOCTLS: [u64; 6] = [0x5401, 0x5413, 0x802c_542a, 0x541b, 0x5451, 0x5421];
/// What `fcntl` is used for: flags, duplicates, seals.
const FCNTLS: [u64; 8] = [0, 1, 2, 3, 4, 1030, 1033, 1034];
/// PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME, PR_SET_NO_NEW_PRIVS, its getter,
/// PR_SET_VMA, with which C libraries name their memory, and PR_GET_AUXV, with
/// which libraries learn the page size.
const PRCTLS: [u64; 7] = [3, 15, 16, 38, 39, 0x5356_4d41, 0x4155_5856];
/// A thread, and no namespace.
const THREAD_BITS: u64 = 0x0001_0000 | 0x0000_0100;
const NAMESPACE_BITS: u64 = 0x7e02_0000;
const LOW: u64 = 0xffff_ffff;

/// Everything `role` may call. `pid` is this process.
pub(super) fn allowed(role: Role, pid: u64) -> Vec<Allowed> {
    let mut list = plain(EVERYWHERE);
    list.extend(guarded(pid));
    match role {
        Role::Helper => {}
        Role::Update => {
            list.extend(plain(LEDGER));
            list.extend(plain(MEMORY));
            list.extend(
                guarded_machine()
                    .into_iter()
                    .filter(|(nr, _)| *nr == libc::SYS_ioctl),
            );
        }
        Role::Main | Role::Vcpu => {
            list.extend(plain(LEDGER));
            list.extend(plain(FILES));
            list.extend(plain(MEMORY));
            list.extend(plain(MACHINE));
            list.extend(guarded_machine());
        }
    }
    if role == Role::Main {
        list.extend(plain(CONTROL));
    }
    list
}

fn plain(calls: &[i64]) -> Vec<Allowed> {
    calls.iter().map(|&nr| (nr, Vec::new())).collect()
}

const fn only(argument: u8, value: u64) -> Only {
    Only {
        argument,
        mask: LOW,
        value,
    }
}

fn one_of(argument: u8, values: &[u64]) -> Vec<Vec<Only>> {
    values.iter().map(|&v| vec![only(argument, v)]).collect()
}

const fn without(argument: u8, bits: u64) -> Only {
    Only {
        argument,
        mask: bits,
        value: 0,
    }
}

/// Calls of every thread whose arguments matter.
fn guarded(pid: u64) -> Vec<Allowed> {
    let exec = libc::PROT_EXEC.unsigned_abs().into();
    // Ending itself, and the kick that makes KVM_RUN return.
    let signals = [libc::SIGABRT.unsigned_abs().into(), 32, 33, 34, 35];
    vec![
        (libc::SYS_mmap, vec![vec![without(2, exec)]]),
        (libc::SYS_mprotect, vec![vec![without(2, exec)]]),
        (libc::SYS_tgkill, vec![vec![only(0, pid)]]),
        (libc::SYS_tkill, one_of(1, &signals)),
        (libc::SYS_prctl, one_of(0, &PRCTLS)),
        (libc::SYS_fcntl, one_of(1, &FCNTLS)),
        (
            libc::SYS_clone,
            vec![vec![Only {
                argument: 0,
                mask: THREAD_BITS | NAMESPACE_BITS,
                value: THREAD_BITS,
            }]],
        ),
        // Its flags are in memory, out of a filter's sight: answered with
        // ENOSYS by a filter of its own, so that the C library takes `clone`.
        (libc::SYS_clone3, Vec::new()),
        // SECCOMP_SET_MODE_FILTER without flags: a thread may give up more.
        (libc::SYS_seccomp, vec![vec![only(0, 1), only(1, 0)]]),
        // Reading limits, not setting them.
        (
            libc::SYS_prlimit64,
            vec![vec![Only {
                argument: 2,
                mask: u64::MAX,
                value: 0,
            }]],
        ),
    ]
}

/// Those of the machine's threads.
fn guarded_machine() -> Vec<Allowed> {
    let mut ioctls = vec![vec![Only {
        argument: 1,
        mask: IOCTL_TYPE,
        value: KVM_TYPE,
    }]];
    ioctls.extend(one_of(1, &OTHER_IOCTLS));
    let unix = libc::AF_UNIX.unsigned_abs().into();
    vec![
        (libc::SYS_ioctl, ioctls),
        (libc::SYS_socket, vec![vec![only(0, unix)]]),
    ]
}

/// What a thread of either C library does whatever its work, and what waiting
/// and passing on takes. `openat` is for the note of a crash.
const EVERYWHERE: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_openat,
    libc::SYS_fstat,
    libc::SYS_pread64,
    libc::SYS_futex,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_time,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_membarrier,
    libc::SYS_getrandom,
    libc::SYS_getcpu,
];

/// The run directory's own files, and what the host says of itself.
const LEDGER: &[i64] = &[
    libc::SYS_open,
    libc::SYS_openat2,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_lseek,
    libc::SYS_flock,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_access,
    libc::SYS_dup,
];

/// Forwarded calls and the enclave's own files.
const FILES: &[i64] = &[
    libc::SYS_readv,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    libc::SYS_getcwd,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_utimensat,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_fadvise64,
    libc::SYS_pipe2,
    libc::SYS_dup2,
    libc::SYS_dup3,
];

/// Memory objects.
const MEMORY: &[i64] = &[
    libc::SYS_memfd_create,
    libc::SYS_mbind,
    libc::SYS_get_mempolicy,
];

/// Doorbells, the broker, and a vCPU's place.
const MACHINE: &[i64] = &[
    libc::SYS_eventfd2,
    libc::SYS_connect,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_sched_setaffinity,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_uname,
    libc::SYS_sysinfo,
];

/// The control socket and the process's own end.
const CONTROL: &[i64] = &[
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_chmod,
    libc::SYS_rmdir,
    libc::SYS_rt_sigaction,
    libc::SYS_set_mempolicy,
    libc::SYS_munlock,
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn numbers(role: Role) -> BTreeSet<i64> {
        let list = allowed(role, 1);
        let set: BTreeSet<i64> = list.iter().map(|(nr, _)| *nr).collect();
        assert_eq!(set.len(), list.len(), "a call stands on two lists");
        set
    }

    #[test]
    fn no_role_has_what_its_maker_lacks() {
        let [main, vcpu, helper, update] = Role::ALL.map(numbers);
        assert!(main.is_superset(&vcpu) && main.is_superset(&update));
        assert!(vcpu.is_superset(&helper) && update.is_superset(&helper));
        assert!(helper.len() < vcpu.len() && vcpu.len() < main.len());
    }

    #[test]
    fn nothing_that_leads_out_of_the_process_is_on_a_list() {
        let main = numbers(Role::Main);
        for nr in [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_pidfd_getfd,
            libc::SYS_kill,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_open_by_handle_at,
            libc::SYS_perf_event_open,
            libc::SYS_keyctl,
            libc::SYS_setuid,
            libc::SYS_capset,
            libc::SYS_symlinkat,
            libc::SYS_mknodat,
            libc::SYS_fchown,
            libc::SYS_fchownat,
        ] {
            assert!(!main.contains(&nr), "{nr}");
        }
    }
}
