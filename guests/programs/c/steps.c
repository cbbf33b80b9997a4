/*
 * Computes in steps, each of them a call: something to look into while it runs
 * and to stop in with a debugger.
 *
 * Usage: steps COUNT
 */
#include <stdio.h>
#include <stdlib.h>

unsigned long done;

__attribute__((noinline)) unsigned long step(unsigned long sum, unsigned long nr)
{
    done = nr;
    return sum * 31 + nr;
}

int main(int argc, char **argv)
{
    unsigned long count = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
    unsigned long sum = 17;

    printf("computing\n");
    fflush(stdout);
    for (unsigned long nr = 1; nr <= count; nr++)
        sum = step(sum, nr);
    printf("%lu steps: %lu\n", done, sum);
    return 0;
}
