/*
 * Fills all memory that there is with a pattern, or looks whether any that it gets
 * holds the pattern.
 *
 * Usage: secret fill|look
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define SECRET 0x5ec2e75ec2e75ec2u

int main(int argc, char **argv)
{
    const size_t bytes = 2 << 20;
    int fills = argc > 1 && strcmp(argv[1], "fill") == 0;
    unsigned long found = 0, pieces = 0;

    for (;;) {
        uint64_t *piece = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (piece == MAP_FAILED)
            break;
        pieces++;
        for (size_t n = 0; n < bytes / sizeof *piece; n++) {
            found += piece[n] == SECRET;
            if (fills)
                piece[n] = SECRET;
        }
    }
    printf("%lu pieces, %lu words\n", pieces, found);
    return found != 0 || pieces < 60;
}
