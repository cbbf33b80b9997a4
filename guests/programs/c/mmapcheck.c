/*
 * Memory mappings as allocators and language runtimes use them: a large
 * reservation, pieces committed and given back, holes, errors.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = 4096 };
static const size_t GIB = (size_t)1 << 30;

static void say(const char *what, int good)
{
    printf("%s: %s\n", what, good ? "ok" : "WRONG");
}

static void expect_errno(const char *what, int failed, int wanted)
{
    int got = errno;
    if (failed && got == wanted)
        printf("%s: refused as expected\n", what);
    else
        printf("%s: %s, errno %d, wanted %d\n", what, failed ? "failed" : "passed", got, wanted);
}

static int is_zero(const unsigned char *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (bytes[i] != 0)
            return 0;
    return 1;
}

static void *anonymous(size_t bytes, int protection, int more)
{
    return mmap(NULL, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | more, -1, 0);
}

static void reserve_and_commit(void)
{
    unsigned char *base = anonymous(8 * GIB, PROT_NONE, MAP_NORESERVE);
    say("reserve 8 GiB", base != MAP_FAILED);
    if (base == MAP_FAILED)
        return;
    for (int piece = 0; piece < 4; piece++) {
        unsigned char *at = base + (size_t)piece * 2 * GIB;
        say("commit 1 MiB", mprotect(at, 1 << 20, PROT_READ | PROT_WRITE) == 0);
        say("zero", is_zero(at, 1 << 20));
        memset(at, 0x5a, 1 << 20);
    }
    say("distinct", base[0] == 0x5a && base[(1 << 20) - 1] == 0x5a);
    say("give back a piece", munmap(base + 2 * GIB, 1 << 20) == 0);
    unsigned char *again = mmap(base + 2 * GIB, 1 << 20, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    say("map it again", again == base + 2 * GIB);
    say("zero again", is_zero(again, 1 << 20));
    say("neighbours kept", base[4 * GIB] == 0x5a);
    say("release all", munmap(base, 8 * GIB) == 0);
}

static void punch_holes(void)
{
    enum { PAGES = 64 };
    unsigned char *base = anonymous(PAGES * PAGE, PROT_READ | PROT_WRITE, 0);
    say("map 64 pages", base != MAP_FAILED);
    for (int page = 0; page < PAGES; page++)
        base[page * PAGE] = (unsigned char)(page + 1);
    say("unmap the middle", munmap(base + 16 * PAGE, 8 * PAGE) == 0);
    int kept = 1;
    for (int page = 0; page < PAGES; page++)
        if (page < 16 || page >= 24)
            kept &= base[page * PAGE] == page + 1;
    say("the rest kept", kept);
    int result = mprotect(base, PAGES * PAGE, PROT_READ);
    expect_errno("mprotect over a hole", result != 0, ENOMEM);
    say("unmap over a hole", munmap(base, PAGES * PAGE) == 0);
    say("unmap what is unmapped", munmap(base, PAGES * PAGE) == 0);
}

static void grow_and_move(void)
{
    unsigned char *base = anonymous(4 * PAGE, PROT_READ | PROT_WRITE, 0);
    memset(base, 7, 4 * PAGE);
    unsigned char *moved = mremap(base, 4 * PAGE, 400 * PAGE, MREMAP_MAYMOVE);
    say("mremap", moved != MAP_FAILED);
    if (moved == MAP_FAILED)
        return;
    say("content moved", moved[0] == 7 && moved[4 * PAGE - 1] == 7);
    say("growth is zero", is_zero(moved + 4 * PAGE, 396 * PAGE));
    say("release", munmap(moved, 400 * PAGE) == 0);
}

/* The call itself: musl's sbrk refuses to move anything. */
static unsigned char *set_break(unsigned char *to)
{
    return (unsigned char *)syscall(SYS_brk, to);
}

static void move_the_break(void)
{
    unsigned char *start = set_break(NULL);
    unsigned char *end = start + (1 << 20);
    say("break up", set_break(end) == end);
    if (set_break(NULL) != end)
        return;
    say("zero", is_zero(start, 1 << 20));
    memset(start, 1, 1 << 20);
    say("break down", set_break(start) == start);
    say("break up again", set_break(end) == end);
    /* The first page may be the one the old break stood in. */
    say("zero again", is_zero(start + PAGE, (1 << 20) - PAGE));
    say("break back", set_break(start) == start);
    say("break refused", set_break((unsigned char *)PAGE) == start);
}

static void be_refused(void)
{
    errno = 0;
    expect_errno("length zero", anonymous(0, PROT_READ, 0) == MAP_FAILED, EINVAL);
    int flags = MAP_ANONYMOUS;
    expect_errno("neither shared nor private",
                 mmap(NULL, PAGE, PROT_READ, flags, -1, 0) == MAP_FAILED, EINVAL);
    expect_errno("bad descriptor",
                 mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, 77, 0) == MAP_FAILED, EBADF);
    expect_errno("the whole address space",
                 anonymous((size_t)1 << 62, PROT_NONE, MAP_NORESERVE) == MAP_FAILED, ENOMEM);
    unsigned char *page = anonymous(PAGE, PROT_READ | PROT_WRITE, 0);
    expect_errno("munmap off a page", munmap(page + 1, PAGE) != 0, EINVAL);
    expect_errno("munmap of nothing", munmap(page, 0) != 0, EINVAL);
    /* The call itself: musl rounds, and what follows the page is unknown. */
    long result = syscall(SYS_mprotect, page + 1, (long)PAGE, PROT_READ);
    expect_errno("mprotect off a page", result != 0, EINVAL);
    void *taken = mmap(page, PAGE, PROT_READ,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    expect_errno("fixed without replacing", taken == MAP_FAILED, EEXIST);
    say("advice", madvise(page, PAGE, MADV_WILLNEED) == 0);
    munmap(page, PAGE);
}

int main(void)
{
    reserve_and_commit();
    punch_holes();
    grow_and_move();
    move_the_break();
    be_refused();
    return 0;
}
