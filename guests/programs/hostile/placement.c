/*
 * Asks what was copied with numbers that cannot be, and for an answer where
 * it would have to be copied itself. Prints "refused".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum {
    CREATE = 1025, PUBLISH = 1027, PREFER = 1050, COPIED = 1051,
    SIZE = 1 << 20, CHUNK = 4096, CHUNKS = SIZE / CHUNK,
};

struct arena { char name[64]; uint64_t bytes, chunk; uint32_t banks, policy; uint64_t start;
               uint32_t gid, timeout, retain, placement; };

static int wrong;

static void expect(const char *what, long got, long want)
{
    if (got == -1)
        got = -errno;
    if (got != want) {
        printf("%s: %ld, wanted %ld\n", what, got, want);
        wrong = 1;
    }
}

int main(void)
{
    static uint64_t entries[CHUNKS + 1];
    struct arena a = {.name = "asked", .bytes = SIZE, .chunk = CHUNK, .banks = 4,
                      .gid = UINT32_MAX, .retain = 1, .placement = 2};
    long slot = syscall(CREATE, &a);
    if (slot < 0)
        return 1;
    char *memory = (char *)a.start;
    uint64_t *inside = (uint64_t *)a.start;
    expect("before a publish", syscall(COPIED, slot, 0L, entries, 8L), 0);
    for (int step = 1; step <= 2; step++) {
        for (int n = 0; n < CHUNKS; n++)
            memory[n * CHUNK] = (char)step;
        expect("publish", syscall(PUBLISH, slot, (long)step, 0L), step);
    }
    expect("no arena", syscall(COPIED, slot + 1, 0L, entries, 8L), -ENOENT);
    expect("a slot beyond", syscall(COPIED, -1L, 0L, entries, 8L), -ENOENT);
    expect("to nowhere", syscall(COPIED, slot, 0L, 8L, 8L), -EFAULT);
    expect("to the kernel", syscall(COPIED, slot, 0L, 0xffff900000000000, 8L), -EFAULT);
    expect("past the end of memory", syscall(COPIED, slot, 0L, -64L, -1L), -EFAULT);
    expect("to code", syscall(COPIED, slot, 0L, (void *)main, 8L), -EFAULT);
    expect("from beyond", syscall(COPIED, slot, -1L, entries, 8L), 0);
    expect("from the end", syscall(COPIED, slot, (long)CHUNKS, entries, 8L), 0);
    expect("none", syscall(COPIED, slot, 0L, entries, 0L), 0);
    expect("more than there are", syscall(COPIED, slot, 0L, entries, (long)CHUNKS + 1), CHUNKS);
    for (int n = 0; n < CHUNKS; n++)
        expect("chunk", (long)(entries[n] >> 8), n);
    expect("nothing behind them", (long)entries[CHUNKS], 0);
    /* The answer's own page is frozen: it is copied while it is answered. */
    expect("into the arena", syscall(COPIED, slot, 0L, inside + 1, (long)CHUNKS), CHUNKS);
    for (int n = 1; n < CHUNKS; n++)
        expect("chunk inside", (long)(inside[1 + n] >> 8), n);
    expect("publish again", syscall(PUBLISH, slot, 3L, 0L), 3);
    expect("what the answer wrote", syscall(COPIED, slot, 0L, entries, 8L), 1);
    expect("a wish of no bytes", syscall(PREFER, slot, 0L, 0L, 3L), 0);
    expect("a wish beyond", syscall(PREFER, slot, -1L, 2L, 3L), -EFAULT);
    expect("a bank beyond", syscall(PREFER, slot, 0L, 8L, 1L << 32), -EINVAL);
    if (wrong)
        return 1;
    puts("refused");
    return 0;
}
