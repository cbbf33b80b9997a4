/*
 * Threads that write an arena without any lock while another one publishes it.
 *
 * Writer W counts: it stores each number first in a chunk of its own, then in one
 * that all share, as one word with a checksum. Before a publish the publisher stores
 * how far each writer was; how far each was when the publish had returned it prints
 * at the end. So whoever reads the snapshots can tell whether each is a cut.
 *
 * Words: chunk 0 [W] shared, chunk 1 [W] how far, chunk 2 + W [0] own. A word is the
 * number and, in its upper 24 bits, its checksum.
 *
 * Usage: race STEPS
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xasm.h>

enum { WRITERS = 4, CHUNK_WORDS = 4096 / 8, MOST = 1000 };

static atomic_bool is_over;
static _Atomic uint64_t begun[WRITERS], done[WRITERS];
static uint64_t ceilings[MOST][WRITERS];
static _Atomic uint64_t (*chunks)[CHUNK_WORDS];

static uint64_t word(uint64_t writer, uint64_t number)
{
	uint64_t sum = (number * 0x9e3779b97f4a7c15u) ^ (writer + 1) * 0xc2b2ae3d27d4eb4fu;

	return (sum >> 40) << 40 | number;
}

static void *writer(void *argument)
{
	const uint64_t nr = (uint64_t)argument;

	for (uint64_t number = 1; !is_over; number++) {
		begun[nr] = number;
		chunks[2 + nr][0] = word(nr, number);
		chunks[0][nr] = word(nr, number);
		done[nr] = number;
		/* One core has to be given away; several race all the time. */
		if (number % 64 == 0)
			sched_yield();
	}
	return NULL;
}

int main(int argc, char **argv)
{
	const uint64_t steps = argc > 1 ? strtoull(argv[1], 0, 0) : 60;
	const struct xasm_options options = {
		.chunk_bytes = XASM_CHUNK_4K, .nr_banks = 4, .policy = XASM_BLOCK, .timeout_ms = 60000
	};
	const uint64_t shape[] = { 2 + WRITERS, CHUNK_WORDS };
	pthread_t threads[WRITERS];
	xasm_arena arena = xasm_arena_create("race", (2 + WRITERS) * 4096, &options);

	if (arena < 0 || steps > MOST)
		return 1;
	chunks = xasm_arena_base(arena);
	if (xasm_var(arena, "words", XASM_U64, 2, shape, 'C', chunks) < 0 ||
	    xasm_wait_readers(arena, 1, 60000) < 1)
		return 1;
	for (uint64_t n = 0; n < WRITERS; n++)
		if (pthread_create(&threads[n], NULL, writer, (void *)n) != 0)
			return 1;
	for (uint64_t step = 0; step < steps; step++) {
		for (int n = 0; n < 4; n++)
			sched_yield();
		for (uint64_t n = 0; n < WRITERS; n++)
			chunks[1][n] = done[n];
		if (xasm_publish(arena, step, (double)step) < 0)
			return 1;
		for (uint64_t n = 0; n < WRITERS; n++)
			ceilings[step][n] = begun[n];
	}
	is_over = true;
	for (uint64_t n = 0; n < WRITERS; n++)
		pthread_join(threads[n], NULL);
	for (uint64_t step = 0; step < steps; step++)
		for (uint64_t n = 0; n < WRITERS; n++)
			printf("%lu%c", ceilings[step][n], n + 1 < WRITERS ? ' ' : '\n');
	return 0;
}
