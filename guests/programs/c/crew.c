/*
 * Threads that compute in rounds while cores come and go, and check each other:
 * integers, floating point that is kept in registers, thread-local storage. Half of
 * them meet at a barrier after each round, the others only yield: a thread that does
 * not has its core to itself.
 *
 * Usage: crew THREADS; then lines on standard input: `cores`, `pin CORE`, `unpin`,
 * `rounds`, `end`.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST = 16, STEPS = 20000 };

static atomic_bool is_over;
static bool is_last;
static atomic_ulong wrong;
static atomic_ulong rounds;
static pthread_barrier_t barrier;
static _Thread_local unsigned long mine;

/* The same for all: what differs is where it is interrupted. */
static uint64_t integers(uint64_t seed)
{
    uint64_t sum = seed;

    for (uint64_t n = 0; n < STEPS; n++)
        sum = sum * 6364136223846793005u + (sum >> 33) + n;
    return sum;
}

static double reals(double seed)
{
    double a = seed, b = seed + 1, c = seed + 2, d = seed + 3;

    for (int n = 0; n < STEPS; n++) {
        a = a * 0.999 + b * 0.001;
        b = b * 0.998 + c * 0.002;
        c = c * 0.997 + d * 0.003;
        d = d * 0.996 + a * 0.004;
    }
    return a + b + c + d;
}

static void *member(void *argument)
{
    unsigned long who = (uintptr_t)argument;
    uint64_t whole = integers(who);
    double real = reals((double)who);

    mine = who;
    for (bool over = false; !over;) {
        if (who % 2 == 0) {
            /* One looks for all: who left alone would be missed at the barrier. */
            if (pthread_barrier_wait(&barrier) == PTHREAD_BARRIER_SERIAL_THREAD) {
                atomic_fetch_add(&rounds, 1);
                is_last = atomic_load(&is_over);
            }
            pthread_barrier_wait(&barrier);
            over = is_last;
        } else {
            over = atomic_load(&is_over);
            sched_yield();
        }
        if (integers(who) != whole || reals((double)who) != real || mine != who)
            atomic_fetch_add(&wrong, 1);
    }
    return NULL;
}

static void pin(pthread_t thread, cpu_set_t set)
{
    printf("%s\n", pthread_setaffinity_np(thread, sizeof set, &set) == 0 ? "done" : "refused");
}

int main(int argc, char **argv)
{
    unsigned long threads = argc > 1 ? strtoul(argv[1], NULL, 10) : 4;
    pthread_t members[MOST];
    char line[64];
    cpu_set_t set, all;

    if (threads < 2 || threads > MOST)
        return 2;
    memset(&all, 0xff, sizeof all);
    pthread_barrier_init(&barrier, NULL, (unsigned)(threads + 1) / 2);
    for (uintptr_t who = 0; who < threads; who++)
        if (pthread_create(&members[who], NULL, member, (void *)who) != 0)
            return 1;
    setvbuf(stdout, NULL, _IOLBF, 0);
    while (fgets(line, sizeof line, stdin) != NULL && strncmp(line, "end", 3) != 0) {
        if (strncmp(line, "cores", 5) == 0) {
            sched_getaffinity(0, sizeof set, &set);
            printf("%d of %ld\n", CPU_COUNT(&set), sysconf(_SC_NPROCESSORS_ONLN));
        } else if (strncmp(line, "pin ", 4) == 0) {
            CPU_ZERO(&set);
            CPU_SET(atoi(line + 4), &set);
            pin(members[1], set);
        } else if (strncmp(line, "unpin", 5) == 0) {
            pin(members[1], all);
        } else if (strncmp(line, "rounds", 6) == 0) {
            unsigned long before = atomic_load(&rounds);
            while (atomic_load(&rounds) < before + 3)
                usleep(1000);
            printf("going\n");
        }
    }
    atomic_store(&is_over, true);
    for (unsigned long who = 0; who < threads; who++)
        pthread_join(members[who], NULL);
    printf("%lu wrong\n", atomic_load(&wrong));
    return atomic_load(&wrong) != 0;
}
