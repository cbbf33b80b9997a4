/*
 * Threads that compute in steps, each of them a call: something to look into
 * while several cores run, and to stop in with a debugger.
 *
 * Usage: team COUNT THREADS
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { MOST = 32 };

static unsigned long count;
static unsigned long sums[MOST];
unsigned long done[MOST];

__attribute__((noinline)) unsigned long step(unsigned long who, unsigned long sum, unsigned long nr)
{
    done[who] = nr;
    return sum * 31 + nr + who;
}

static void *member(void *argument)
{
    unsigned long who = (uintptr_t)argument;
    unsigned long sum = 17;

    for (unsigned long nr = 1; nr <= count; nr++)
        sum = step(who, sum, nr);
    sums[who] = sum;
    return NULL;
}

int main(int argc, char **argv)
{
    unsigned long threads = argc > 2 ? strtoul(argv[2], NULL, 10) : 1;
    pthread_t others[MOST];

    count = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
    if (threads < 1 || threads > MOST)
        return 2;
    printf("computing\n");
    fflush(stdout);
    for (uintptr_t who = 1; who < threads; who++)
        if (pthread_create(&others[who], NULL, member, (void *)who) != 0)
            return 1;
    member(NULL);
    for (unsigned long who = 1; who < threads; who++)
        pthread_join(others[who], NULL);
    for (unsigned long who = 0; who < threads; who++)
        printf("%lu: %lu steps: %lu\n", who, done[who], sums[who]);
    return 0;
}
