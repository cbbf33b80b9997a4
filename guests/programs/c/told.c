/*
 * Waits, in the way that is asked for, until somebody outside sends SIGTERM;
 * says what its handler was told and ends with 7. Waits that begin with the
 * signal blocked cannot miss it and go on behind the call; the others end in
 * the handler.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t told;
static int goes_on;

/* Without stdio, which a handler may not use. */
static void say(const char *text) {
    if (write(1, text, strlen(text)) < 0)
        _exit(9);
}

static void on_term(int signal, siginfo_t *info, void *context) {
    (void)context;
    say(signal == SIGTERM && info->si_code == SI_USER && info->si_pid == 0 ? "told\n" : "odd\n");
    told = 1;
    if (!goes_on)
        _exit(7);
}

static void *waits(void *unused) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    for (;;)
        pause();
    return unused;
}

int main(int argc, char **argv) {
    const char *way = argc > 1 ? argv[1] : "spin";
    struct sigaction action = {0};
    struct pollfd input = {0, POLLIN, 0};
    sigset_t term, none, waiting;
    pthread_t other;
    char byte;
    int answer = -1;
    sigemptyset(&none);
    sigemptyset(&term);
    sigemptyset(&waiting);
    sigaddset(&term, SIGTERM);
    action.sa_sigaction = on_term;
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    if (strcmp(way, "default") != 0)
        sigaction(SIGTERM, &action, NULL);
    if (strcmp(way, "ignore") == 0)
        signal(SIGTERM, SIG_IGN), signal(SIGINT, SIG_IGN);
    goes_on = strcmp(way, "block") == 0 || strcmp(way, "suspend") == 0 || strcmp(way, "ppoll") == 0;
    if (goes_on)
        sigprocmask(SIG_BLOCK, &term, NULL);
    goes_on |= strcmp(way, "spin") == 0;
    if (strcmp(way, "threads") == 0)
        pthread_create(&other, NULL, waits, NULL);
    say("ready\n");
    errno = EINTR;
    if (strcmp(way, "spin") == 0) {
        while (!told)
            ;
    } else if (strcmp(way, "suspend") == 0) {
        answer = sigsuspend(&none);
    } else if (strcmp(way, "ppoll") == 0) {
        answer = ppoll(&input, 1, NULL, &none);
    } else if (strcmp(way, "block") == 0) {
        while (!sigismember(&waiting, SIGTERM))
            sigpending(&waiting);
        say("still there\n");
        sigprocmask(SIG_UNBLOCK, &term, NULL);
    } else if (strcmp(way, "read") == 0) {
        answer = (int)read(0, &byte, 1);
    } else if (strcmp(way, "poll") == 0) {
        answer = poll(&input, 1, -1);
    } else if (strcmp(way, "pause") == 0 || strcmp(way, "threads") == 0) {
        answer = pause();
    } else {
        answer = (int)sleep(1000);
    }
    say(answer == -1 && errno == EINTR ? "interrupted\n" : "something else\n");
    return told ? 7 : 1;
}
