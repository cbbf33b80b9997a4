/*
 * Publishes the arena "lies" and writes over its control area meanwhile, which
 * a program can do where the kernel runs in ring 3. Ends with its input.
 *
 * Usage: exporter SEED
 */
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DIRECT_MAP 0xffff900000000000
#define ARENA_WINDOW 0x1000000000
#define QUAD(offset) (*(volatile uint64_t *)(DIRECT_MAP + ARENA_WINDOW + (offset)))

enum {
    CREATE = 1025, PUBLISH = 1027,
    SIZE = 1 << 20, CHUNK = 4096, CHUNKS = SIZE / CHUNK, BANKS = 4,
    GENERATIONS = 0x1000, BIRTHS = 0x12000, LOG = 0x14000, LOG_ENTRIES = 1024,
    LOG_HEAD = 72,
};

struct arena { char name[64]; uint64_t bytes, chunk; uint32_t banks, policy; uint64_t start;
               uint32_t gid, timeout, retain, zero; };

static uint64_t state = 88172645463325252;

static uint64_t noise(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

/* Small, large, and everything between. */
static uint64_t odd(void)
{
    uint64_t r = noise();
    switch (r % 5) {
    case 0: return r >> 8 & 31;
    case 1: return r | 1ULL << 63;
    case 2: return (r >> 8) % CHUNKS << 8 | (r & 15);
    case 3: return 0;
    default: return r;
    }
}

static void lie(int what)
{
    switch (what) {
    case 0: QUAD(BIRTHS + noise() % (CHUNKS * BANKS) * 8) = odd(); break;
    case 1: QUAD(LOG + noise() % LOG_ENTRIES * 8) = odd(); break;
    case 2: QUAD(LOG_HEAD) = odd(); break;
    case 3: QUAD(GENERATIONS + noise() % 512 * 8) = odd(); break;
    case 4: QUAD(noise() % 16 * 8) = odd(); break;
    default: QUAD(noise() % (BIRTHS / 8) * 8) = noise(); break;
    }
}

int main(int argc, char **argv)
{
    struct arena a = {.name = "lies", .bytes = SIZE, .chunk = CHUNK, .banks = BANKS,
                      .policy = 1, .gid = UINT32_MAX};
    struct pollfd input = {.fd = 0, .events = POLLIN};
    int seed = argc > 1 ? atoi(argv[1]) : 1;
    state ^= (uint64_t)seed * 0x9e3779b97f4a7c15;
    long slot = syscall(CREATE, &a);
    if (slot < 0)
        return 1;
    volatile char *at = (volatile char *)a.start;
    /* Some true ones first, then more and more lies. */
    for (uint64_t step = 0; poll(&input, 1, 0) == 0; step++) {
        at[noise() % SIZE] = 1;
        syscall(PUBLISH, slot, step, 0);
        for (uint64_t n = 0; step > 20 && n < step % 64; n++)
            lie(seed % 6 == 0 ? (int)(noise() % 6) : seed % 6);
    }
    return 0;
}
