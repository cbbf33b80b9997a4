/*
 * Checks the clocks: monotonic never goes back and does advance, realtime is
 * within a minute of what the caller says, sleeping takes its time.
 *
 * Usage: clock SECONDS_SINCE_1970
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long long now_ns(clockid_t clock)
{
    struct timespec time;
    if (clock_gettime(clock, &time) != 0)
        return -1;
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        printf("usage: clock SECONDS_SINCE_1970\n");
        return 2;
    }
    long long first = now_ns(CLOCK_MONOTONIC), last = first;
    int back = 0;
    for (int i = 0; i < 200000; i++) {
        long long now = now_ns(CLOCK_MONOTONIC);
        back += now < last;
        last = now;
    }
    printf("monotonic: went back %d times, advanced %d\n", back, last > first);
    long long off = now_ns(CLOCK_REALTIME) / 1000000000LL - atoll(argv[1]);
    printf("realtime: within a minute %d\n", off > -60 && off < 60);
    struct timeval day;
    gettimeofday(&day, NULL);
    printf("gettimeofday: agrees %d\n", llabs(day.tv_sec - (long long)time(NULL)) <= 1);
    struct timespec nap = {0, 20000000};
    first = now_ns(CLOCK_MONOTONIC);
    int result = nanosleep(&nap, NULL);
    last = now_ns(CLOCK_MONOTONIC);
    printf("nanosleep: %d, long enough %d\n", result, last - first >= 20000000);
    /* Processor time: none of it passes asleep, and all of it while computing. */
    static const clockid_t of[] = {CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID};
    for (int i = 0; i < 2; i++) {
        struct timespec sleep = {0, 100000000};
        long long before = now_ns(of[i]);
        nanosleep(&sleep, NULL);
        long long asleep = now_ns(of[i]) - before;
        first = now_ns(CLOCK_MONOTONIC);
        before = now_ns(of[i]);
        do
            last = now_ns(CLOCK_MONOTONIC);
        while (now_ns(of[i]) - before < 20000000 && last - first < 20000000000LL);
        printf("processor time %d: none asleep %d, computing %d\n", i, asleep < 50000000,
               last - first >= 19000000 && last - first < 20000000000LL);
    }
    struct timespec resolution;
    printf("getres: %d\n", clock_getres(CLOCK_MONOTONIC, &resolution));
    printf("bad clock: %d\n", clock_gettime((clockid_t)999, &nap));
    return 0;
}
