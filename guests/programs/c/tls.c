/*
 * Thread-local variables of the first thread: initialised, zero, aligned,
 * large, and errno among them.
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static __thread int initialised = 42;
static __thread long zero;
static __thread char aligned[64] __attribute__((aligned(64))) = "aligned text";
static __thread double large[10000];
static __thread const char *pointer = "pointer to text";

/* Not inlined, so that the address is computed anew. */
static int __attribute__((noinline)) count_up(void)
{
    return ++initialised;
}

int main(void)
{
    printf("initialised %d zero %ld\n", initialised, zero);
    printf("aligned %d %s\n", ((uintptr_t)aligned & 63) == 0, aligned);
    printf("pointer %s\n", pointer);
    int zeros = 1;
    for (int i = 0; i < 10000; i++)
        zeros &= large[i] == 0.0;
    memset(large, 1, sizeof large);
    zero = -5;
    printf("zeros %d, counted %d, kept %ld %s\n", zeros, count_up(), zero, aligned);
    errno = 0;
    int result = close(-1);
    printf("errno %d %s\n", result, strerror(errno));
    return 0;
}
