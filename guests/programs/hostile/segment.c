/*
 * Attaches the plain segment "p" (8 pages of 4 KiB, to read) and then does with
 * plain segments what is not allowed.
 *
 * Usage: segment nonsense|store|vector|execute|beyond|many
 */
#define _GNU_SOURCE
#include <errno.h>
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    NAME = 1030,
    LOOKUP = 1037, GET, ATTACH, NEXT, DETACH, RELEASE, VALID, VARIABLE,
    SEGMENT, REMOVE, SIGNAL, SUBSCRIBE, WAIT,
};
enum { APID, SEGID };

struct attach { uint64_t apid, offset, bytes, start; uint32_t policy, banks; uint64_t chunk; };
struct segment {
    char name[64];
    uint64_t bytes, page, start;
    uint32_t mode, gid, flags, pad;
};

static int wrong;

static void expect(const char *what, long got, int error)
{
    if ((error && got != -1) || (error && errno != error) || (!error && got < 0)) {
        printf("%s: %ld (errno %d), wanted errno %d\n", what, got, errno, error);
        wrong = 1;
    }
    errno = 0;
}

static long attach(long apid, uint64_t offset, uint64_t bytes, struct attach *a)
{
    memset(a, 0, sizeof *a);
    a->apid = (uint64_t)apid, a->offset = offset, a->bytes = bytes;
    return syscall(ATTACH, a);
}

static long segment(struct segment *s, const char *name, uint64_t bytes, uint32_t flags)
{
    memset(s, 0, sizeof *s);
    strcpy(s->name, name);
    s->bytes = bytes, s->mode = 0600, s->gid = UINT32_MAX, s->flags = flags;
    return syscall(SEGMENT, s);
}

static void pieces(long segid, long apid)
{
    struct attach a;
    expect("get to write", syscall(GET, segid, 2), EACCES);
    expect("a piece inside a page", attach(apid, 8, 4096, &a), EINVAL);
    expect("a piece behind", attach(apid, 8 * 4096, 4096, &a), EINVAL);
    expect("a piece far behind", attach(apid, 1UL << 63, 4096, &a), EINVAL);
    expect("all of what is behind", attach(apid, 9 * 4096, 0, &a), EINVAL);
    expect("a piece too long", attach(apid, 4096, 8 * 4096, &a), EINVAL);
    expect("a piece that wraps", attach(apid, 4096, -4096UL, &a), EINVAL);
    expect("a piece of nobody's", attach(apid + 1000, 0, 4096, &a), EBADF);
    expect("an apid that is a segid", attach(segid, 0, 4096, &a), EBADF);
    expect("part of a page", attach(apid, 4096, 1, &a), 0);
    if (a.bytes != 4096 || a.banks != 0 || a.chunk != 4096)
        expect("whole pages", 0, EIO);
    expect("next of plain memory", syscall(NEXT, a.start, 0, &a), EINVAL);
    expect("valid of plain memory", syscall(VALID, a.start), EINVAL);
    expect("mprotect of it", mprotect((void *)a.start, 4096, PROT_READ | PROT_WRITE), EACCES);
    expect("munmap of it", munmap((void *)a.start, 4096), EINVAL);
    expect("mremap of it", mremap((void *)a.start, 4096, 8192, 1) == MAP_FAILED ? -1 : 0, EINVAL);
    expect("uname over it", syscall(SYS_uname, a.start), EFAULT);
    expect("name of another's", syscall(NAME, a.start, 4096, "mine", 4), EINVAL);
    expect("detach", syscall(DETACH, a.start), 0);
}

static void making(void)
{
    struct segment s, t;
    expect("a segment of nowhere", syscall(SEGMENT, 8), EFAULT);
    expect("a segment in text", syscall(SEGMENT, (void *)making), EINVAL);
    expect("half a page", segment(&s, "x", 2048, 0), EINVAL);
    expect("no memory, no signals", segment(&s, "x", 0, 0), EINVAL);
    expect("more than there is", segment(&s, "x", 1UL << 38, 0), ENOMEM);
    expect("more than there are addresses", segment(&s, "x", -4096UL, 0), EINVAL);
    expect("unknown flags", segment(&s, "x", 4096, 2), EINVAL);
    expect("a taken name", segment(&s, "p", 4096, 0), EEXIST);
    memset(&s, 0, sizeof s);
    memset(s.name, 'x', sizeof s.name);
    s.bytes = 4096;
    expect("an endless name", syscall(SEGMENT, &s), EINVAL);
    memset(&s, 0, sizeof s);
    s.bytes = 4096, s.mode = 01000, s.gid = UINT32_MAX;
    expect("a mode beyond", syscall(SEGMENT, &s), EINVAL);
    s.mode = 0600, s.page = 8192;
    expect("odd pages", syscall(SEGMENT, &s), EINVAL);
    s.page = 0, s.start = 4096;
    expect("an address of one's own", syscall(SEGMENT, &s), EINVAL);
    long made = segment(&s, "mine", 8192, 1);
    expect("a segment", made, 0);
    ((volatile char *)s.start)[8191] = 1;
    expect("its name again", segment(&t, "mine", 4096, 0), EEXIST);
    expect("munmap of it", munmap((void *)s.start, 8192), EINVAL);
    expect("a name for less than nothing", syscall(NAME, s.start, 0, "other", 5), EINVAL);
    expect("a name for more", syscall(NAME, s.start, 12288, "other", 5), EINVAL);
    expect("a name", syscall(NAME, s.start, 8192, "other", 5), 0);
    expect("the same name", syscall(NAME, s.start, 8192, "other", 5), EEXIST);
    expect("subscribing again", syscall(SUBSCRIBE, made, SEGID), EEXIST);
    expect("waiting in vain", syscall(WAIT, made, SEGID, 10), ETIMEDOUT);
    expect("signalling nobody", syscall(SIGNAL, made, SEGID), 0);
    expect("removing", syscall(REMOVE, made), 0);
    expect("removing again", syscall(REMOVE, made), EACCES);
    ((volatile char *)s.start)[0] = 1;
    expect("freeing", syscall(DETACH, s.start), 0);
    expect("freeing again", syscall(DETACH, s.start), 0);
}

static void signals(long segid, long apid)
{
    expect("a signal that is not wanted", syscall(SIGNAL, apid, APID), EACCES);
    expect("the same from outside", syscall(SIGNAL, segid, SEGID), EACCES);
    expect("subscribing to none", syscall(SUBSCRIBE, apid, APID), EACCES);
    expect("subscribing as another", syscall(SUBSCRIBE, segid, SEGID), EPERM);
    expect("waiting without", syscall(WAIT, apid, APID, 0), ENOTCONN);
    expect("waiting beyond time", syscall(WAIT, apid, APID, 1L << 32), EINVAL);
    expect("a signal by nothing", syscall(SIGNAL, apid, 2), EINVAL);
    expect("a signal of nobody's", syscall(SIGNAL, apid + 1000, APID), EBADF);
    expect("a signal to nobody", syscall(SIGNAL, segid + 1000, SEGID), ENOENT);
    expect("a signal to zero", syscall(SIGNAL, 0, SEGID), EINVAL);
    expect("removing another's", syscall(REMOVE, segid), EACCES);
    expect("removing nothing", syscall(REMOVE, 0), EINVAL);
}

/* As many as there may be, and one more. */
static void many(long apid)
{
    struct attach a;
    struct segment s;
    int count = 1;
    for (; count < 17 && attach(apid, 0, 4096, &a) > 0; count++)
        ;
    expect("attaching too many", count == 16 ? -1 : 0, ENOSPC);
    expect("a segment besides", segment(&s, "", 4096, 0), ENOSPC);
    expect("releasing all", syscall(RELEASE, apid), 0);
    for (count = 0; count < 65 && segment(&s, "", 0, 1) > 0; count++)
        ;
    expect("too many bells", count == 64 ? -1 : 0, ENOSPC);
}

int main(int argc, char **argv)
{
    const char *how = argc > 1 ? argv[1] : "";
    struct attach a;
    long segid = syscall(LOOKUP, "p", 1, 10000);
    expect("lookup", segid, 0);
    long apid = syscall(GET, segid, 1);
    expect("get", apid, 0);
    expect("attach", attach(apid, 0, 0, &a), 0);
    volatile unsigned char *at = (volatile unsigned char *)a.start;
    if (a.bytes != 8 * 4096 || at[4096] != 1)
        wrong = 1;
    if (strcmp(how, "nonsense") == 0) {
        pieces(segid, apid);
        making();
        signals(segid, apid);
    }
    if (strcmp(how, "many") == 0)
        many(apid);
    if (strcmp(how, "store") == 0)
        at[0] = 7;
    if (strcmp(how, "vector") == 0)
        _mm_storeu_si128((__m128i *)a.start, _mm_setzero_si128());
    if (strcmp(how, "execute") == 0)
        ((void (*)(void))a.start)();
    if (strcmp(how, "beyond") == 0)
        return at[a.bytes];
    return wrong;
}
