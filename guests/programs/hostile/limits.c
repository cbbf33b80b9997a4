/*
 * Uses up what there is and must be told so, not killed.
 *
 * Usage: limits memory | files PATH | brk | pointers | maps | depth N |
 *               arena BYTES
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static int failed(const char *what)
{
    printf("failed: %s: %s\n", what, strerror(errno));
    return 1;
}

/* Maps until there is nothing left, gives it back, and maps once more. */
static int memory(void)
{
    enum { MOST = 100000, STEP = 1 << 20 };
    static void *maps[MOST];
    int count = 0;
    for (;;) {
        void *at = mmap(0, STEP, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED)
            break;
        if (count == MOST)
            return failed("no end of memory");
        *(volatile char *)at = 1;
        maps[count++] = at;
    }
    if (errno != ENOMEM || count < 16)
        return failed("mmap");
    for (int n = 0; n < count; n++)
        if (munmap(maps[n], STEP) != 0)
            return failed("munmap");
    void *again = mmap(0, (size_t)count / 2 * STEP, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (again == MAP_FAILED)
        return failed("mmap after munmap");
    if (mmap(0, (size_t)1 << 46, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED)
        return failed("a mapping larger than memory");
    return 0;
}

/* As many mappings as the kernel's own bookkeeping takes. */
static int maps(void)
{
    for (int n = 0; n < 200000; n++) {
        void *at = mmap(0, 4096, n % 2 ? PROT_READ : PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED)
            return errno == ENOMEM ? 0 : failed("mmap");
    }
    return 0;
}

static int heap(void)
{
    char *start = sbrk(0);
    for (int n = 0; n < 100000; n++)
        if (sbrk(1 << 20) == (void *)-1) {
            if (errno != ENOMEM)
                return failed("sbrk");
            start[0] = 1;
            return brk(start) == 0 ? 0 : failed("brk back");
        }
    return failed("no end of memory");
}

static int files(const char *path)
{
    int opened = 0;
    for (int n = 0; n < 2000; n++) {
        int fd = open(path, O_RDONLY);
        if (fd < 0 && errno != EMFILE && errno != ENFILE)
            return failed("open");
        opened += fd >= 0;
    }
    printf("opened %d\n", opened);
    for (int fd = 3; fd < 3 + opened; fd++)
        if (close(fd) != 0)
            return failed("close");
    int fd = open(path, O_RDONLY);
    return fd == 3 ? 0 : failed("open after close");
}

/* The first arena that is far too large, then one that is not. */
static int arena(uint64_t bytes)
{
    enum { ARENA_CREATE = 1025 };
    struct {
        char name[64];
        uint64_t size, chunk;
        uint32_t banks, policy;
        uint64_t start;
        uint32_t gid, pad;
    } args = {"large", bytes, 2 << 20, 4, 0, 0, -1u, 0};
    if (syscall(ARENA_CREATE, &args) != -1 || (errno != ENOMEM && errno != ENOSPC))
        return failed("an arena larger than the host");
    args.size = 2 << 20;
    args.start = 0;
    return syscall(ARENA_CREATE, &args) == 0 ? 0 : failed("a small arena");
}

static int depth(int n)
{
    volatile char frame[1024];
    frame[0] = (char)n;
    return n == 0 ? 0 : depth(n - 1) + (frame[0] - (char)n);
}

/* Calls with one pointer argument that is wrong: -1 says where it goes. */
static const struct {
    const char *name;
    long nr;
    long args[5];
} calls[] = {
    {"read", SYS_read, {0, -1, 8}},
    {"write", SYS_write, {1, -1, 8}},
    {"pread64", SYS_pread64, {0, -1, 8, 0}},
    {"readv", SYS_readv, {0, -1, 1}},
    {"writev", SYS_writev, {1, -1, 1}},
    {"open", SYS_open, {-1, 0}},
    {"openat", SYS_openat, {AT_FDCWD, -1, 0}},
    {"stat", SYS_stat, {-1, 0}},
    {"lstat", SYS_lstat, {-1, 0}},
    {"fstat", SYS_fstat, {1, -1}},
    {"newfstatat", SYS_newfstatat, {AT_FDCWD, -1, 0, 0}},
    {"access", SYS_access, {-1, 0}},
    {"getcwd", SYS_getcwd, {-1, 64}},
    {"chdir", SYS_chdir, {-1}},
    {"mkdir", SYS_mkdir, {-1, 0}},
    {"rmdir", SYS_rmdir, {-1}},
    {"unlink", SYS_unlink, {-1}},
    {"rename", SYS_rename, {-1, -1}},
    {"link", SYS_link, {-1, -1}},
    {"symlink", SYS_symlink, {-1, -1}},
    {"readlink", SYS_readlink, {-1, 0, 8}},
    {"chmod", SYS_chmod, {-1, 0}},
    {"truncate", SYS_truncate, {-1, 0}},
    {"pipe", SYS_pipe, {-1}},
    {"pipe2", SYS_pipe2, {-1, 0}},
    {"poll", SYS_poll, {-1, 1, 0}},
    {"uname", SYS_uname, {-1}},
    {"clock_gettime", SYS_clock_gettime, {0, -1}},
    {"gettimeofday", SYS_gettimeofday, {-1, 0}},
    {"nanosleep", SYS_nanosleep, {-1, 0}},
    {"getrandom", SYS_getrandom, {-1, 8, 0}},
    {"rt_sigaction", SYS_rt_sigaction, {10, -1, 0, 8}},
    {"rt_sigprocmask", SYS_rt_sigprocmask, {0, -1, 0, 8}},
    {"getrlimit", SYS_getrlimit, {3, -1}},
    {"sysinfo", SYS_sysinfo, {-1}},
    {"statfs", SYS_statfs, {-1, 0}},
    {"utimensat", SYS_utimensat, {AT_FDCWD, -1, 0, 0}},
};

static int pointers(void)
{
    static const uint64_t bad[] = {
        8, 0xfff, 0x10000, (uint64_t)64 << 30, 0x7fffffffe000, 0x7fffffffffff,
        0x800000000000, 0xffff900000000000, 0xffff9000d0000000,
        0xffffffff80200000, 0xffffffffffffff00, 0xfffffffffffffff8, -1,
    };
    int wrong = 0;
    for (unsigned c = 0; c < sizeof calls / sizeof *calls; c++)
        for (unsigned b = 0; b < sizeof bad / sizeof *bad; b++) {
            long a[5];
            for (int n = 0; n < 5; n++)
                a[n] = calls[c].args[n] == -1 ? (long)bad[b] : calls[c].args[n];
            long got = syscall(calls[c].nr, a[0], a[1], a[2], a[3], a[4]);
            if (got != -1 || (errno != EFAULT && errno != ENOSYS)) {
                printf("%s %#lx: %ld, %s\n", calls[c].name, (long)bad[b], got, strerror(errno));
                wrong = 1;
            }
        }
    /* Lengths that wrap, from a good pointer. */
    char here[16] = "";
    const uint64_t lengths[] = {-1, (uint64_t)1 << 63, (uint64_t)1 << 47, (uint64_t)4 << 30};
    for (unsigned n = 0; n < 4; n++) {
        if (syscall(SYS_write, 1, here, lengths[n]) != -1 || errno != EFAULT) {
            printf("write of %#lx bytes: %s\n", (long)lengths[n], strerror(errno));
            wrong = 1;
        }
    }
    return wrong;
}

int main(int argc, char **argv)
{
    const char *how = argc > 1 ? argv[1] : "";
    const char *what = argc > 2 ? argv[2] : "";
    int code = 2;
    if (strcmp(how, "memory") == 0)
        code = memory();
    if (strcmp(how, "maps") == 0)
        code = maps();
    if (strcmp(how, "brk") == 0)
        code = heap();
    if (strcmp(how, "files") == 0)
        code = files(what);
    if (strcmp(how, "pointers") == 0)
        code = pointers();
    if (strcmp(how, "arena") == 0)
        code = arena(strtoull(what, 0, 0));
    if (strcmp(how, "depth") == 0)
        code = depth(atoi(what));
    printf("%s: %d\n", how, code);
    return code;
}
