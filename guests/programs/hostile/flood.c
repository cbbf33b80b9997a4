/*
 * Floods whatever takes something from a program.
 *
 * Usage: flood output BYTES | doorbell OFFSET COUNT | unknown-calls COUNT
 *
 * `doorbell` stores to the doorbell page, which a kernel in ring 3 cannot keep
 * from its programs.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/syscall.h>

static const uint64_t DOORBELLS = 0xffff9000d0000000;

static void output(unsigned long bytes)
{
    char line[64];
    memset(line, 'x', sizeof line);
    line[63] = '\n';
    for (unsigned long done = 0; done < bytes; done += sizeof line)
        fwrite(line, 1, sizeof line, stdout);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    const char *how = argc > 2 ? argv[1] : "";
    unsigned long last = argc > 2 ? strtoul(argv[argc - 1], 0, 0) : 0;
    if (strcmp(how, "output") == 0) {
        output(last);
        return 0;
    }
    printf("flooding\n");
    fflush(stdout);
    if (strcmp(how, "doorbell") == 0 && argc > 3) {
        uint64_t at = DOORBELLS + strtoul(argv[2], 0, 0);
        for (unsigned long n = 0; n < last; n++)
            *(volatile uint32_t *)at = (uint32_t)n;
    }
    if (strcmp(how, "unknown-calls") == 0)
        for (unsigned long n = 0; n < last; n++)
            syscall((long)(400 + n * 7919 % 100000), n, n, n);
    printf("done\n");
    return 0;
}
