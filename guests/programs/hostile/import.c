/*
 * Imports the arena "q" and then does with it what is not allowed.
 *
 * Usage: import nonsense|store|vector|early|execute
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    LOOKUP = 1037, GET, ATTACH, NEXT, DETACH, RELEASE, VALID, VARIABLE,
};

struct attach { uint64_t apid, offset, bytes, start; uint32_t policy, banks; uint64_t chunk; };

static int wrong;

static void expect(const char *what, long got, int error)
{
    long want = error ? -1 : 0;
    if ((error && got != -1) || (error && errno != error) || (!error && got < 0)) {
        printf("%s: %ld (errno %d), wanted %ld (errno %d)\n", what, got, errno, want, error);
        wrong = 1;
    }
    errno = 0;
}

static long attach(long apid, struct attach *a)
{
    memset(a, 0, sizeof *a);
    a->apid = (uint64_t)apid;
    a->policy = 1;
    return syscall(ATTACH, a);
}

static void nonsense(long segid, long apid, uint64_t at, void *code)
{
    uint64_t out[80];
    struct attach a;

    expect("lookup without a name", syscall(LOOKUP, "", 0, 0), ENAMETOOLONG);
    expect("lookup of a long name", syscall(LOOKUP, code, 64, 0), ENAMETOOLONG);
    expect("lookup of nowhere", syscall(LOOKUP, 8, 4, 0), EFAULT);
    expect("lookup of bytes", syscall(LOOKUP, "\xff\xfe", 2, 0), EINVAL);
    expect("lookup beyond time", syscall(LOOKUP, "q", 1, 1L << 32), EINVAL);
    expect("get of nothing", syscall(GET, 0, 1), EINVAL);
    expect("get of less", syscall(GET, -5L, 1L), EINVAL);
    expect("get of nobody", syscall(GET, segid + 1000, 1), ENOENT);
    expect("get with no flag", syscall(GET, segid, 0), EINVAL);
    expect("get with both", syscall(GET, segid, 3), EINVAL);
    expect("get to write", syscall(GET, segid, 2), EACCES);
    expect("attach of nowhere", syscall(ATTACH, 8), EFAULT);
    expect("attach of text", syscall(ATTACH, code), EINVAL);
    expect("attach of nothing", attach(0, &a), EINVAL);
    expect("attach of nobody's", attach(apid + 1000, &a), EBADF);
    expect("attach twice", attach(apid, &a), EEXIST);
    long other = syscall(GET, segid, 1);
    expect("get again", other, 0);
    memset(&a, 0, sizeof a);
    a.apid = (uint64_t)other, a.policy = 1, a.offset = 4096;
    expect("attach of a part", syscall(ATTACH, &a), EINVAL);
    a.offset = 0, a.bytes = 4096;
    expect("attach of less", syscall(ATTACH, &a), EINVAL);
    a.bytes = 0, a.policy = 3;
    expect("attach with no policy", syscall(ATTACH, &a), EINVAL);
    a.policy = 1, a.start = 0x1000000;
    expect("attach elsewhere", syscall(ATTACH, &a), EINVAL);
    /* The span of the next import is taken. */
    void *there = mmap((void *)(at + (1L << 39) + 0x1000000), 4096, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    a.start = 0;
    expect("attach over memory", syscall(ATTACH, &a), EEXIST);
    *(volatile char *)there = 1;
    munmap(there, 4096);
    expect("attach after it", syscall(ATTACH, &a), 0);
    expect("next of nothing", syscall(NEXT, 0, 0, out), EINVAL);
    expect("next of a middle", syscall(NEXT, at + 4096, 0, out), EINVAL);
    expect("next into nowhere", syscall(NEXT, at, 0, 8), EFAULT);
    expect("next over itself", syscall(NEXT, at, 0, at), EFAULT);
    expect("next beyond time", syscall(NEXT, at, 1L << 32, out), EINVAL);
    expect("variable of nothing", syscall(VARIABLE, 0, 0, out), EINVAL);
    expect("variable of none", syscall(VARIABLE, at, 0, out), ENOENT);
    expect("variable beyond", syscall(VARIABLE, at, -1L, out), ENOENT);
    expect("valid of nothing", syscall(VALID, at + 8), EINVAL);
    expect("read over it", read(open("/dev/zero", O_RDONLY), (void *)at, 64), EFAULT);
    expect("write from it", write(open("/dev/null", O_WRONLY), (void *)at, 64), 0);
    expect("write from before", write(1, (void *)a.start, 64), EFAULT);
    expect("mprotect of it", mprotect((void *)at, 4096, PROT_READ | PROT_WRITE), EACCES);
    expect("munmap of it", munmap((void *)at, 8192), EINVAL);
    expect("mremap of it", mremap((void *)at, 8192, 16384, 1) == MAP_FAILED ? -1 : 0, EINVAL);
    expect("madvise of it", madvise((void *)at, 8192, MADV_DONTNEED), EINVAL);
    expect("detach of the stack", syscall(DETACH, (uint64_t)out & ~4095UL), EINVAL);
    expect("detach of nothing", syscall(DETACH, 0x1000000000), 0);
    expect("release of nothing", syscall(RELEASE, 0), EINVAL);
    expect("release of nobody's", syscall(RELEASE, apid + 1000), EBADF);
    expect("detach", syscall(DETACH, at), 0);
    expect("detach again", syscall(DETACH, at), 0);
    expect("next after it", syscall(NEXT, at, 0, out), EINVAL);
    expect("attach again", attach(apid, &a), 0);
    expect("release with it", syscall(RELEASE, apid), 0);
    expect("release again", syscall(RELEASE, apid), EBADF);
    expect("next after that", syscall(NEXT, at, 0, out), EINVAL);
    /* As many as there may be, and one more. */
    int attached = 1;
    for (; attached < 17; attached++) {
        long more = syscall(GET, segid, 1);
        if (attach(more, &a) < 0)
            break;
    }
    expect("attach of too many", attached == 16 ? -1 : 0, ENOSPC);
}

int main(int argc, char **argv)
{
    const char *how = argc > 1 ? argv[1] : "";
    uint64_t out[9];
    struct attach a;
    long segid = syscall(LOOKUP, "q", 1, 10000);
    expect("lookup", segid, 0);
    long apid = syscall(GET, segid, 1);
    expect("get", apid, 0);
    expect("attach", attach(apid, &a), 0);
    volatile unsigned char *at = (volatile unsigned char *)a.start;
    if (strcmp(how, "early") == 0)
        return at[0];
    expect("next", syscall(NEXT, a.start, 10000, out), 0);
    expect("valid", syscall(VALID, a.start) - 1, 0);
    if (at[0] != 1)
        wrong = 1;
    if (strcmp(how, "nonsense") == 0)
        nonsense(segid, apid, a.start, (void *)main);
    if (strcmp(how, "store") == 0)
        at[0] = 7;
    if (strcmp(how, "vector") == 0)
        _mm_storeu_si128((__m128i *)a.start, _mm_setzero_si128());
    if (strcmp(how, "execute") == 0)
        ((void (*)(void))a.start)();
    return wrong;
}
