/*
 * Timers that send signals: alarm, setitimer, timer_create. Prints only what does
 * not hang on how fast the machine is, the same on Linux and in an enclave.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t count, last_code, last_value;
static volatile pthread_t handled_by;

static void on_signal(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    count++;
    last_code = info->si_code;
    last_value = info->si_code == SI_TIMER ? info->si_value.sival_int : -1;
    handled_by = pthread_self();
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void check(const char *what, int is_so) { printf("%s: %s\n", what, is_so ? "yes" : "NO"); }

static void failed(const char *what, long answer) {
    printf("%s: %ld %s\n", what, answer, strerror(errno));
}

/* Computes, without a single call, until `wanted` signals came. */
static void spin_until(int wanted) {
    while (count < wanted) {
    }
}

static void alarms(void) {
    double start = now();
    printf("alarm before: %u\n", alarm(100));
    printf("alarm again: %u\n", alarm(1));
    check("pause is interrupted", pause() == -1 && errno == EINTR);
    check("after about a second", now() - start > 0.99 && now() - start < 30);
    printf("signals %d, from the kernel %d\n", count, last_code == SI_KERNEL);
    printf("none is left: %u\n", alarm(0));
}

static void intervals(void) {
    struct itimerval often = {{0, 2000}, {0, 2000}}, never = {{0, 0}, {0, 0}}, before;
    count = 0;
    printf("setitimer: %d\n", setitimer(ITIMER_REAL, &often, NULL));
    spin_until(20);
    check("a computing program is interrupted", count >= 20);
    getitimer(ITIMER_REAL, &before);
    check("the rest is within the interval", before.it_value.tv_sec == 0 && before.it_value.tv_usec <= 2000);
    printf("interval: %ld us\n", (long)before.it_interval.tv_usec);
    setitimer(ITIMER_REAL, &never, &before);
    printf("interval before: %ld us\n", (long)before.it_interval.tv_usec);
    int seen = count;
    usleep(20000);
    check("it has ended", count == seen);
    often.it_value.tv_usec = 1000000;
    failed("too many microseconds", setitimer(ITIMER_REAL, &often, NULL));
    failed("no such timer", setitimer(7, &never, NULL));
    /* The call is interrupted and told how much is left of it. */
    struct timespec nap = {5, 0}, rest = {0, 0};
    often = (struct itimerval){{0, 0}, {0, 50000}};
    setitimer(ITIMER_REAL, &often, NULL);
    check("nanosleep is interrupted", nanosleep(&nap, &rest) == -1 && errno == EINTR);
    check("and says what is left", rest.tv_sec == 4 || rest.tv_sec == 5);
    char byte;
    int ends[2];
    if (pipe(ends) != 0)
        exit(1);
    often = (struct itimerval){{0, 0}, {0, 50000}};
    setitimer(ITIMER_REAL, &often, NULL);
    check("read is interrupted", read(ends[0], &byte, 1) == -1 && errno == EINTR);
}

static void made(void) {
    struct sigevent event = {0};
    struct itimerspec times = {{0, 0}, {0, 1000000}}, left;
    timer_t timer, other;
    count = 0;
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = SIGRTMIN;
    event.sigev_value.sival_int = 4711;
    printf("timer_create: %d\n", timer_create(CLOCK_MONOTONIC, &event, &timer));
    printf("timer_create: %d\n", timer_create(CLOCK_REALTIME, NULL, &other));
    printf("timer_settime: %d\n", timer_settime(timer, 0, &times, NULL));
    spin_until(1);
    printf("code %d, value %d\n", last_code == SI_TIMER, last_value);
    timer_gettime(timer, &left);
    printf("left %ld %ld\n", (long)left.it_value.tv_sec, left.it_value.tv_nsec);
    /* Blocked for many periods: one signal, the others are overruns. */
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &set, NULL);
    times = (struct itimerspec){{0, 1000000}, {0, 1000000}};
    timer_settime(timer, 0, &times, NULL);
    usleep(50000);
    siginfo_t info;
    printf("sigwaitinfo: %d\n", sigwaitinfo(&set, &info) == SIGRTMIN);
    check("overruns are counted", info.si_overrun >= 10 && timer_getoverrun(timer) == info.si_overrun);
    times = (struct itimerspec){{0, 0}, {0, 0}};
    timer_settime(timer, 0, &times, &left);
    printf("interval before %ld\n", left.it_interval.tv_nsec);
    struct timespec none = {0, 0};
    while (sigtimedwait(&set, &info, &none) > 0) {
    }
    /* An absolute time that is over is due at once; waited for, not handled. */
    clock_gettime(CLOCK_MONOTONIC, &times.it_value);
    times.it_value.tv_sec -= 1;
    timer_settime(timer, TIMER_ABSTIME, &times, NULL);
    struct timespec ten = {10, 0};
    printf("sigtimedwait: %d\n", sigtimedwait(&set, &info, &ten) == SIGRTMIN);
    printf("value %d\n", info.si_value.sival_int);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    printf("delete: %d %d\n", timer_delete(timer), timer_delete(other));
    failed("deleted", syscall(SYS_timer_delete, 1));
    failed("no such clock", timer_create(99, &event, &timer));
    event.sigev_signo = 99;
    failed("no such signal", timer_create(CLOCK_MONOTONIC, &event, &timer));
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int notified;

static void on_timer(union sigval value) {
    pthread_mutex_lock(&lock);
    notified += value.sival_int;
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&lock);
}

/* The library's own thread is sent the signal. */
static void by_thread(void) {
    struct sigevent event = {0};
    struct itimerspec times = {{0, 0}, {0, 1000000}};
    timer_t timer;
    event.sigev_notify = SIGEV_THREAD;
    event.sigev_notify_function = on_timer;
    event.sigev_value.sival_int = 12;
    printf("timer_create: %d\n", timer_create(CLOCK_MONOTONIC, &event, &timer));
    timer_settime(timer, 0, &times, NULL);
    pthread_mutex_lock(&lock);
    while (notified == 0)
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    printf("notified: %d\n", notified);
    timer_delete(timer);
}

int main(int argc, char **argv) {
    struct sigaction action = {0};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO;
    if (argc > 1 && strcmp(argv[1], "die") == 0) {
        alarm(1);
        for (;;) {
        }
    }
    sigaction(SIGALRM, &action, NULL);
    sigaction(SIGRTMIN, &action, NULL);
    alarms();
    intervals();
    made();
    by_thread();
    if (argc > 1 && strcmp(argv[1], "most") == 0) {
        /* On Linux a program gets nowhere then. */
        struct itimerval flood = {{0, 1}, {0, 1}}, never = {{0, 0}, {0, 0}};
        setitimer(ITIMER_REAL, &flood, NULL);
        count = 0;
        spin_until(20);
        setitimer(ITIMER_REAL, &never, NULL);
        printf("twenty\n");
    }
    if (argc > 1 && strcmp(argv[1], "flood") == 0) {
        struct itimerval flood = {{0, 100}, {0, 100}}, never = {{0, 0}, {0, 0}};
        volatile unsigned long sum = 0;
        setitimer(ITIMER_REAL, &flood, NULL);
        for (unsigned long n = 0; n < 20000000; n++)
            sum += n;
        setitimer(ITIMER_REAL, &never, NULL);
        printf("flood: %lu\n", sum);
    }
    return 0;
}
