/*
 * Dies of a fault, chosen by its argument; the enclave must survive it.
 *
 * Usage: segv [null|code|jump|stack|wild|divide|ud2]
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static char data[4096];

/* Volatile and used after the call, so that no compiler makes it a loop. */
static int deeper(volatile int depth)
{
    volatile char frame[512];
    frame[0] = (char)depth;
    return deeper(depth + 1) + frame[0];
}

int main(int argc, char **argv)
{
    const char *how = argc > 1 ? argv[1] : "null";
    printf("fault: %s\n", how);
    fflush(stdout);
    if (strcmp(how, "null") == 0)
        *(volatile int *)(uintptr_t)(argc - argc) = 1;
    if (strcmp(how, "code") == 0)
        *(volatile char *)(uintptr_t)main = 0x90;
    if (strcmp(how, "jump") == 0) {
        data[0] = (char)0xc3;
        ((void (*)(void))(uintptr_t)data)();
    }
    if (strcmp(how, "stack") == 0)
        return deeper(0);
    if (strcmp(how, "divide") == 0) {
        volatile int zero = 0;
        return 7 / zero;
    }
    if (strcmp(how, "ud2") == 0)
        __asm__ volatile("ud2");
    if (strcmp(how, "wild") == 0)
        *(volatile char *)(uintptr_t)0x8000000000000000u = 1;
    printf("survived\n");
    return 3;
}
