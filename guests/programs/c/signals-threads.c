/*
 * Signals between threads: pthread_kill to one that waits, pthread_cancel,
 * signals of the program, sigwait, interrupted and restarted waits. Prints
 * nothing that depends on who is faster.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define HOLDS(what) printf("%s: %s\n", #what, (what) ? "yes" : "no")

static volatile int handled_by, handled;
static pthread_t self_of[4];
static volatile int ready;

static void note(int signal) {
    (void)signal;
    for (int n = 0; n < 4; n++)
        if (pthread_equal(pthread_self(), self_of[n]))
            handled_by = n;
    handled++;
}

static void on(int signal, int flags) {
    struct sigaction action = {0};
    action.sa_handler = note;
    action.sa_flags = flags;
    sigaction(signal, &action, NULL);
}

/* Long enough that whoever is to wait waits. */
static void let_wait(void) {
    struct timespec moment = {0, 20000000};
    while (!ready)
        sched_yield();
    while (nanosleep(&moment, &moment) != 0)
        ;
}

static void wait_handled(int count) {
    while (handled < count)
        sched_yield();
}

static int ends[2];
static uint32_t word;

static void *reads(void *unused) {
    (void)unused;
    char byte = 0;
    ready = 1;
    long got = read(ends[0], &byte, 1);
    printf("read: %ld %d\n", got, got < 0 ? errno : byte);
    return NULL;
}

static void *waits(void *unused) {
    (void)unused;
    ready = 1;
    long got = syscall(SYS_futex, &word, 0, 0, NULL, NULL, 0);
    printf("futex: %ld %s\n", got, got < 0 ? strerror(errno) : "-");
    return NULL;
}

static void *waits_limited(void *unused) {
    (void)unused;
    struct timespec long_time = {1000, 0};
    ready = 1;
    long got = syscall(SYS_futex, &word, 0, 0, &long_time, NULL, 0);
    printf("futex with a time: %ld %s\n", got, got < 0 ? strerror(errno) : "-");
    return NULL;
}

static void *sleeps(void *unused) {
    (void)unused;
    struct timespec long_time = {1000, 0}, left = {0, 0};
    ready = 1;
    int got = nanosleep(&long_time, &left);
    printf("nanosleep: %d %s, left %s\n", got, strerror(errno),
        left.tv_sec > 900 && left.tv_sec < 1000 ? "most" : "else");
    errno = clock_nanosleep(CLOCK_MONOTONIC, 0, &(struct timespec){0, 1000000}, NULL);
    printf("clock_nanosleep: %d\n", errno);
    return NULL;
}

static void *polls(void *unused) {
    (void)unused;
    ready = 1;
    long got = syscall(SYS_poll, NULL, 0, -1);
    printf("poll: %ld %s\n", got, got < 0 ? strerror(errno) : "-");
    return NULL;
}

static void *suspends(void *unused) {
    (void)unused;
    sigset_t none;
    sigemptyset(&none);
    ready = 1;
    int got = sigsuspend(&none);
    printf("sigsuspend: %d %s\n", got, strerror(errno));
    return NULL;
}

/* Says nothing unless it goes wrong: who prints first is not told. */
static void expect(int what, const char *name) {
    if (!what)
        puts(name);
}

static void fill(void) { expect(write(ends[1], "x", 1) == 1, "nothing written"); }

static void wake(void) {
    expect(syscall(SYS_futex, &word, 1, 1, NULL, NULL, 0) == 1, "nobody woken");
}

/* A thread that waits gets a signal; the handler runs in it. */
static void one(void *(*body)(void *), int flags, void (*end)(void)) {
    on(SIGUSR1, flags);
    ready = handled = 0;
    handled_by = -1;
    pthread_create(&self_of[1], NULL, body, NULL);
    let_wait();
    expect(pthread_kill(self_of[1], SIGUSR1) == 0, "no signal");
    wait_handled(1);
    if (end != NULL) {
        let_wait();
        end();
    }
    pthread_join(self_of[1], NULL);
    printf("handled by %d, %d times\n", handled_by, handled);
}

static void *takes(void *unused) {
    (void)unused;
    sigset_t set;
    siginfo_t info;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    sigaddset(&set, SIGTERM);
    for (int n = 0; n < 3; n++) {
        ready = 1;
        int got = sigwaitinfo(&set, &info);
        printf("sigwaitinfo: %d code %d\n", got, info.si_code);
    }
    return NULL;
}

static volatile int cleaned;

static void clean(void *unused) {
    (void)unused;
    cleaned++;
}

static void *cancelled(void *how) {
    pthread_cleanup_push(clean, NULL);
    ready = 1;
    if (how != NULL) {
        char byte;
        if (read(ends[0], &byte, 1) == 1)
            puts("read more than there was");
    }
    for (;;)
        sleep(1000);
    pthread_cleanup_pop(0);
    return NULL;
}

static void *tested(void *unused) {
    (void)unused;
    int old;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old);
    pthread_cleanup_push(clean, NULL);
    ready = 1;
    while (ready == 1)
        sched_yield();
    pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &old);
    pthread_testcancel();
    pthread_cleanup_pop(0);
    return "not cancelled";
}

static void cancels(void) {
    for (int n = 0; n < 2; n++) {
        void *result = NULL;
        ready = 0;
        pthread_create(&self_of[1], NULL, cancelled, n == 0 ? NULL : ends);
        let_wait();
        HOLDS(pthread_cancel(self_of[1]) == 0);
        pthread_join(self_of[1], &result);
        HOLDS(result == PTHREAD_CANCELED);
    }
    void *result = NULL;
    ready = 0;
    pthread_create(&self_of[1], NULL, tested, NULL);
    while (!ready)
        sched_yield();
    HOLDS(pthread_cancel(self_of[1]) == 0);
    ready = 2;
    pthread_join(self_of[1], &result);
    HOLDS(result == PTHREAD_CANCELED);
    printf("cleaned %d\n", cleaned);
}

static void *blocks(void *unused) {
    (void)unused;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    /* Known before pthread_create returns; its place may be another's. */
    self_of[2] = self_of[0];
    self_of[3] = pthread_self();
    /* The first thread blocks it; here it comes out. */
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    ready = 1;
    while (handled == 0)
        sched_yield();
    return NULL;
}

/* Many signals for many threads, none of them lost. */
static void *counts(void *unused) {
    (void)unused;
    sigset_t set;
    siginfo_t info;
    long sum = 0;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 1);
    for (;;) {
        /* Somebody else may have been faster. */
        if (sigwaitinfo(&set, &info) < 0)
            continue;
        if (info.si_value.sival_int < 0)
            return (void *)sum;
        sum += info.si_value.sival_int;
    }
}

static void queues(void) {
    sigset_t set;
    pthread_t all[3];
    long total = 0;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 1);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    for (int n = 0; n < 3; n++)
        pthread_create(&all[n], NULL, counts, NULL);
    for (int n = 1; n <= 300; n++) {
        union sigval value = {.sival_int = n};
        while (sigqueue(getpid(), SIGRTMIN + 1, value) != 0)
            sched_yield();
    }
    for (int n = 0; n < 3; n++) {
        union sigval value = {.sival_int = -1};
        sigqueue(getpid(), SIGRTMIN + 1, value);
    }
    for (int n = 0; n < 3; n++) {
        void *sum;
        pthread_join(all[n], &sum);
        total += (long)sum;
    }
    printf("sum of what was queued: %ld\n", total);
}

int main(void) {
    sigset_t set;
    setvbuf(stdout, NULL, _IOLBF, 0);
    self_of[0] = pthread_self();
    HOLDS(pipe(ends) == 0);
    one(reads, 0, NULL);
    one(reads, SA_RESTART, fill);
    one(waits, 0, NULL);
    one(waits, SA_RESTART, wake);
    one(waits_limited, SA_RESTART, NULL);
    one(sleeps, SA_RESTART, NULL);
    one(polls, SA_RESTART, NULL);
    one(suspends, SA_RESTART, NULL);
    cancels();

    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    ready = 0;
    pthread_create(&self_of[2], NULL, takes, NULL);
    let_wait();
    pthread_kill(self_of[2], SIGUSR2);
    let_wait();
    kill(getpid(), SIGTERM);
    let_wait();
    sigqueue(getpid(), SIGUSR2, (union sigval){0});
    pthread_join(self_of[2], NULL);

    ready = handled = 0;
    handled_by = -1;
    on(SIGUSR1, 0);
    HOLDS(kill(getpid(), SIGUSR1) == 0);
    HOLDS(handled == 0);
    pthread_create(&self_of[3], NULL, blocks, NULL);
    pthread_join(self_of[3], NULL);
    printf("handled by %d, %d times\n", handled_by, handled);
    queues();
    puts("done");
    return 0;
}
