/*
 * What any C program uses first: formatted output, the heap from 100 bytes to
 * 64 MiB, sorting, string functions with vector variants, setjmp, environment.
 *
 * Usage: hello [EXIT_CODE]
 */
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t state = 88172645463325252u;

/* xorshift64: the same sequence everywhere. */
static uint64_t next_random(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static uint64_t checksum(const unsigned char *bytes, size_t count)
{
    uint64_t sum = 14695981039346656037u;
    for (size_t i = 0; i < count; i++)
        sum = (sum ^ bytes[i]) * 1099511628211u;
    return sum;
}

static void print_numbers(void)
{
    printf("third %.17g tenth %.17g tiny %.17g huge %.17g\n", 1.0 / 3.0, 0.1,
           5e-324, 1.7976931348623157e308);
    printf("long double %.20Lg\n", 1.0L / 3.0L);
    printf("hex float %a width [%*d] [%-8s] [%+.3e]\n", 1.5, 7, 42, "left", -12345.678);
    printf("integers %lld %llu %#x %o\n", (long long)INT64_MIN,
           (unsigned long long)UINT64_MAX, 0xbeefu, 8u);
}

/* Every block keeps what was written to it while others come and go. */
static int use_heap(void)
{
    enum { BLOCKS = 200 };
    unsigned char *block[BLOCKS] = {0};
    size_t size[BLOCKS] = {0};
    for (int round = 0; round < 4000; round++) {
        int at = (int)(next_random() % BLOCKS);
        for (size_t i = 0; i < size[at]; i++)
            if (block[at][i] != (unsigned char)at)
                return 1;
        size_t bytes = 100 + next_random() % 20000;
        if (next_random() % 3 == 0) {
            free(block[at]);
            block[at] = NULL;
            size[at] = 0;
            continue;
        }
        block[at] = realloc(block[at], bytes);
        if (!block[at])
            return 2;
        memset(block[at], at, bytes);
        size[at] = bytes;
    }
    for (int at = 0; at < BLOCKS; at++)
        free(block[at]);
    for (size_t bytes = 100; bytes <= (64u << 20); bytes *= 8) {
        unsigned char *big = calloc(1, bytes);
        if (!big)
            return 3;
        for (size_t i = 0; i < bytes; i += 4093) {
            if (big[i] != 0)
                return 4;
            big[i] = (unsigned char)i;
        }
        big = realloc(big, bytes + bytes / 2);
        if (!big)
            return 5;
        for (size_t i = 0; i < bytes; i += 4093)
            if (big[i] != (unsigned char)i)
                return 6;
        free(big);
    }
    void *largest = malloc(64u << 20);
    if (!largest)
        return 7;
    memset(largest, 1, 64u << 20);
    free(largest);
    return 0;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void sort_numbers(void)
{
    enum { COUNT = 50000 };
    static uint64_t numbers[COUNT];
    for (int i = 0; i < COUNT; i++)
        numbers[i] = next_random();
    qsort(numbers, COUNT, sizeof numbers[0], compare);
    int sorted = 1;
    for (int i = 1; i < COUNT; i++)
        sorted &= numbers[i - 1] <= numbers[i];
    printf("sorted %d first %llu last %llu\n", sorted, (unsigned long long)numbers[0],
           (unsigned long long)numbers[COUNT - 1]);
}

/* Sizes around the limits at which C libraries change their method. */
static void use_strings(void)
{
    enum { BYTES = 1 << 20 };
    unsigned char *from = malloc(BYTES + 64), *to = malloc(BYTES + 64);
    if (!from || !to)
        exit(90);
    for (int i = 0; i < BYTES + 64; i++)
        from[i] = (unsigned char)next_random();
    for (size_t bytes = 1; bytes <= BYTES; bytes = bytes * 3 + 1) {
        memset(to, 0, bytes);
        memcpy(to + bytes % 7, from + bytes % 13, bytes);
        if (memcmp(to + bytes % 7, from + bytes % 13, bytes) != 0)
            exit(91);
        memmove(to + 5, to, bytes);
    }
    printf("copied %016llx\n", (unsigned long long)checksum(to, BYTES));
    char *text = (char *)to;
    memset(text, 'x', BYTES);
    memcpy(text + BYTES - 20, "a needle in hay", 16);
    printf("found at %ld, not at %d, length %zu\n", (long)(strstr(text, "needle") - text),
           strstr(text, "noodle") != NULL, strlen(text));
    printf("last x at %ld, hay at %zu\n", (long)(strrchr(text, 'x') - text),
           strcspn(text, "h"));
    free(from);
    free(to);
}

static jmp_buf back;

static void jump(int depth)
{
    if (depth == 0)
        longjmp(back, 7);
    jump(depth - 1);
}

int main(int argc, char **argv)
{
    printf("hello, world\n");
    print_numbers();
    printf("heap %d\n", use_heap());
    sort_numbers();
    use_strings();
    volatile int before = 3;
    int value = setjmp(back);
    if (value == 0) {
        before = 4;
        jump(20);
    }
    printf("jumped %d, kept %d\n", value, before);
    const char *set = getenv("PROGRAM_TEST");
    printf("environment %s, unset %s\n", set ? set : "(none)",
           getenv("SURELY_NOT_SET") ? "set" : "(none)");
    return argc > 1 ? atoi(argv[1]) : 0;
}
