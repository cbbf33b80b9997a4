/*
 * Ranks of one enclave that exchange data through each other's memory: each attaches
 * all others by SMARTMAP and adds its share to their tables, without a message or a
 * copy. Ranks take turns by yielding, as processes of an enclave do.
 *
 * Usage, once per rank: ranks RANK RANKS
 */
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <xasm.h>

enum { ROWS = 1000, MOST = 12 };

/* At the same address in all ranks: they run the same file. */
static _Atomic long table[ROWS];
static atomic_int done;
static atomic_int seen;

#define AT(rank, object) ((void *)(((uint64_t)(rank) + 1) * SMARTMAP_ALIGN + (uint64_t)&(object)))

int main(int argc, char **argv)
{
    int rank = argc > 1 ? atoi(argv[1]) : 0, ranks = argc > 2 ? atoi(argv[2]) : 1;
    uint32_t own, other;
    long wrong = 0;

    if (ranks < 1 || ranks > MOST || aspace_get_myid(&own) != 0 ||
        aspace_set_rank(own, (uint32_t)rank) != 0)
        return 2;
    for (int peer = 0; peer < ranks; peer++) {
        if (peer == rank)
            continue;
        while (aspace_of_rank((uint32_t)peer, &other) != 0)
            usleep(1000);
        if (aspace_smartmap(other, own, ((uint64_t)peer + 1) * SMARTMAP_ALIGN, SMARTMAP_ALIGN) != 0)
            return 3;
        _Atomic long *theirs = AT(peer, table);
        for (int row = 0; row < ROWS; row++)
            atomic_fetch_add(&theirs[row], (long)row * (rank + 1));
        atomic_fetch_add((atomic_int *)AT(peer, done), 1);
        sched_yield();
    }
    while (atomic_load(&done) < ranks - 1)
        usleep(1000);
    for (int row = 0; row < ROWS; row++) {
        long sum = 0;
        for (int peer = 0; peer < ranks; peer++)
            sum += peer == rank ? 0 : (long)row * (peer + 1);
        wrong += atomic_load(&table[row]) != sum;
    }
    /* Nobody leaves while another one may still look. */
    for (int peer = 0; peer < ranks; peer++)
        if (peer != rank)
            atomic_fetch_add((atomic_int *)AT(peer, seen), 1);
    while (atomic_load(&seen) < ranks - 1)
        usleep(1000);
    printf("rank %d: %ld of %d wrong\n", rank, wrong, ROWS);
    return wrong != 0;
}
