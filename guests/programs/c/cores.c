/*
 * Several cores: what only goes right if threads run at the same time, and if no
 * core goes on with translations that another one has changed.
 *
 *     cores             all of it
 *     cores exit|fault  ends while threads loop on other cores
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
#define PAGES 8

static atomic_int here, there;

/* Each waits for the other without giving way: one core would wait for ever. */
static void *answer(void *unused)
{
    for (int n = 1; n <= 1000; n++) {
        while (atomic_load(&here) != n) {
        }
        atomic_store(&there, n);
    }
    return unused;
}

static void at_the_same_time(void)
{
    pthread_t thread;

    pthread_create(&thread, NULL, answer, NULL);
    for (int n = 1; n <= 1000; n++) {
        atomic_store(&here, n);
        while (atomic_load(&there) != n) {
        }
    }
    pthread_join(thread, NULL);
    printf("1000 answers without giving way\n");
}

static _Atomic(unsigned char *) shown;
static atomic_int round_nr, seen, wrong;

/* Reads the pages of each round twice: before and after they were replaced. */
static void *look(void *unused)
{
    for (int n = 1;; n++) {
        while (atomic_load(&round_nr) < 2 * n - 1) {
        }
        volatile unsigned char *pages = atomic_load(&shown);
        if (pages == NULL)
            return unused;
        for (int page = 0; page < PAGES; page++)
            if (pages[page * PAGE] != (unsigned char)(n | 1))
                atomic_fetch_add(&wrong, 1);
        atomic_store(&seen, 2 * n - 1);
        while (atomic_load(&round_nr) < 2 * n) {
        }
        for (int page = 0; page < PAGES; page++)
            if (pages[page * PAGE] != 0)
                atomic_fetch_add(&wrong, 1);
        atomic_store(&seen, 2 * n);
    }
}

static void await(int nr)
{
    while (atomic_load(&seen) < nr) {
    }
}

static unsigned char *map(void *at, int flags)
{
    void *pages = mmap(at, PAGES * PAGE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    if (pages == MAP_FAILED)
        abort();
    return pages;
}

static void nothing_stale(int rounds)
{
    pthread_t thread;
    unsigned char *pages = map(NULL, 0);

    pthread_create(&thread, NULL, look, NULL);
    atomic_store(&shown, pages);
    for (int n = 1; n <= rounds; n++) {
        for (int page = 0; page < PAGES; page++)
            pages[page * PAGE] = (unsigned char)(n | 1);
        atomic_store(&round_nr, 2 * n - 1);
        await(2 * n - 1);
        munmap(pages, PAGES * PAGE);
        /* The frames that were behind it get another use at once. */
        unsigned char *other = map((void *)0x100000000000, MAP_FIXED);
        memset(other, 0xee, PAGES * PAGE);
        map(pages, MAP_FIXED);
        atomic_store(&round_nr, 2 * n);
        await(2 * n);
        munmap(other, PAGES * PAGE);
    }
    atomic_store(&shown, NULL);
    atomic_store(&round_nr, 2 * rounds + 1);
    pthread_join(thread, NULL);
    printf("%d rounds, %d stale\n", rounds, atomic_load(&wrong));
}

/* Maps and unmaps what is its own while others do the same. */
static void *storm(void *argument)
{
    long nr = (long)argument, sum = 0;

    for (int n = 0; n < 200; n++) {
        unsigned char *pages = map(NULL, 0);
        for (int page = 0; page < PAGES; page++)
            pages[page * PAGE] = (unsigned char)(nr + page);
        if (mprotect(pages, PAGES * PAGE, PROT_READ) != 0)
            abort();
        for (int page = 0; page < PAGES; page++)
            sum += pages[page * PAGE] == (unsigned char)(nr + page);
        pages = mremap(pages, PAGES * PAGE, 2 * PAGES * PAGE, MREMAP_MAYMOVE);
        if (pages == MAP_FAILED)
            abort();
        sum += pages[0] == (unsigned char)nr;
        munmap(pages, 2 * PAGES * PAGE);
    }
    return (void *)sum;
}

static void storms(void)
{
    pthread_t threads[6];
    long sum = 0;

    for (long n = 0; n < 6; n++)
        pthread_create(&threads[n], NULL, storm, (void *)n);
    for (int n = 0; n < 6; n++) {
        void *own;
        pthread_join(threads[n], &own);
        sum += (long)own;
    }
    printf("pages that hold what was written: %ld\n", sum);
}

static void *where(void *argument)
{
    cpu_set_t set;
    int core = (int)(long)argument;

    CPU_ZERO(&set);
    CPU_SET(core, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0)
        return (void *)1;
    for (int n = 0; n < 100; n++) {
        if (sched_getcpu() != core)
            return (void *)2;
        sched_yield();
    }
    return NULL;
}

static void pinned(void)
{
    cpu_set_t set;
    pthread_t threads[8];
    long faults = 0;

    sched_getaffinity(0, sizeof set, &set);
    for (long n = 0; n < 8; n++)
        pthread_create(&threads[n], NULL, where, (void *)(n % CPU_COUNT(&set)));
    for (int n = 0; n < 8; n++) {
        void *fault;
        pthread_join(threads[n], &fault);
        faults += (long)fault;
    }
    printf("several cores: %s, pinned: %ld\n", CPU_COUNT(&set) > 1 ? "yes" : "no", faults);
}

static void *loop(void *argument)
{
    atomic_fetch_add(&here, 1);
    if (argument != NULL) {
        while (atomic_load(&there) == 0) {
        }
        *(volatile int *)8 = 1;
    }
    for (volatile unsigned long count = 0;; count++) {
    }
}

int main(int argc, char **argv)
{
    if (argc > 1) {
        cpu_set_t set;
        pthread_t thread;
        int is_fault = strcmp(argv[1], "fault") == 0;

        sched_getaffinity(0, sizeof set, &set);
        int cores = CPU_COUNT(&set);
        for (int n = 1; n < cores; n++)
            pthread_create(&thread, NULL, loop, is_fault ? &here : NULL);
        while (atomic_load(&here) < cores - 1) {
        }
        atomic_store(&there, 1);
        if (is_fault)
            *(volatile int *)16 = 1;
        _exit(7);
    }
    at_the_same_time();
    nothing_stale(200);
    storms();
    pinned();
    return 0;
}
