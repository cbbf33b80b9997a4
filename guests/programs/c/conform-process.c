/*
 * Calls about memory, identity, time, limits and signals, right and wrong: what
 * they answer and with which errno. Numbers that differ between machines, or
 * that a program has from whoever started it, are not printed, only whether
 * they are possible.
 */
#include "conform.h"

#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/time.h>
#include <sys/times.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>

#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)
#define PAGE 4096L

static void mapping(void) {
    char *at = (char *)syscall(SYS_mmap, NULL, 8 * PAGE, RW, ANON, -1, 0L);
    HOLDS(at != MAP_FAILED);
    CALL(mmap, NULL, 0L, RW, ANON, -1, 0L);
    CALL(mmap, NULL, PAGE, RW, MAP_ANONYMOUS, -1, 0L);
    CALL(mmap, NULL, PAGE, RW, MAP_PRIVATE, -1, 0L);
    CALL(mmap, NULL, PAGE, RW, MAP_PRIVATE, 1000, 0L);
    CALL(mmap, NULL, PAGE, RW, ANON, -1, 1L);
    CALL(mmap, NULL, 1L << 62, RW, ANON, -1, 0L);
    CALL(mmap, NULL, -1L, RW, ANON, -1, 0L);
    CALL(mmap, at + 1, PAGE, RW, ANON | MAP_FIXED, -1, 0L);
    CALL(mmap, BEYOND, PAGE, RW, ANON | MAP_FIXED, -1, 0L);
    CALL(mmap, at, PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0L);
    HOLDS((char *)syscall(SYS_mmap, at, PAGE, RW, ANON | MAP_FIXED, -1, 0L) == at);
    HOLDS((char *)syscall(SYS_mmap, at + 1, 1L, RW, ANON, -1, 0L) != MAP_FAILED);
    CALL(mprotect, at + 1, PAGE, PROT_READ);
    CALL(mprotect, at, 0L, PROT_READ);
    CALL(mprotect, at, PAGE, 0x1000);
    CALL(mprotect, BEYOND, PAGE, PROT_READ);
    CALL(mprotect, at + PAGE, PAGE, PROT_READ);
    CALL(read, 0, at + PAGE, 0L);
    CALL(munmap, at + 1, PAGE);
    CALL(munmap, at, 0L);
    CALL(munmap, BEYOND, PAGE);
    CALL(munmap, at + 2 * PAGE, PAGE);
    CALL(munmap, at + 2 * PAGE, PAGE);
    CALL(mprotect, at, 8 * PAGE, RW);
    CALL(mprotect, at + 2 * PAGE, PAGE, RW);
    at[3 * PAGE] = 7;
    CALL(madvise, at + 3 * PAGE, PAGE, MADV_DONTNEED);
    HOLDS(at[3 * PAGE] == 0);
    CALL(madvise, at + 1, PAGE, MADV_DONTNEED);
    CALL(madvise, at + 3 * PAGE, PAGE, 9999);
    CALL(madvise, at + 2 * PAGE, PAGE, MADV_DONTNEED);
    CALL(madvise, at + 3 * PAGE, 0L, MADV_DONTNEED);
    CALL(madvise, at + 3 * PAGE, PAGE, MADV_WILLNEED);
    CALL(msync, at + 3 * PAGE, PAGE, MS_SYNC);
    CALL(msync, at + 1, PAGE, MS_SYNC);
    CALL(msync, at + 3 * PAGE, PAGE, 99);
    CALL(msync, at + 2 * PAGE, PAGE, MS_SYNC);
    CALL(mlock, at + 3 * PAGE, PAGE);
    CALL(munlock, at + 3 * PAGE, PAGE);
    CALL(mlock, at + 2 * PAGE, PAGE);
    at[4 * PAGE] = 9;
    CALL(mremap, at + 4 * PAGE, 0L, PAGE, 0);
    CALL(mremap, at + 1, PAGE, PAGE, 0);
    CALL(mremap, at + 4 * PAGE, PAGE, 0L, 0);
    CALL(mremap, at + 4 * PAGE, PAGE, 4 * PAGE, 0);
    CALL(mremap, at + 2 * PAGE, PAGE, 4 * PAGE, MREMAP_MAYMOVE);
    CALL(mremap, at + 4 * PAGE, PAGE, PAGE, 0x80);
    char *moved = (char *)syscall(SYS_mremap, at + 4 * PAGE, PAGE, 16 * PAGE, MREMAP_MAYMOVE);
    HOLDS(moved != MAP_FAILED && moved[0] == 9 && moved[15 * PAGE] == 0);
    CALL(mprotect, at + 4 * PAGE, PAGE, PROT_READ);
    HOLDS((char *)syscall(SYS_mremap, moved, 16 * PAGE, PAGE, 0) == moved && moved[0] == 9);
    CALL(munmap, moved, 16 * PAGE);
    unsigned char in_core[8];
    CALL(mincore, at + 1, PAGE, in_core);
    CALL(mincore, at + 3 * PAGE, PAGE, BEYOND);
    long now = syscall(SYS_brk, 0L);
    HOLDS(syscall(SYS_brk, now + 3 * PAGE) == now + 3 * PAGE);
    HOLDS(*(char *)(now + 2 * PAGE) == 0);
    HOLDS(syscall(SYS_brk, now) == now);
    HOLDS(syscall(SYS_brk, 1L) == now);
    HOLDS(syscall(SYS_brk, 1L << 62) == now);
}

static void identity(void) {
    struct utsname names;
    struct sysinfo info;
    gid_t groups[4];
    char name[16];
    long pid = syscall(SYS_getpid);
    HOLDS(pid > 1 && syscall(SYS_gettid) == pid);
    HOLDS(syscall(SYS_getppid) > 0 && syscall(SYS_getppid) != pid);
    HOLDS(syscall(SYS_getuid) == syscall(SYS_geteuid));
    HOLDS(syscall(SYS_getgid) == syscall(SYS_getegid));
    CALL(setuid, getuid());
    CALL(setgid, getgid());
    CALL(getgroups, -1, groups);
    uid_t ids[3] = {9, 9, 9};
    CALL(getresuid, ids, ids + 1, ids + 2);
    HOLDS(ids[0] == getuid() && ids[2] == getuid());
    CALL(getresgid, ids, ids + 1, BEYOND);
    CALL(getpgid, 99999999);
    HOLDS(syscall(SYS_getpgid, 0) == getpgrp());
    CALL(getsid, 99999999);
    HOLDS(syscall(SYS_getsid, 0) == syscall(SYS_getsid, pid));
    CALL(uname, &names);
    HOLDS(strcmp(names.sysname, "Linux") == 0 && strcmp(names.machine, "x86_64") == 0);
    CALL(uname, NULL);
    CALL(sysinfo, &info);
    HOLDS(info.totalram > 0 && info.freeram <= info.totalram && info.mem_unit > 0);
    HOLDS(info.procs > 0 && info.uptime > 0);
    CALL(sysinfo, BEYOND);
    CALL(prctl, PR_SET_NAME, "conforming-program", 0, 0, 0);
    CALL(prctl, PR_GET_NAME, name, 0, 0, 0);
    HOLDS(strcmp(name, "conforming-prog") == 0);
    CALL(prctl, PR_SET_NAME, BEYOND, 0, 0, 0);
    CALL(prctl, 424242, 0, 0, 0, 0);
    CALL(wait4, -1, NULL, 0, NULL);
    CALL(waitid, P_ALL, 0, NULL, WEXITED, NULL);
    HOLDS(syscall(SYS_personality, 0xffffffffUL) != -1);
    unsigned cpu = 9999, node = 9999;
    CALL(getcpu, &cpu, &node, NULL);
    HOLDS(cpu < 4096 && node < 64);
    CALL(getcpu, BEYOND, NULL, NULL);
}

static void scheduling(void) {
    unsigned long mask[128] = {0};
    struct sched_param param = {77};
    HOLDS(syscall(SYS_sched_getaffinity, 0, sizeof mask, mask) > 0 && mask[0] != 0);
    CALL(sched_getaffinity, 0, 1L, mask);
    CALL(sched_getaffinity, 0, 0L, mask);
    CALL(sched_getaffinity, 99999999, sizeof mask, mask);
    CALL(sched_getaffinity, 0, sizeof mask, BEYOND);
    CALL(sched_setaffinity, 0, sizeof mask, mask);
    memset(mask, 0, sizeof mask);
    CALL(sched_setaffinity, 0, sizeof mask, mask);
    CALL(sched_setaffinity, 99999999, sizeof mask, mask);
    CALL0(sched_yield);
    HOLDS(syscall(SYS_sched_getscheduler, 0) >= 0);
    CALL(sched_getscheduler, -1);
    CALL(sched_getparam, 0, &param);
    HOLDS(param.sched_priority == 0);
    CALL(sched_get_priority_max, SCHED_FIFO);
    CALL(sched_get_priority_min, SCHED_FIFO);
    CALL(sched_get_priority_max, 77);
    DONE(getpriority, PRIO_PROCESS, 0);
    CALL(getpriority, 77, 0);
}

static void limits(void) {
    struct rlimit limit;
    struct rusage usage;
    CALL(getrlimit, RLIMIT_STACK, &limit);
    HOLDS(limit.rlim_cur >= 65536);
    CALL(getrlimit, 99, &limit);
    CALL(getrlimit, RLIMIT_STACK, BEYOND);
    CALL(prlimit64, 0, RLIMIT_NOFILE, NULL, &limit);
    HOLDS(limit.rlim_cur >= 256 && limit.rlim_cur <= limit.rlim_max);
    CALL(prlimit64, 99999999, RLIMIT_NOFILE, NULL, &limit);
    CALL(prlimit64, 0, 99, NULL, &limit);
    limit.rlim_cur = limit.rlim_max + 1;
    CALL(prlimit64, 0, RLIMIT_NOFILE, &limit, NULL);
    limit.rlim_cur = limit.rlim_max;
    CALL(setrlimit, RLIMIT_NOFILE, &limit);
    CALL(setrlimit, 99, &limit);
    CALL(setrlimit, RLIMIT_NOFILE, BEYOND);
    CALL(getrusage, RUSAGE_SELF, &usage);
    HOLDS(usage.ru_maxrss > 0 && usage.ru_utime.tv_usec < 1000000);
    CALL(getrusage, RUSAGE_CHILDREN, &usage);
    HOLDS(usage.ru_utime.tv_sec == 0);
    CALL(getrusage, 77, &usage);
    CALL(getrusage, RUSAGE_SELF, BEYOND);
}

static void clocks(void) {
    struct timespec time, later, odd = {0, 1000000000}, negative = {-1, 0}, soon = {0, 1000};
    struct timeval day;
    struct tms spent;
    static const int known[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_PROCESS_CPUTIME_ID,
        CLOCK_THREAD_CPUTIME_ID, CLOCK_MONOTONIC_RAW, CLOCK_REALTIME_COARSE,
        CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME, CLOCK_TAI};
    for (unsigned n = 0; n < sizeof known / sizeof *known; n++) {
        printf("clock %d ", known[n]);
        CALL(clock_gettime, known[n], &time);
        HOLDS(time.tv_nsec >= 0 && time.tv_nsec < 1000000000);
        CALL(clock_getres, known[n], &time);
    }
    CALL(clock_gettime, 99, &time);
    CALL(clock_gettime, CLOCK_MONOTONIC, BEYOND);
    CALL(clock_getres, 99, &time);
    CALL(clock_getres, CLOCK_MONOTONIC, NULL);
    CALL(clock_settime, CLOCK_MONOTONIC, &soon);
    CALL(gettimeofday, &day, NULL);
    HOLDS(day.tv_usec >= 0 && day.tv_usec < 1000000);
    CALL(gettimeofday, BEYOND, NULL);
    HOLDS(syscall(SYS_time, NULL) > 1000000000);
    CALL(time, BEYOND);
    HOLDS(syscall(SYS_times, &spent) != -1);
    CALL(nanosleep, &soon, NULL);
    CALL(nanosleep, &odd, NULL);
    CALL(nanosleep, &negative, NULL);
    CALL(nanosleep, NULL, NULL);
    CALL(clock_nanosleep, CLOCK_MONOTONIC, 0, &soon, NULL);
    CALL(clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &soon, NULL);
    CALL(clock_nanosleep, CLOCK_MONOTONIC, 0, &odd, NULL);
    CALL(clock_nanosleep, 99, 0, &soon, NULL);
    CALL(clock_nanosleep, CLOCK_THREAD_CPUTIME_ID, 0, &soon, NULL);
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &time);
    struct timespec wait = {0, 20000000};
    CALL(nanosleep, &wait, NULL);
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &later);
    HOLDS((later.tv_sec - time.tv_sec) * 1000000000 + later.tv_nsec - time.tv_nsec >= 20000000);
}

struct action {
    void *handler;
    unsigned long flags;
    void *restorer;
    uint64_t mask;
};

static void signals(void) {
    struct action action = {SIG_IGN, 0, NULL, 0}, before;
    uint64_t set = 1u << (SIGUSR1 - 1), old = 99, all = ~0ull;
    CALL(rt_sigaction, SIGUSR1, NULL, &before, 8L);
    HOLDS(before.handler == SIG_DFL);
    CALL(rt_sigaction, SIGUSR1, &action, NULL, 8L);
    CALL(rt_sigaction, SIGUSR1, NULL, &before, 8L);
    HOLDS(before.handler == SIG_IGN);
    CALL(rt_sigaction, SIGKILL, &action, NULL, 8L);
    CALL(rt_sigaction, SIGSTOP, NULL, &before, 8L);
    CALL(rt_sigaction, 0, &action, NULL, 8L);
    CALL(rt_sigaction, 65, &action, NULL, 8L);
    CALL(rt_sigaction, SIGUSR1, &action, NULL, 4L);
    CALL(rt_sigaction, SIGUSR1, BEYOND, NULL, 8L);
    CALL(rt_sigaction, SIGUSR1, NULL, BEYOND, 8L);
    CALL(rt_sigprocmask, SIG_BLOCK, &set, &old, 8L);
    HOLDS(old == 0);
    CALL(rt_sigprocmask, 99, &set, &old, 8L);
    CALL(rt_sigprocmask, 99, NULL, &old, 8L);
    HOLDS(old == set);
    CALL(rt_sigprocmask, SIG_SETMASK, &all, NULL, 8L);
    CALL(rt_sigprocmask, SIG_SETMASK, NULL, &old, 8L);
    HOLDS((old & (1u << (SIGKILL - 1))) == 0 && (old & (1u << (SIGSTOP - 1))) == 0);
    old = 0;
    CALL(rt_sigprocmask, SIG_SETMASK, &old, NULL, 8L);
    CALL(rt_sigprocmask, SIG_BLOCK, &set, NULL, 4L);
    CALL(rt_sigprocmask, SIG_BLOCK, BEYOND, NULL, 8L);
    CALL(rt_sigpending, &old, 8L);
    HOLDS(old == 0);
    CALL(rt_sigprocmask, SIG_BLOCK, &set, NULL, 8L);
    CALL(kill, getpid(), SIGUSR1);
    CALL(rt_sigpending, &old, 8L);
    HOLDS(old == set);
    CALL(rt_sigprocmask, SIG_UNBLOCK, &set, NULL, 8L);
    CALL(rt_sigpending, &old, 8L);
    HOLDS(old == 0);
    CALL(kill, getpid(), 0);
    CALL(kill, getpid(), 65);
    CALL(kill, getpid(), -1);
    CALL(kill, 99999999, 0);
    CALL(kill, getpid(), SIGUSR1);
    CALL(tkill, getpid(), SIGUSR1);
    CALL(tkill, -1, SIGUSR1);
    CALL(tgkill, getpid(), getpid(), SIGUSR1);
    CALL(tgkill, getpid(), 99999999, SIGUSR1);
    CALL(tgkill, -1, getpid(), SIGUSR1);
    CALL(tgkill, getpid(), getpid(), 65);
    CALL(kill, getpid(), SIGCHLD);
    CALL(kill, getpid(), SIGCONT);
    CALL(kill, getpid(), SIGURG);
    static char area[16384];
    stack_t stack = {area, 0, sizeof area}, small = {area, 0, 100}, odd = {area, 77, sizeof area};
    stack_t was;
    CALL(sigaltstack, NULL, &was);
    HOLDS(was.ss_flags == SS_DISABLE);
    CALL(sigaltstack, &small, NULL);
    CALL(sigaltstack, &odd, NULL);
    CALL(sigaltstack, BEYOND, NULL);
    CALL(sigaltstack, &stack, NULL);
    CALL(sigaltstack, NULL, &was);
    HOLDS(was.ss_sp == area && was.ss_size == sizeof area && was.ss_flags == 0);
    uint32_t word = 5;
    struct timespec soon = {0, 1000};
    CALL(futex, &word, 0, 6, NULL, NULL, 0);
    CALL(futex, &word, 0, 5, &soon, NULL, 0);
    CALL(futex, &word, 1, 1, NULL, NULL, 0);
    CALL(futex, (char *)&word + 1, 0, 6, NULL, NULL, 0);
    CALL(futex, BEYOND, 0, 6, NULL, NULL, 0);
    CALL(futex, &word, 77, 6, NULL, NULL, 0);
    CALL(futex, &word, 9, 6, NULL, NULL, 0);
}

int main(void) {
    mapping();
    identity();
    scheduling();
    limits();
    clocks();
    signals();
    return 0;
}
