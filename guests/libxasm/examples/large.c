/*
 * large.c - an arena of several GiB of which little is written in each step.
 *
 * Writes one word to each of 64 places in the arena MEGABYTES large, the last one
 * its very last word, and publishes, for some steps. Readers see word i of step
 * s as s * 1000 + i.
 *
 *     gcc -static -O2 large.c -I../include -L<target>/guest -lxasm
 *     ./a.out MEGABYTES
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "xasm.h"

#define PLACES 64
#define STEPS 5

int main(int argc, char **argv)
{
	uint64_t bytes = argc > 1 ? strtoull(argv[1], NULL, 10) << 20 : 0;
	const struct xasm_options options = { .nr_banks = 2, .policy = XASM_BLOCK };
	struct xasm_stats stats;

	xasm_arena arena = xasm_arena_create("large", bytes, &options);
	if (arena < 0) {
		printf("large: no arena of %s MiB: %s\n", argv[1], strerror(-arena));
		return 1;
	}
	char *memory = xasm_malloc(arena, bytes);
	if (!memory || xasm_malloc(arena, 1)) {
		printf("large: the arena is not %llu bytes\n", (unsigned long long)bytes);
		return 1;
	}
	uint64_t words = bytes / 8;
	if (xasm_var(arena, "words", XASM_U64, 1, &words, 'C', memory) < 0)
		return 1;
	for (uint64_t step = 1; step <= STEPS; step++) {
		for (uint64_t i = 0; i < PLACES; i++) {
			uint64_t word = i == PLACES - 1 ? words - 1 : i * (words / PLACES);

			((uint64_t *)memory)[word] = step * 1000 + i;
		}
		int64_t generation = xasm_publish(arena, step, (double)step);
		if (generation < 0) {
			printf("large: step %llu: %s\n", (unsigned long long)step,
			       strerror((int)-generation));
			return 1;
		}
	}
	if (xasm_arena_stats(arena, &stats) < 0)
		return 1;
	printf("published %llu  copied %llu\n", (unsigned long long)stats.generation,
	       (unsigned long long)stats.cow_faults);
	return 0;
}
