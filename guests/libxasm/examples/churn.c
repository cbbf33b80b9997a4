/*
 * churn.c - allocations that come and go in an arena, checked.
 *
 * Allocates, resizes and frees at random for STEPS steps, checks what every
 * allocation holds, and publishes
 * with each step a table of what is live: offset, words and seed of every
 * allocation, whose word i holds seed + i. A reader checks all of it.
 *
 *     gcc -static -O2 churn.c -I../include -L<target>/guest -lxasm
 *     ./a.out [STEPS]
 *
 * Ends with the number of the line that failed on standard error.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "xasm.h"

#define SLOTS 64
#define ARENA_BYTES (UINT64_C(4) << 20)

#define CHECK(condition)                                              \
	do {                                                          \
		if (!(condition)) {                                   \
			fprintf(stderr, "churn: line %d\n", __LINE__); \
			exit(1);                                      \
		}                                                     \
	} while (0)

struct row {
	uint64_t offset, words, seed;
};

static xasm_arena arena;
static uint64_t *live[SLOTS];
static struct row *table; /* in the arena */

static uint64_t random_below(uint64_t limit)
{
	static uint64_t state = 88172645463325252;

	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state % limit;
}

static void fill(unsigned slot, uint64_t words, uint64_t seed)
{
	for (uint64_t i = 0; i < words; i++)
		live[slot][i] = seed + i;
	table[slot].offset = (uint64_t)((char *)live[slot] - (char *)xasm_arena_base(arena));
	table[slot].words = words;
	table[slot].seed = seed;
}

static void check(unsigned slot, uint64_t words)
{
	for (uint64_t i = 0; i < words; i++)
		CHECK(live[slot][i] == table[slot].seed + i);
}

/* One random change of one slot. */
static void change(uint64_t seed)
{
	unsigned slot = (unsigned)random_below(SLOTS);
	uint64_t words = 1 + random_below(UINT64_C(1) << random_below(12));
	uint64_t kept = table[slot].words < words ? table[slot].words : words;

	if (!live[slot]) {
		switch (random_below(3)) {
		case 0:
			live[slot] = xasm_malloc(arena, words * 8);
			break;
		case 1:
			live[slot] = xasm_aligned_alloc(arena, 4096, words * 8);
			CHECK((uintptr_t)live[slot] % 4096 == 0);
			break;
		default:
			live[slot] = xasm_calloc(arena, words, 8);
			for (uint64_t i = 0; live[slot] && i < words; i++)
				CHECK(live[slot][i] == 0);
		}
		CHECK(live[slot] && xasm_usable_size(live[slot]) >= words * 8);
		CHECK((uintptr_t)live[slot] % 64 == 0 && xasm_arena_find(live[slot]) == arena);
		fill(slot, words, seed);
	} else if (random_below(3) == 0) {
		live[slot] = xasm_realloc(arena, live[slot], words * 8);
		CHECK(live[slot]);
		check(slot, kept);
		fill(slot, words, seed);
	} else {
		check(slot, table[slot].words);
		CHECK(xasm_free(live[slot]) == 0);
		live[slot] = NULL;
		table[slot].words = 0;
	}
}

/* What is refused, and leaves everything as it was. */
static void mistakes(void)
{
	char *place = xasm_malloc(arena, 1000);
	struct xasm_usage before, after;
	void *none = &before;
	uint64_t own = 0;

	CHECK(place && xasm_heap_usage(arena, &before) == 0);
	CHECK(xasm_free(place + 64) == -EINVAL);
	CHECK(xasm_free(place + 1) == -EINVAL);
	CHECK(xasm_free(&own) == -ENOENT);
	CHECK(xasm_free((void *)8) == -ENOENT);
	CHECK(xasm_realloc(arena, place + 64, 8) == NULL);
	CHECK(xasm_realloc(arena, &own, 8) == NULL);
	CHECK(xasm_realloc(arena, place, ARENA_BYTES) == NULL);
	CHECK(xasm_malloc(arena, UINT64_MAX) == NULL);
	CHECK(xasm_malloc(arena, ARENA_BYTES + 1) == NULL);
	CHECK(xasm_calloc(arena, UINT64_C(1) << 33, UINT64_C(1) << 33) == NULL);
	CHECK(xasm_aligned_alloc(arena, 48, 8) == NULL);
	CHECK(xasm_aligned_alloc(arena, UINT64_C(1) << 63, 8) == NULL);
	CHECK(xasm_allocate(arena, UINT64_MAX, 64, &none) == -ENOMEM && none == &before);
	CHECK(xasm_allocate(arena, 8, 48, &none) == -EINVAL);
	CHECK(xasm_allocate(arena + 7, 8, 64, &none) == -ENOENT);
	CHECK(xasm_heap_usage(arena, &after) == 0);
	CHECK(memcmp(&before, &after, sizeof(before)) == 0);
	CHECK(xasm_free(place) == 0 && xasm_free(place) == -EINVAL);
	CHECK(xasm_free(NULL) == 0);
}

/* Allocating and freeing stores nothing in the arena: no chunk is copied. */
static void books_are_elsewhere(void)
{
	struct xasm_stats before, after;
	void *places[200];

	CHECK(xasm_publish(arena, 0, 0.0) > 0);
	CHECK(xasm_arena_stats(arena, &before) == 0);
	for (int i = 0; i < 200; i++)
		CHECK((places[i] = xasm_malloc(arena, 1 + random_below(9000))));
	for (int i = 0; i < 200; i++)
		CHECK(xasm_free(places[i * 7 % 200]) == 0);
	CHECK(xasm_arena_stats(arena, &after) == 0);
	CHECK(before.cow_faults == after.cow_faults);
}

int main(int argc, char **argv)
{
	unsigned long steps = argc > 1 ? strtoul(argv[1], NULL, 10) : 100;
	const struct xasm_options options = { .chunk_bytes = XASM_CHUNK_4K, .policy = XASM_BLOCK };
	uint64_t shape[] = { SLOTS, 3 };
	struct xasm_usage usage;

	arena = xasm_arena_create("churn", ARENA_BYTES, &options);
	if (arena < 0) {
		fprintf(stderr, "churn: no arena: %s\n", strerror(-arena));
		return 1;
	}
	CHECK((table = xasm_calloc(arena, SLOTS, sizeof(*table))));
	CHECK(xasm_var(arena, "table", XASM_U64, 2, shape, 'C', table) >= 0);
	mistakes();
	books_are_elsewhere();
	for (unsigned long step = 1; step <= steps; step++) {
		for (int i = 0; i < 20; i++)
			change(step << 32 | (uint64_t)i << 16);
		CHECK(xasm_publish(arena, step, (double)step) > 0);
	}
	for (unsigned slot = 0; slot < SLOTS; slot++) {
		check(slot, table[slot].words);
		CHECK(xasm_free(live[slot]) == 0);
	}
	CHECK(xasm_free(table) == 0);
	CHECK(xasm_heap_usage(arena, &usage) == 0);
	CHECK(usage.used == 0 && usage.blocks == 0 && usage.largest_free == ARENA_BYTES);
	printf("steps %lu  peak %llu\n", steps, (unsigned long long)usage.peak);
	return 0;
}
