/* POSIX and C11 threads: one line for each thing that has to work. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

enum { THREADS = 8, ROUNDS = 500 };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t barrier;
static sem_t slots;
static long counter;
static __thread long own = 7;
static int turn;

static void check(int ok, const char *what)
{
    if (!ok) {
        printf("wrong: %s (errno %d)\n", what, errno);
        exit(1);
    }
}

static void *count(void *argument)
{
    long nr = (long)argument;
    check(own == 7, "thread-local storage starts afresh");
    own = nr;
    pthread_barrier_wait(&barrier);
    for (int n = 0; n < ROUNDS; n++) {
        pthread_mutex_lock(&mutex);
        long seen = counter;
        if (n % 16 == nr)
            sched_yield(); /* somebody else finds it locked */
        counter = seen + 1;
        pthread_mutex_unlock(&mutex);
    }
    check(own == nr, "thread-local storage stays");
    return (void *)(nr * nr);
}

static void counting(void)
{
    pthread_t threads[THREADS];
    long sum = 0;
    check(!pthread_barrier_init(&barrier, NULL, THREADS), "barrier");
    for (long n = 0; n < THREADS; n++)
        check(!pthread_create(&threads[n], NULL, count, (void *)n), "create");
    for (int n = 0; n < THREADS; n++) {
        void *result;
        check(!pthread_join(threads[n], &result), "join");
        sum += (long)result;
    }
    printf("%d threads counted to %ld, results %ld\n", THREADS, counter, sum);
}

/* Each waits for its turn at one condition, which wakes all. */
static void *in_turn(void *argument)
{
    int nr = (int)(long)argument;
    for (int round = 0; round < 3; round++) {
        pthread_mutex_lock(&mutex);
        while (turn % THREADS != nr)
            pthread_cond_wait(&changed, &mutex);
        printf("%d%s", nr, nr == THREADS - 1 ? "\n" : " ");
        turn++;
        pthread_cond_broadcast(&changed);
        pthread_mutex_unlock(&mutex);
    }
    return NULL;
}

static void taking_turns(void)
{
    pthread_t threads[THREADS];
    for (long n = THREADS - 1; n >= 0; n--)
        check(!pthread_create(&threads[n], NULL, in_turn, (void *)n), "create");
    for (int n = 0; n < THREADS; n++)
        pthread_join(threads[n], NULL);
}

static double now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static struct timespec soon(clockid_t clock, long ms)
{
    struct timespec t;
    clock_gettime(clock, &t);
    t.tv_nsec += ms * 1000000;
    t.tv_sec += t.tv_nsec / 1000000000;
    t.tv_nsec %= 1000000000;
    return t;
}

static void *sleep_and_post(void *argument)
{
    struct timespec pause = {0, 30000000};
    check(!nanosleep(&pause, NULL), "nanosleep");
    sem_post(argument);
    return NULL;
}

static void time_limits(void)
{
    pthread_t thread;
    double start = now(CLOCK_MONOTONIC);
    struct timespec limit = soon(CLOCK_REALTIME, 20);
    pthread_mutex_lock(&mutex);
    int result = pthread_cond_timedwait(&changed, &mutex, &limit);
    pthread_mutex_unlock(&mutex);
    check(result == ETIMEDOUT, "a condition nobody signals");
    check(now(CLOCK_MONOTONIC) - start >= 0.019, "waited long enough");
    check(!sem_init(&slots, 0, 0), "semaphore");
    limit = soon(CLOCK_REALTIME, 10);
    check(sem_timedwait(&slots, &limit) == -1 && errno == ETIMEDOUT, "a semaphore nobody posts");
    check(!pthread_create(&thread, NULL, sleep_and_post, &slots), "create");
    limit = soon(CLOCK_REALTIME, 60000);
    check(!sem_timedwait(&slots, &limit), "a semaphore that is posted in time");
    limit = soon(CLOCK_MONOTONIC, 10);
    check(!clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &limit, NULL), "clock_nanosleep");
    pthread_join(thread, NULL);
    printf("time limits hold\n");
}

static pthread_mutex_t robust;

static void *die_with_it(void *argument)
{
    (void)argument;
    pthread_mutex_lock(&robust);
    return NULL;
}

static void robust_mutexes(void)
{
    pthread_t thread;
    pthread_mutexattr_t kind;
    pthread_mutexattr_init(&kind);
    pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&robust, &kind);
    check(!pthread_create(&thread, NULL, die_with_it, NULL), "create");
    int result = pthread_join(thread, NULL);
    check(result == 0, "join");
    check(pthread_mutex_lock(&robust) == EOWNERDEAD, "its owner is dead");
    check(!pthread_mutex_consistent(&robust), "consistent");
    check(!pthread_mutex_unlock(&robust), "unlock");
    /* One that already waits when the owner dies. */
    printf("a robust mutex outlives its owner\n");
}

static pthread_rwlock_t shared = PTHREAD_RWLOCK_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static int made, freed;

static void make(void)
{
    made++;
}

static void destroy(void *value)
{
    freed += (int)(long)value;
}

static void *use_all(void *argument)
{
    pthread_once(&once, make);
    pthread_setspecific(key, argument);
    for (int n = 0; n < 20; n++) {
        pthread_rwlock_rdlock(&shared);
        sched_yield();
        pthread_rwlock_unlock(&shared);
        pthread_rwlock_wrlock(&shared);
        sched_yield();
        pthread_rwlock_unlock(&shared);
    }
    return NULL;
}

static void the_rest(void)
{
    pthread_t threads[THREADS];
    pthread_key_create(&key, destroy);
    for (long n = 0; n < THREADS; n++)
        check(!pthread_create(&threads[n], NULL, use_all, (void *)(n + 1)), "create");
    for (int n = 0; n < THREADS; n++)
        pthread_join(threads[n], NULL);
    printf("once: %d, destructors: %d\n", made, freed);
}

static mtx_t c11_mutex;
static cnd_t c11_changed;
static int c11_state;

static int c11(void *argument)
{
    mtx_lock(&c11_mutex);
    while (c11_state != (int)(long)argument)
        cnd_wait(&c11_changed, &c11_mutex);
    c11_state++;
    cnd_broadcast(&c11_changed);
    mtx_unlock(&c11_mutex);
    thrd_yield();
    return c11_state * 0 + (int)(long)argument;
}

static void c11_threads(void)
{
    thrd_t threads[4];
    int sum = 0;
    mtx_init(&c11_mutex, mtx_plain);
    cnd_init(&c11_changed);
    for (long n = 3; n >= 0; n--)
        check(thrd_create(&threads[n], c11, (void *)n) == thrd_success, "thrd_create");
    for (int n = 0; n < 4; n++) {
        int result;
        thrd_join(threads[n], &result);
        sum += result;
    }
    printf("C11 threads: state %d, sum %d\n", c11_state, sum);
}

/* Registers that the kernel has to put away: rounding mode and vectors. */
static void *rounding(void *argument)
{
    unsigned control = argument ? 0x7f80 : 0x1f80, seen;
    double kept[4] = {1, 2, 3, 4};
    __asm__ volatile("ldmxcsr %0" : : "m"(control));
    __asm__ volatile("movupd (%0), %%xmm5\n\tmovupd 16(%0), %%xmm13" : : "r"(kept) : "xmm5", "xmm13");
    if (argument)
        memset(kept, 0, sizeof kept);
    for (int n = 0; n < 50; n++) {
        long result;
        double a[2], b[2];
        double mine[2] = {argument ? 10.0 : 20.0, n};
        __asm__ volatile("movupd (%2), %%xmm5\n\tmovupd (%2), %%xmm13\n\tsyscall\n\t"
                         "movupd %%xmm5, (%3)\n\tmovupd %%xmm13, (%4)"
                         : "=a"(result)
                         : "a"((long)SYS_sched_yield), "r"(mine), "r"(a), "r"(b)
                         : "rcx", "r11", "memory", "xmm5", "xmm13");
        check(result == 0 && a[0] == mine[0] && a[1] == n && b[1] == n, "vector registers");
        __asm__ volatile("stmxcsr %0" : "=m"(seen));
        check((seen & ~0x3fu) == control, "rounding mode");
    }
    return NULL;
}

static void registers(void)
{
    pthread_t threads[2];
    for (long n = 0; n < 2; n++)
        check(!pthread_create(&threads[n], NULL, rounding, (void *)n), "create");
    rounding(NULL);
    for (int n = 0; n < 2; n++)
        pthread_join(threads[n], NULL);
    printf("registers are each thread's own\n");
}

static void *numbered(void *argument)
{
    *(pid_t *)argument = (pid_t)syscall(SYS_gettid);
    return NULL;
}

static void numbers(void)
{
    pthread_t thread;
    pid_t other = 0;
    char name[16];
    cpu_set_t set;
    check(!pthread_create(&thread, NULL, numbered, &other), "create");
    pthread_join(thread, NULL);
    check(syscall(SYS_gettid) == getpid(), "the first thread has the program's number");
    check(other != getpid() && other > 0, "others have their own");
    check(!pthread_setname_np(pthread_self(), "worker"), "set name");
    check(!pthread_getname_np(pthread_self(), name, sizeof name), "get name");
    check(!sched_getaffinity(0, sizeof set, &set) && CPU_COUNT(&set) > 0, "affinity");
    check(!sched_setaffinity(0, sizeof set, &set), "set affinity");
    check(syscall(SYS_tgkill, getpid(), getpid(), 0) == 0, "tgkill 0");
    check(syscall(SYS_tgkill, getpid(), 4194303, 0) == -1 && errno == ESRCH, "tgkill nobody");
    printf("numbers and names: %s\n", name);
}

static void *many(void *argument)
{
    return argument;
}

static void again_and_again(void)
{
    long sum = 0;
    for (long n = 0; n < 100; n++) {
        pthread_t thread;
        void *result;
        check(!pthread_create(&thread, NULL, many, (void *)n), "create");
        pthread_join(thread, &result);
        sum += (long)result;
    }
    printf("100 threads one after the other: %ld\n", sum);
}

static void *last(void *argument)
{
    struct timespec pause = {0, 10000000};
    nanosleep(&pause, NULL);
    printf("the last thread ends the program\n");
    fflush(stdout);
    return argument;
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    counting();
    taking_turns();
    time_limits();
    robust_mutexes();
    the_rest();
    c11_threads();
    registers();
    numbers();
    again_and_again();
    if (argc > 1 && !strcmp(argv[1], "leave")) {
        pthread_t thread;
        pthread_create(&thread, NULL, last, NULL);
        pthread_detach(thread);
        fflush(stdout);
        pthread_exit(NULL);
    }
    return argc > 1 ? atoi(argv[1]) : 0;
}
