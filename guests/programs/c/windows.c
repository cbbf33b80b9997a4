/*
 * Tries what SMARTMAP calls refuse, and touches what is not there.
 *
 * Usage: windows refusals SIBLING   prints an errno per line
 *        windows touch SIBLING      reads and writes the sibling's `shared` until it
 *                                   ends, by which this process ends too
 *        windows keep               says its number, waits for the end of its input
 *        windows storm SIBLING      attaches and detaches
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <xasm.h>

static volatile uint64_t shared = 41;
static const volatile uint64_t constant = 7;
static uint32_t own;

static uint64_t window(uint64_t n)
{
    return n * SMARTMAP_ALIGN;
}

static void said(const char *what, int answer)
{
    printf("%s: %s\n", what, answer == 0 ? "done" : strerror(-answer));
}

static int map(uint32_t src, uint64_t start)
{
    return aspace_smartmap(src, own, start, SMARTMAP_ALIGN);
}

static void refusals(uint32_t sibling)
{
    uint32_t rank;
    void *at;

    said("nobody", map(4000, window(1)));
    said("itself", map(own, window(1)));
    said("for another", aspace_smartmap(own, sibling, window(1), SMARTMAP_ALIGN));
    said("first entry", map(sibling, 0));
    said("beyond", map(sibling, window(13)));
    said("between", map(sibling, window(1) + 4096));
    said("kernel", map(sibling, UINT64_MAX - SMARTMAP_ALIGN + 1));
    said("short", aspace_smartmap(sibling, own, window(1), 4096));
    said("attached", map(sibling, window(2)));
    said("again", map(sibling, window(3)));
    said("not there", aspace_unsmartmap(sibling + 100, own));
    printf("sees %lu\n", *(volatile uint64_t *)(window(2) + (uint64_t)&shared));
    *(volatile uint64_t *)(window(2) + (uint64_t)&shared) = 42;
    printf("write: %s\n", write(1, (void *)(window(2) + (uint64_t)&constant), 8) < 0 ? strerror(errno) : "done");
    at = mmap((void *)window(2), 4096, PROT_READ | PROT_WRITE,
              MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    printf("mmap: %s\n", at == MAP_FAILED ? strerror(errno) : "done");
    said("munmap", munmap((void *)window(2), 4096) == 0 ? 0 : -errno);
    printf("sees %lu\n", *(volatile uint64_t *)(window(2) + (uint64_t)&shared));
    said("detached", aspace_unsmartmap(sibling, own));
    said("rank of another", aspace_set_rank(sibling, 3));
    said("no rank", aspace_get_rank(sibling, &rank));
    fflush(stdout);
    /* Gone: the end. */
    printf("%lu\n", *(volatile uint64_t *)(window(2) + (uint64_t)&shared));
    fflush(stdout);
}

int main(int argc, char **argv)
{
    uint32_t sibling = argc > 2 ? (uint32_t)atoi(argv[2]) : 0;
    struct timespec pause = { 0, 200000 };

    aspace_get_myid(&own);
    if (argc > 2 && strcmp(argv[1], "refusals") == 0) {
        refusals(sibling);
    } else if (argc > 2 && strcmp(argv[1], "touch") == 0) {
        said("attached", map(sibling, window(12)));
        fflush(stdout);
        for (;;) {
            *(volatile uint64_t *)(window(12) + (uint64_t)&shared) += 1;
            nanosleep(&pause, NULL);
        }
    } else if (argc > 2 && strcmp(argv[1], "storm") == 0) {
        for (int n = 0; n < 2000; n++)
            if (map(sibling, window(1 + n % 12)) != 0 || aspace_unsmartmap(sibling, own) != 0)
                return 1;
        printf("done\n");
    } else {
        printf("%u\n", own);
        fflush(stdout);
        fcntl(0, F_SETFL, O_NONBLOCK);
        for (char byte; read(0, &byte, 1) != 0;)
            nanosleep(&pause, NULL);
        printf("kept %lu\n", shared);
    }
    return 0;
}
