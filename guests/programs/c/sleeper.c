/*
 * Waits for SIGUSR1, says so, and ends with the code that it was given.
 *
 * Usage: sleeper CODE
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    sigset_t set;
    int signal;

    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    sigwait(&set, &signal);
    printf("woken by %d\n", signal);
    return argc > 1 ? atoi(argv[1]) : 0;
}
