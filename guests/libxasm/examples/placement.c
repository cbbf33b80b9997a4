/*
 * placement.c - where copies go, and what that makes of a snapshot.
 *
 * Publishes 60 steps of an arena of 256 chunks in 4 banks. MODE is 10 times the
 * writing (0 regular: all of a quarter of the chunks in turn; 1 random: 32
 * chunks anywhere) plus the placement (XASM_IN_TURN, XASM_FIRST_FREE, XASM_PREFERRED). With the
 * last it prefers one bank for the whole arena in each step: the large units of
 * the XASM paper, decided by the program. One more is XASM_PREFERRED with a
 * policy of the program, join_neighbours(). Word 0 of a chunk is the step that
 * wrote it last. Waits for a line of input before each step.
 *
 *     gcc -static -O2 placement.c -I../include -L<target>/guest -lxasm
 *     ./a.out MODE
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "xasm.h"

#define CHUNKS 256
#define CHUNK_BYTES 4096
#define BANKS 4
#define STEPS 60
#define POLICY 3

static uint64_t random_below(uint64_t limit)
{
	static uint64_t state = 88172645463325252;

	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state % limit;
}

static void write_chunk(char *memory, uint64_t chunk, uint64_t step)
{
	memcpy(memory + chunk * CHUNK_BYTES, &step, sizeof(step));
}

/* What the policy keeps: where each chunk is, and how often it was called. */
struct known {
	char *memory;
	uint32_t banks[CHUNKS];
	uint64_t chunks, calls;
	int failures;
};

/* Wishes that the next copy of a chunk joins a neighbour: one less piece. */
static void join(struct known *known, uint64_t chunk)
{
	uint32_t own = known->banks[chunk];
	int wish = -1;

	if (chunk + 1 < CHUNKS && known->banks[chunk + 1] != own)
		wish = (int)known->banks[chunk + 1];
	if (chunk > 0 && known->banks[chunk - 1] != own)
		wish = (int)known->banks[chunk - 1];
	if (xasm_prefer(known->memory + chunk * CHUNK_BYTES, CHUNK_BYTES, wish) < 0)
		known->failures++;
}

static void join_neighbours(void *data, xasm_arena arena, const struct xasm_copied *copied,
			    uint64_t count)
{
	struct known *known = data;

	known->calls++;
	known->chunks += count;
	for (uint64_t i = 0; i < count; i++) {
		if (copied[i].chunk >= CHUNKS || copied[i].bank >= BANKS)
			known->failures++;
		else
			known->banks[copied[i].chunk] = copied[i].bank;
	}
	for (uint64_t i = 0; i < count && !known->failures; i++) {
		uint64_t chunk = copied[i].chunk;

		join(known, chunk);
		if (chunk > 0)
			join(known, chunk - 1);
		if (chunk + 1 < CHUNKS)
			join(known, chunk + 1);
	}
	if (xasm_arena_base(arena) != known->memory)
		known->failures++;
}

int main(int argc, char **argv)
{
	unsigned mode = argc > 1 ? (unsigned)atoi(argv[1]) : 0;
	const struct xasm_options options = {
		.chunk_bytes = XASM_CHUNK_4K,
		.nr_banks = BANKS,
		.policy = XASM_BLOCK,
		.placement = mode % 10 == POLICY ? XASM_PREFERRED : mode % 10,
	};
	static struct known known;
	struct xasm_options unknown = { .chunk_bytes = XASM_CHUNK_4K, .placement = 3 };
	const uint64_t shape[] = { CHUNKS, CHUNK_BYTES / 8 };

	if (xasm_arena_create("unknown", CHUNK_BYTES, &unknown) != -EINVAL)
		return 1;
	xasm_arena arena = xasm_arena_create("placed", CHUNKS * CHUNK_BYTES, &options);
	if (arena < 0) {
		printf("placement: %s\n", strerror(-arena));
		return 1;
	}
	char *memory = xasm_arena_base(arena);
	int wished = xasm_prefer(memory, 1, 0);
	known.memory = memory;
	if (xasm_set_policy(arena, mode % 10 == POLICY ? join_neighbours : NULL, &known) != wished ||
	    xasm_set_policy(arena + 1, NULL, NULL) != -ENOENT)
		return 1;
	if (wished != (options.placement == XASM_PREFERRED ? 0 : -EINVAL) ||
	    xasm_prefer(memory, 1, BANKS) != -EINVAL || xasm_prefer(memory, 1, -2) != -EINVAL ||
	    xasm_prefer(&arena, 1, 0) != -ENOENT ||
	    xasm_prefer(memory, CHUNKS * CHUNK_BYTES + 1, 0) != -EFAULT)
		return 1;
	if (options.placement == XASM_PREFERRED && xasm_prefer(memory, 1, -1) < 0)
		return 1;
	if (xasm_var(arena, "words", XASM_U64, 2, shape, 'C', memory) < 0 ||
	    xasm_wait_readers(arena, 1, 60000) < 1)
		return 1;
	for (uint64_t step = 1; step <= STEPS; step++) {
		if (getchar() != '\n')
			return 1;
		if (mode % 10 == XASM_PREFERRED &&
		    xasm_prefer(memory, CHUNKS * CHUNK_BYTES, (int)(step % BANKS)) < 0)
			return 1;
		if (mode / 10 == 0)
			for (uint64_t i = 0; i < CHUNKS / 4; i++)
				write_chunk(memory, step % 4 * (CHUNKS / 4) + i, step);
		else
			for (int i = 0; i < 32; i++)
				write_chunk(memory, random_below(CHUNKS), step);
		if (xasm_publish(arena, step, (double)step) < 0)
			return 1;
	}
	if (known.failures || known.calls != (mode % 10 == POLICY ? STEPS : 0))
		return 1;
	printf("placed, told of %llu\n", (unsigned long long)known.chunks);
	return 0;
}
