/*
 * Takes, checks and gives back memory as it is told, line by line, and computes
 * until the next line comes:
 *
 *     take N    maps N MiB and fills them; "taken" or the error
 *     check     reads all of it again
 *     free      gives it back
 *     total     what sysinfo(2) says, in MiB
 *     end
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#define MIB (1ul << 20)
#define WORDS(bytes) ((bytes) / sizeof(unsigned long))

static unsigned long *taken;
static unsigned long taken_bytes;

static unsigned long word(unsigned long n)
{
    return (n + 1) * 0x9e3779b97f4a7c15ul;
}

static void take(unsigned long mib)
{
    taken_bytes = mib * MIB;
    taken = mmap(NULL, taken_bytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (taken == MAP_FAILED) {
        printf("not taken: %s\n", strerror(errno));
        return;
    }
    for (unsigned long n = 0; n < WORDS(taken_bytes); n++) {
        if (taken[n] != 0) {
            printf("word %lu was not zero\n", n);
            return;
        }
        taken[n] = word(n);
    }
    printf("taken\n");
}

static void check(void)
{
    for (unsigned long n = 0; n < WORDS(taken_bytes); n++) {
        if (taken[n] != word(n)) {
            printf("word %lu is wrong\n", n);
            return;
        }
    }
    printf("right\n");
}

/* Computes until there is a line; the sum must come out as it always does. */
static void compute(void)
{
    struct pollfd line = { .fd = 0, .events = POLLIN };

    while (poll(&line, 1, 0) == 0) {
        unsigned long sum = 0;

        for (unsigned long n = 0; n < 100000; n++)
            sum += word(n) >> 32;
        if (sum != 214750292811221ul) {
            printf("the sum is %lu\n", sum);
            exit(1);
        }
    }
}

int main(void)
{
    char line[64];

    setvbuf(stdout, NULL, _IOLBF, 0);
    setvbuf(stdin, NULL, _IONBF, 0);
    for (;;) {
        compute();
        if (!fgets(line, sizeof line, stdin) || strcmp(line, "end\n") == 0)
            return 0;
        if (strncmp(line, "take ", 5) == 0) {
            take(strtoul(line + 5, NULL, 10));
        } else if (strcmp(line, "check\n") == 0) {
            check();
        } else if (strcmp(line, "free\n") == 0) {
            printf("%s\n", munmap(taken, taken_bytes) ? "not freed" : "freed");
        } else if (strcmp(line, "total\n") == 0) {
            struct sysinfo info;

            sysinfo(&info);
            printf("%lu\n", info.totalram * info.mem_unit / MIB);
        } else {
            printf("what?\n");
        }
    }
}
