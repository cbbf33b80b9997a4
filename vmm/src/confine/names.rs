//! Names of system calls, for the reason a process ended.
//!
//! Used by the handler of blocked calls. Those that somebody who took a VMM
//! over would try, and those a new line of code is likely to make; another one
//! is told by its number alone.

/// The name of call `nr`.
pub(super) fn of(nr: i64) -> Option<&'static str> {
    NAMES
        .iter()
        .find(|(known, _)| *known == nr)
        .map(|(_, name)| *name)
}

macro_rules! names {
    ($($constant:ident $name:literal)*) => {
        static NAMES: &[(i64, &str)] = &[$((libc::$constant, $name)),*];
    };
}

names! {
    SYS_execve "execve"
    SYS_execveat "execveat"
    SYS_fork "fork"
    SYS_vfork "vfork"
    SYS_clone "clone"
    SYS_kill "kill"
    SYS_tkill "tkill"
    SYS_tgkill "tgkill"
    SYS_rt_sigqueueinfo "rt_sigqueueinfo"
    SYS_pidfd_open "pidfd_open"
    SYS_pidfd_getfd "pidfd_getfd"
    SYS_pidfd_send_signal "pidfd_send_signal"
    SYS_ptrace "ptrace"
    SYS_process_vm_readv "process_vm_readv"
    SYS_process_vm_writev "process_vm_writev"
    SYS_process_madvise "process_madvise"
    SYS_kcmp "kcmp"
    SYS_mmap "mmap"
    SYS_mprotect "mprotect"
    SYS_pkey_mprotect "pkey_mprotect"
    SYS_remap_file_pages "remap_file_pages"
    SYS_shmat "shmat"
    SYS_shmget "shmget"
    SYS_memfd_create "memfd_create"
    SYS_memfd_secret "memfd_secret"
    SYS_mlock "mlock"
    SYS_mlock2 "mlock2"
    SYS_mincore "mincore"
    SYS_move_pages "move_pages"
    SYS_migrate_pages "migrate_pages"
    SYS_set_mempolicy "set_mempolicy"
    SYS_userfaultfd "userfaultfd"
    SYS_personality "personality"
    SYS_arch_prctl "arch_prctl"
    SYS_modify_ldt "modify_ldt"
    SYS_prctl "prctl"
    SYS_seccomp "seccomp"
    SYS_landlock_create_ruleset "landlock_create_ruleset"
    SYS_capset "capset"
    SYS_setuid "setuid"
    SYS_setgid "setgid"
    SYS_setresuid "setresuid"
    SYS_setresgid "setresgid"
    SYS_setgroups "setgroups"
    SYS_setsid "setsid"
    SYS_setpriority "setpriority"
    SYS_sched_setscheduler "sched_setscheduler"
    SYS_sched_setaffinity "sched_setaffinity"
    SYS_prlimit64 "prlimit64"
    SYS_setrlimit "setrlimit"
    SYS_socket "socket"
    SYS_socketpair "socketpair"
    SYS_bind "bind"
    SYS_listen "listen"
    SYS_accept4 "accept4"
    SYS_connect "connect"
    SYS_sendmsg "sendmsg"
    SYS_recvmsg "recvmsg"
    SYS_sendmmsg "sendmmsg"
    SYS_recvmmsg "recvmmsg"
    SYS_epoll_create1 "epoll_create1"
    SYS_epoll_ctl "epoll_ctl"
    SYS_epoll_wait "epoll_wait"
    SYS_epoll_pwait2 "epoll_pwait2"
    SYS_select "select"
    SYS_pselect6 "pselect6"
    SYS_signalfd4 "signalfd4"
    SYS_timerfd_create "timerfd_create"
    SYS_timer_create "timer_create"
    SYS_eventfd2 "eventfd2"
    SYS_inotify_init1 "inotify_init1"
    SYS_ioctl "ioctl"
    SYS_fcntl "fcntl"
    SYS_open "open"
    SYS_openat "openat"
    SYS_openat2 "openat2"
    SYS_open_by_handle_at "open_by_handle_at"
    SYS_name_to_handle_at "name_to_handle_at"
    SYS_close_range "close_range"
    SYS_copy_file_range "copy_file_range"
    SYS_sendfile "sendfile"
    SYS_splice "splice"
    SYS_vmsplice "vmsplice"
    SYS_tee "tee"
    SYS_fallocate "fallocate"
    SYS_truncate "truncate"
    SYS_sync "sync"
    SYS_syncfs "syncfs"
    SYS_symlink "symlink"
    SYS_symlinkat "symlinkat"
    SYS_link "link"
    SYS_linkat "linkat"
    SYS_mknod "mknod"
    SYS_mknodat "mknodat"
    SYS_chown "chown"
    SYS_fchown "fchown"
    SYS_lchown "lchown"
    SYS_fchownat "fchownat"
    SYS_fchmodat2 "fchmodat2"
    SYS_setxattr "setxattr"
    SYS_getxattr "getxattr"
    SYS_chdir "chdir"
    SYS_fchdir "fchdir"
    SYS_chroot "chroot"
    SYS_pivot_root "pivot_root"
    SYS_mount "mount"
    SYS_umount2 "umount2"
    SYS_unshare "unshare"
    SYS_setns "setns"
    SYS_bpf "bpf"
    SYS_perf_event_open "perf_event_open"
    SYS_io_uring_setup "io_uring_setup"
    SYS_io_setup "io_setup"
    SYS_add_key "add_key"
    SYS_keyctl "keyctl"
    SYS_init_module "init_module"
    SYS_finit_module "finit_module"
    SYS_kexec_load "kexec_load"
    SYS_reboot "reboot"
    SYS_syslog "syslog"
    SYS_quotactl "quotactl"
    SYS_swapon "swapon"
    SYS_acct "acct"
    SYS_iopl "iopl"
    SYS_ioperm "ioperm"
    SYS_clock_settime "clock_settime"
    SYS_settimeofday "settimeofday"
    SYS_wait4 "wait4"
    SYS_waitid "waitid"
    SYS_umask "umask"
    SYS_getrusage "getrusage"
    SYS_times "times"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_by_number_and_stand_once() {
        assert_eq!(of(59), Some("execve"));
        assert_eq!(of(-1), None);
        for (at, (nr, _)) in NAMES.iter().enumerate() {
            assert!(NAMES.iter().skip(at + 1).all(|(other, _)| other != nr));
        }
    }
}
