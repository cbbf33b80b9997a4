//! Names of system calls, for the line that reports a call nobody serves.
//!
//! Called by the kernel's system-call dispatcher, once per unknown number.
//! Knows all of Linux x86-64 up to 462 and the numbers of
//! [`enclave_abi::syscall`]. Says nothing about which of them are served.

use enclave_abi::syscall;

/// First number of [`SECOND`]: Linux left 335 to 423 unused on x86-64, to give
/// later calls the same number on every architecture.
const SECOND_FIRST: u64 = 424;

#[rustfmt::skip]
static FIRST: [&str; 335] = [
    "read", "write", "open", "close", "stat", "fstat", "lstat", "poll", "lseek", "mmap",
    "mprotect", "munmap", "brk", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "ioctl",
    "pread64", "pwrite64", "readv", "writev", "access", "pipe", "select", "sched_yield",
    "mremap", "msync", "mincore", "madvise", "shmget", "shmat", "shmctl", "dup", "dup2",
    "pause", "nanosleep", "getitimer", "alarm", "setitimer", "getpid", "sendfile", "socket",
    "connect", "accept", "sendto", "recvfrom", "sendmsg", "recvmsg", "shutdown", "bind",
    "listen", "getsockname", "getpeername", "socketpair", "setsockopt", "getsockopt", "clone",
    "fork", "vfork", "execve", "exit", "wait4", "kill", "uname", "semget", "semop", "semctl",
    "shmdt", "msgget", "msgsnd", "msgrcv", "msgctl", "fcntl", "flock", "fsync", "fdatasync",
    "truncate", "ftruncate", "getdents", "getcwd", "chdir", "fchdir", "rename", "mkdir",
    "rmdir", "creat", "link", "unlink", "symlink", "readlink", "chmod", "fchmod", "chown",
    "fchown", "lchown", "umask", "gettimeofday", "getrlimit", "getrusage", "sysinfo", "times",
    "ptrace", "getuid", "syslog", "getgid", "setuid", "setgid", "geteuid", "getegid", "setpgid",
    "getppid", "getpgrp", "setsid", "setreuid", "setregid", "getgroups", "setgroups",
    "setresuid", "getresuid", "setresgid", "getresgid", "getpgid", "setfsuid", "setfsgid",
    "getsid", "capget", "capset", "rt_sigpending", "rt_sigtimedwait", "rt_sigqueueinfo",
    "rt_sigsuspend", "sigaltstack", "utime", "mknod", "uselib", "personality", "ustat",
    "statfs", "fstatfs", "sysfs", "getpriority", "setpriority", "sched_setparam",
    "sched_getparam", "sched_setscheduler", "sched_getscheduler", "sched_get_priority_max",
    "sched_get_priority_min", "sched_rr_get_interval", "mlock", "munlock", "mlockall",
    "munlockall", "vhangup", "modify_ldt", "pivot_root", "_sysctl", "prctl", "arch_prctl",
    "adjtimex", "setrlimit", "chroot", "sync", "acct", "settimeofday", "mount", "umount2",
    "swapon", "swapoff", "reboot", "sethostname", "setdomainname", "iopl", "ioperm",
    "create_module", "init_module", "delete_module", "get_kernel_syms", "query_module",
    "quotactl", "nfsservctl", "getpmsg", "putpmsg", "afs_syscall", "tuxcall", "security",
    "gettid", "readahead", "setxattr", "lsetxattr", "fsetxattr", "getxattr", "lgetxattr",
    "fgetxattr", "listxattr", "llistxattr", "flistxattr", "removexattr", "lremovexattr",
    "fremovexattr", "tkill", "time", "futex", "sched_setaffinity", "sched_getaffinity",
    "set_thread_area", "io_setup", "io_destroy", "io_getevents", "io_submit", "io_cancel",
    "get_thread_area", "lookup_dcookie", "epoll_create", "epoll_ctl_old", "epoll_wait_old",
    "remap_file_pages", "getdents64", "set_tid_address", "restart_syscall", "semtimedop",
    "fadvise64", "timer_create", "timer_settime", "timer_gettime", "timer_getoverrun",
    "timer_delete", "clock_settime", "clock_gettime", "clock_getres", "clock_nanosleep",
    "exit_group", "epoll_wait", "epoll_ctl", "tgkill", "utimes", "vserver", "mbind",
    "set_mempolicy", "get_mempolicy", "mq_open", "mq_unlink", "mq_timedsend", "mq_timedreceive",
    "mq_notify", "mq_getsetattr", "kexec_load", "waitid", "add_key", "request_key", "keyctl",
    "ioprio_set", "ioprio_get", "inotify_init", "inotify_add_watch", "inotify_rm_watch",
    "migrate_pages", "openat", "mkdirat", "mknodat", "fchownat", "futimesat", "newfstatat",
    "unlinkat", "renameat", "linkat", "symlinkat", "readlinkat", "fchmodat", "faccessat",
    "pselect6", "ppoll", "unshare", "set_robust_list", "get_robust_list", "splice", "tee",
    "sync_file_range", "vmsplice", "move_pages", "utimensat", "epoll_pwait", "signalfd",
    "timerfd_create", "eventfd", "fallocate", "timerfd_settime", "timerfd_gettime", "accept4",
    "signalfd4", "eventfd2", "epoll_create1", "dup3", "pipe2", "inotify_init1", "preadv",
    "pwritev", "rt_tgsigqueueinfo", "perf_event_open", "recvmmsg", "fanotify_init",
    "fanotify_mark", "prlimit64", "name_to_handle_at", "open_by_handle_at", "clock_adjtime",
    "syncfs", "sendmmsg", "setns", "getcpu", "process_vm_readv", "process_vm_writev", "kcmp",
    "finit_module", "sched_setattr", "sched_getattr", "renameat2", "seccomp", "getrandom",
    "memfd_create", "kexec_file_load", "bpf", "execveat", "userfaultfd", "membarrier", "mlock2",
    "copy_file_range", "preadv2", "pwritev2", "pkey_mprotect", "pkey_alloc", "pkey_free",
    "statx", "io_pgetevents", "rseq",
];

#[rustfmt::skip]
static SECOND: [&str; 39] = [
    "pidfd_send_signal", "io_uring_setup", "io_uring_enter", "io_uring_register", "open_tree",
    "move_mount", "fsopen", "fsconfig", "fsmount", "fspick", "pidfd_open", "clone3",
    "close_range", "openat2", "pidfd_getfd", "faccessat2", "process_madvise", "epoll_pwait2",
    "mount_setattr", "quotactl_fd", "landlock_create_ruleset", "landlock_add_rule",
    "landlock_restrict_self", "memfd_secret", "process_mrelease", "futex_waitv",
    "set_mempolicy_home_node", "cachestat", "fchmodat2", "map_shadow_stack", "futex_wake",
    "futex_wait", "futex_requeue", "statmount", "listmount", "lsm_get_self_attr",
    "lsm_set_self_attr", "lsm_list_modules", "mseal",
];

/// The name of system call `nr`, or `None` when nobody defines that number.
#[must_use]
pub fn syscall_name(nr: u64) -> Option<&'static str> {
    let own = match nr {
        syscall::XASM_VERSION => "xasm_version",
        syscall::ARENA_CREATE => "arena_create",
        syscall::ARENA_VAR => "arena_var",
        syscall::ARENA_PUBLISH => "arena_publish",
        syscall::ARENA_DESTROY => "arena_destroy",
        syscall::ARENA_STATS => "arena_stats",
        syscall::XEMEM_MAKE => "xemem_make",
        syscall::KERNEL_STATS => "kernel_stats",
        syscall::ARENA_FIND => "arena_find",
        syscall::HOST_COUNTERS => "host_counters",
        syscall::HOST_INTERRUPT => "host_interrupt",
        syscall::ARENA_WAIT_READERS => "arena_wait_readers",
        syscall::ARENA_PUBLISH_SET => "arena_publish_set",
        syscall::ARENA_PREFER => "arena_prefer",
        syscall::ARENA_COPIED => "arena_copied",
        syscall::XEMEM_LOOKUP => "xemem_lookup",
        syscall::XEMEM_GET => "xemem_get",
        syscall::XEMEM_ATTACH => "xemem_attach",
        syscall::XEMEM_NEXT => "xemem_next",
        syscall::XEMEM_DETACH => "xemem_detach",
        syscall::XEMEM_RELEASE => "xemem_release",
        syscall::XEMEM_VALID => "xemem_valid",
        syscall::XEMEM_VARIABLE => "xemem_variable",
        _ => return linux_name(nr),
    };
    Some(own)
}

fn linux_name(nr: u64) -> Option<&'static str> {
    let (table, first) = if nr < SECOND_FIRST {
        (FIRST.as_slice(), 0)
    } else {
        (SECOND.as_slice(), SECOND_FIRST)
    };
    let index = usize::try_from(nr - first).ok()?;
    table.get(index).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Numbers as in arch/x86/entry/syscalls/syscall_64.tbl; one entry lost or
    // doubled in a table would shift every anchor behind it.
    #[test]
    fn anchors_along_the_tables_have_their_linux_numbers() {
        let anchors = [
            (0, "read"),
            (9, "mmap"),
            (56, "clone"),
            (100, "times"),
            (158, "arch_prctl"),
            (202, "futex"),
            (231, "exit_group"),
            (257, "openat"),
            (302, "prlimit64"),
            (334, "rseq"),
            (424, "pidfd_send_signal"),
            (435, "clone3"),
            (449, "futex_waitv"),
            (462, "mseal"),
        ];
        for (nr, name) in anchors {
            assert_eq!(syscall_name(nr), Some(name));
        }
    }

    #[test]
    fn our_own_calls_have_names() {
        assert_eq!(syscall_name(syscall::BASE), Some("xasm_version"));
        assert_eq!(syscall_name(syscall::HOST_COUNTERS), Some("host_counters"));
    }

    #[test]
    fn numbers_nobody_defines_have_no_name() {
        for nr in [335, 423, 463, 1023, syscall::XEMEM_VARIABLE + 1, u64::MAX] {
            assert_eq!(syscall_name(nr), None, "{nr}");
        }
    }

    #[test]
    fn no_name_stands_twice() {
        let mut names: alloc::vec::Vec<_> = (0..=2048).filter_map(syscall_name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
