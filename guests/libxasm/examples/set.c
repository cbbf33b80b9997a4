/*
 * set.c - two arenas whose steps belong together.
 *
 * Publishes both as one step: either both get a generation, or, while a reader
 * holds every bank of one of them, neither. Says "refused" at the fifth step
 * that was, and ends when 20 more were published after that.
 *
 *     gcc -static -O2 set.c -I../include -L<target>/guest -lxasm
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "xasm.h"

int main(void)
{
	const struct xasm_options options = { .chunk_bytes = XASM_CHUNK_4K, .nr_banks = 2 };
	const char *names[] = { "set/fluid", "set/solid" };
	const uint64_t shape[] = { 1000 };
	xasm_arena arenas[2];
	uint64_t *values[2];
	unsigned published = 0, refused = 0, after = 0;

	for (int i = 0; i < 2; i++) {
		arenas[i] = xasm_arena_create(names[i], sizeof(uint64_t) * 1000, &options);
		if (arenas[i] < 0) {
			printf("set: %s: %s\n", names[i], strerror(-arenas[i]));
			return 1;
		}
		values[i] = xasm_calloc(arenas[i], 1000, sizeof(uint64_t));
		if (!values[i] || xasm_var(arenas[i], "values", XASM_U64, 1, shape, 'C', values[i]) < 0)
			return 1;
	}
	for (uint64_t step = 1; after < 20; step++) {
		struct xasm_stats stats[2];

		for (int i = 0; i < 2; i++)
			for (int n = 0; n < 1000; n++)
				values[i][n] = step;
		int result = xasm_publish_set(arenas, 2, step, (double)step);
		if (result == 0) {
			published++;
			after += refused >= 5;
		} else if (result != -EAGAIN) {
			return 1;
		} else if (++refused == 5) {
			puts("refused");
			fflush(stdout);
		}
		if (xasm_arena_stats(arenas[0], &stats[0]) < 0 ||
		    xasm_arena_stats(arenas[1], &stats[1]) < 0)
			return 1;
		if (stats[0].generation != published || stats[1].generation != published) {
			printf("set: %u steps, generations %llu and %llu\n", published,
			       (unsigned long long)stats[0].generation,
			       (unsigned long long)stats[1].generation);
			return 1;
		}
	}
	if (xasm_publish_set(arenas, 0, 1, 0.0) != -EINVAL ||
	    xasm_publish_set((const xasm_arena[]){ arenas[0], 31 }, 2, 1, 0.0) != -ENOENT)
		return 1;
	puts("steps together");
	return 0;
}
