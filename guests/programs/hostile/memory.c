/*
 * Touches or executes memory that is not its own; must die of it, alone.
 *
 * Usage: memory null|kernel-text|kernel-hole|noncanonical|arena|text|guard|
 *               read-kernel-hole|jump-null|jump-stack|jump-kernel-hole|
 *               jump-direct-map|jump-noncanonical|stack-null|stack-kernel|recurse
 *        memory read|write|jump ADDRESS
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void store(uint64_t address)
{
    *(volatile uint64_t *)address = 0x5a5a5a5a5a5a5a5a;
}

static void jump(uint64_t address)
{
    ((void (*)(void))address)();
}

/* Makes the next push go to `address`. */
static void push_at(uint64_t address)
{
    __asm__ volatile("mov %0, %%rsp; push %%rax" : : "r"(address) : "memory");
}

static int deeper(volatile int depth)
{
    volatile char frame[4096];
    frame[0] = (char)depth;
    return deeper(depth + 1) + frame[0];
}

int main(int argc, char **argv)
{
    const char *how = argc > 1 ? argv[1] : "";
    uint64_t here = (uint64_t)&argc;
    uint64_t address = argc > 2 ? strtoull(argv[2], 0, 0) : 0;
    printf("%s\n", how);
    fflush(stdout);
    if (strcmp(how, "read") == 0)
        printf("%d\n", *(volatile char *)address);
    if (strcmp(how, "write") == 0)
        store(address);
    if (strcmp(how, "jump") == 0)
        jump(address);
    if (strcmp(how, "null") == 0)
        store(0);
    if (strcmp(how, "kernel-text") == 0)
        store(0xffffffff80201000);
    if (strcmp(how, "kernel-hole") == 0)
        store(0xffff800000000000);
    if (strcmp(how, "noncanonical") == 0)
        store((uint64_t)1 << 50);
    if (strcmp(how, "arena") == 0)
        store((uint64_t)512 << 30);
    if (strcmp(how, "text") == 0)
        store((uint64_t)main);
    if (strcmp(how, "guard") == 0)
        /* The default stack is 8 MiB; far below it there is nothing. */
        store(here - ((uint64_t)9 << 20));
    if (strcmp(how, "read-kernel-hole") == 0)
        printf("%d\n", *(volatile char *)0xffff800000000000);
    if (strcmp(how, "jump-null") == 0)
        jump(0);
    if (strcmp(how, "jump-stack") == 0)
        jump(here);
    if (strcmp(how, "jump-kernel-hole") == 0)
        jump(0xffff800000000000);
    if (strcmp(how, "jump-direct-map") == 0)
        jump(0xffff900000000000);
    if (strcmp(how, "jump-noncanonical") == 0)
        jump((uint64_t)1 << 50);
    if (strcmp(how, "stack-null") == 0)
        push_at(8);
    if (strcmp(how, "stack-kernel") == 0)
        push_at(0xffff800000000008);
    if (strcmp(how, "recurse") == 0)
        return deeper(0);
    printf("survived\n");
    return 3;
}
