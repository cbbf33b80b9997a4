/*
 * One of several processes of an enclave.
 *
 * Usage: siblings turns ROUNDS SEED   compute a checksum, waiting in between
 *        siblings hungry              allocate until there is no more, say how
 *                                     much, and keep it until the input ends
 *        siblings intrude PID         try what may not reach another process
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* linux/futex.h, which musl does not bring. */
#define FUTEX_WAIT 0
#define FUTEX_WAKE 1
/* A call number of XASM's own, as xasm.h has them. */
#define ARENA_PUBLISH 1027

static unsigned word;

static int turns(long rounds, unsigned long sum)
{
    double product = 1;

    for (long round = 0; round < rounds; round++) {
        struct timespec pause = { 0, 1000000 };

        for (int n = 0; n < 20000; n++) {
            sum = sum * 31 + n;
            product *= 1.0000001;
        }
        word = (unsigned)sum;
        nanosleep(&pause, NULL);
        if (word != (unsigned)sum)
            return 1;
    }
    printf("%lu %.9f\n", sum, product);
    return 0;
}

static int hungry(void)
{
    const size_t piece = 1 << 20;
    size_t pieces = 0;

    while (mmap(NULL, piece, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED)
        pieces++;
    printf("%zu MiB, %s\n", pieces, errno == ENOMEM ? "ENOMEM" : "another error");
    fflush(stdout);
    while (getchar() != EOF)
        ;
    return 0;
}

static void said(const char *what, long answer)
{
    printf("%s: %s\n", what, answer >= 0 ? "done" : strerror(errno));
}

static int intrude(int other)
{
    struct timespec soon = { 0, 1000000 };

    said("kill", kill(other, SIGKILL));
    said("tgkill", syscall(SYS_tgkill, other, other, SIGKILL));
    said("affinity", syscall(SYS_sched_getaffinity, other, 8, &word));
    said("prlimit", syscall(SYS_prlimit64, other, 0, NULL, NULL));
    /* The same address in the other process has nothing to do with this one. */
    word = 5;
    printf("woken: %ld\n", syscall(SYS_futex, &word, FUTEX_WAKE, 1000, NULL, NULL, 0));
    said("futex", syscall(SYS_futex, &word, FUTEX_WAIT, 5, &soon, NULL, 0));
    for (unsigned long slot = 0; slot < 16; slot++)
        if (syscall(ARENA_PUBLISH, slot, 1, 0) >= 0)
            printf("arena %lu: published\n", slot);
    fflush(stdout);
    /* Where its arena would be. */
    *(volatile char *)0x200000000000 = 1;
    return 0;
}

int main(int argc, char **argv)
{
    printf("process %d\n", getpid());
    fflush(stdout);
    if (argc == 4 && strcmp(argv[1], "turns") == 0)
        return turns(atol(argv[2]), strtoul(argv[3], NULL, 10));
    if (argc == 2 && strcmp(argv[1], "hungry") == 0)
        return hungry();
    if (argc == 3 && strcmp(argv[1], "intrude") == 0)
        return intrude(atoi(argv[2]));
    return 2;
}
