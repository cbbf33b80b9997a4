/*
 * Writes over what holds its own enclave together. A kernel in ring 3 cannot
 * keep its program from that; whoever is outside must not care.
 *
 * Usage: scribble queue-noise|queue-index|queue-kinds|queue-replies|queue-exit|
 *                 queue-booted|queue-idle|forward-noise|arena-noise|console|bounce|tables|
 *                 idt|gdt|lease|apic|everything [SEED]
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DIRECT_MAP 0xffff900000000000
#define AT(address) ((volatile unsigned char *)(DIRECT_MAP + (address)))
#define WORD(address) (*(volatile uint32_t *)(DIRECT_MAP + (address)))
#define QUAD(address) (*(volatile uint64_t *)(DIRECT_MAP + (address)))

enum {
    GDT = 0x11000, IDT = 0x12000, QUEUE = 0x14000, CONSOLE = 0x20000,
    BOUNCE = 0x100000, KERNEL = 0x200000,
    TO_HOST = QUEUE + 64, TO_GUEST = TO_HOST + 128 + 2048,
    HEAD = 0, TAIL = 64, RECORDS = 128,
};
#define DOORBELL 0xd0000000
#define LEASES 0xd0002000
#define APIC 0xfee00000

static uint64_t state = 88172645463325252;

static uint64_t noise(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static void scribble(uint64_t start, uint64_t bytes)
{
    for (uint64_t at = start; at < start + bytes; at += 8)
        QUAD(at) = noise();
}

/* Posts one record and rings. */
static void ring(uint16_t version, uint16_t kind, uint32_t seq, const uint64_t args[7])
{
    uint32_t head = WORD(TO_HOST + HEAD);
    uint64_t at = TO_HOST + RECORDS + head % 32 * 64;
    QUAD(at) = version | (uint64_t)kind << 16 | (uint64_t)seq << 32;
    for (int n = 0; n < 7; n++)
        QUAD(at + 8 + 8 * n) = args[n];
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    WORD(TO_HOST + HEAD) = head + 1;
    WORD(DOORBELL) = 1;
}

/* The same, and takes whatever was answered, so that the ring does not fill up. */
static void post(uint16_t version, uint16_t kind, uint32_t seq, const uint64_t args[7])
{
    ring(version, kind, seq, args);
    WORD(TO_GUEST + TAIL) = WORD(TO_GUEST + HEAD);
}

/* Numbers that are wrong in interesting ways. */
static uint64_t odd(void)
{
    static const uint64_t some[] = {
        0, 1, 2, 7, 31, 32, 4095, 4096, 0x100000, 0x100001, 0x7fffffff, 0x80000000,
        0xffffffff, 0x100000000, 0x7fffffffffffffff, 0x8000000000000000, -1, -4096,
        BOUNCE, KERNEL, DOORBELL, LEASES, APIC,
    };
    uint64_t r = noise();
    return r % 4 ? some[r / 4 % (sizeof some / sizeof *some)] : noise();
}

static void posts(int count, int from, int to)
{
    for (int n = 0; n < count; n++) {
        uint64_t args[7];
        for (int a = 0; a < 7; a++)
            args[a] = odd();
        uint16_t kind = to ? (uint16_t)(from + noise() % (to - from)) : (uint16_t)noise();
        /* Idle waits for a command and Panic ends it: they have their own turn. */
        if (kind == 1 || kind == 9 || (kind == 3 && from != 3))
            continue;
        post(noise() % 8 ? 1 : (uint16_t)noise(), kind, (uint32_t)noise() | 1, args);
    }
}

/* File calls with random arguments, sent past the kernel; nothing that waits. */
static void forwards(int count)
{
    for (int n = 0; n < count; n++) {
        uint64_t args[7] = {noise() % 450, odd(), odd(), odd(), odd(), odd(), odd()};
        if (args[0] == 7 || args[0] == 35 || args[0] == 0 || args[0] == 19 || args[0] == 17)
            args[0] = noise();
        if (args[0] == 1 || args[0] == 18 || args[0] == 20)
            continue;
        for (int b = 0; b < 64; b += 8)
            QUAD(BOUNCE + b) = noise();
        post(1, 5, (uint32_t)n + 1, args);
    }
}

static void arenas(int count)
{
    for (int n = 0; n < count; n++) {
        uint64_t args[7] = {noise() % 40, odd(), 0, 0, 0, 0, 0};
        scribble(BOUNCE, 128);
        if (n % 2) {
            memset((void *)AT(BOUNCE), 0, 64);
            *AT(BOUNCE) = 'a';
            QUAD(BOUNCE + 64) = n % 4 == 1 ? (uint64_t)512 << 30 : (noise() % 8) << 21;
            QUAD(BOUNCE + 72) = n % 3 ? 2 << 20 : 4096;
            QUAD(BOUNCE + 80) = noise() % 20;
            QUAD(BOUNCE + 88) = 0;
            QUAD(BOUNCE + 96) = 0xffffffff;
        }
        post(1, 6 + (uint16_t)(n % 3), (uint32_t)n + 1, args);
    }
}

static void queue(const char *how)
{
    uint64_t none[7] = {0}, exits[7] = {1, 0x2a00, 4096, 0, 0, 0, 0};
    if (strcmp(how, "queue-noise") == 0) {
        scribble(QUEUE, 8192);
        WORD(DOORBELL) = 1;
    }
    if (strcmp(how, "queue-index") == 0) {
        WORD(TO_HOST + HEAD) += 0x40000000;
        WORD(DOORBELL) = 1;
    }
    if (strcmp(how, "queue-kinds") == 0)
        posts(20000, 0, 0);
    if (strcmp(how, "queue-replies") == 0) {
        /* Never takes an answer. */
        for (int n = 0; n < 100; n++) {
            WORD(TO_HOST + HEAD) += 1;
            QUAD(TO_HOST + RECORDS + n % 32 * 64) = 1 | 99 << 16 | (uint64_t)7 << 32;
            WORD(DOORBELL) = 1;
        }
    }
    if (strcmp(how, "queue-exit") == 0)
        for (uint64_t run = 0; run < 4; run++) {
            exits[0] = run;
            post(1, 3, 0, exits);
        }
    if (strcmp(how, "queue-booted") == 0)
        /* "Booted, and the self-test failed", long after the kernel booted. */
        for (uint64_t verdict = 0; verdict < 5; verdict++) {
            exits[1] = verdict;
            post(1, 2, 0, exits);
        }
    if (strcmp(how, "queue-idle") == 0)
        ring(1, 1, 0, none);
}

int main(int argc, char **argv)
{
    const char *how = argc > 1 ? argv[1] : "";
    if (argc > 2)
        state ^= strtoull(argv[2], 0, 0) * 0x9e3779b97f4a7c15;
    printf("scribbling\n");
    fflush(stdout);
    queue(how);
    if (strcmp(how, "forward-noise") == 0)
        forwards(5000);
    if (strcmp(how, "arena-noise") == 0)
        arenas(400);
    if (strcmp(how, "console") == 0)
        for (int n = 0; n < 1000; n++) {
            scribble(CONSOLE, 64);
            WORD(DOORBELL) = 1;
        }
    if (strcmp(how, "bounce") == 0)
        scribble(BOUNCE, 0x100000);
    if (strcmp(how, "gdt") == 0)
        scribble(GDT, 4096);
    if (strcmp(how, "idt") == 0)
        scribble(IDT, 0x420);
    if (strcmp(how, "lease") == 0)
        scribble(LEASES, 4096);
    if (strcmp(how, "apic") == 0)
        for (int at = 0; at < 0x400; at += 16)
            WORD(APIC + at) = (uint32_t)noise();
    if (strcmp(how, "tables") == 0)
        /* Behind the image and in the boot tables, wherever they are. */
        scribble(KERNEL + ((uint64_t)1 << 20), (uint64_t)15 << 20);
    if (strcmp(how, "everything") == 0)
        for (uint64_t at = (uint64_t)128 << 20; at > 0; at -= 4096)
            QUAD(at - 4096 + noise() % 512 * 8) = noise();
    printf("survived\n");
    fflush(stdout);
    return 3;
}
