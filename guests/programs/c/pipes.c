/* Threads of one program at both ends of a pipe, and one that polls. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS = 200 };

static int there[2], back[2];

static void *echo(void *argument)
{
    char line[32];
    ssize_t got;
    while ((got = read(there[0], line, sizeof line)) > 0)
        if (write(back[1], line, (size_t)got) != got)
            return NULL;
    close(back[1]);
    return argument;
}

static void *late(void *argument)
{
    struct timespec pause = {0, 20000000};
    nanosleep(&pause, NULL);
    write(there[1], "late", 4);
    return argument;
}

int main(void)
{
    pthread_t thread;
    long sum = 0;
    char line[32];
    if (pipe(there) != 0 || pipe(back) != 0)
        return 1;
    pthread_create(&thread, NULL, echo, &sum);
    for (int n = 0; n < ROUNDS; n++) {
        int len = snprintf(line, sizeof line, "%d", n);
        if (write(there[1], line, (size_t)len) != len)
            return 1;
        ssize_t got = read(back[0], line, sizeof line - 1);
        if (got != len)
            return 1;
        line[got] = 0;
        sum += strtol(line, NULL, 10);
    }
    printf("%d lines came back, sum %ld\n", ROUNDS, sum);
    close(there[1]);
    pthread_join(thread, NULL);
    printf("the end comes through: %zd\n", read(back[0], line, 1));

    if (pipe(there) != 0)
        return 1;
    struct pollfd ready = {there[0], POLLIN, 0};
    printf("nothing in 5 ms: %d\n", poll(&ready, 1, 5));
    pthread_create(&thread, NULL, late, NULL);
    printf("something at last: %d\n", poll(&ready, 1, 60000));
    printf("read: %zd\n", read(there[0], line, sizeof line));
    pthread_join(thread, NULL);
    pthread_create(&thread, NULL, late, NULL);
    fcntl(there[0], F_SETFL, O_NONBLOCK);
    ssize_t got = read(there[0], line, sizeof line);
    printf("without waiting: %zd %s\n", got, strerror(errno));
    pthread_join(thread, NULL);
    return 0;
}
