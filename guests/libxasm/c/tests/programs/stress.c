/*
 * Threads write random chunks while others publish.
 *
 *     stress THREADS PUBLISHES CHUNK BYTES POLICY
 *
 * With XASM_BLOCK it waits for a line of input after each publish; the running
 * threads do not.
 *
 * Two kinds of content, which readers check (tests/linux/stress.rs):
 *
 * chunk 0     published step, then for each block its seed, by the main thread
 *             between two publishes
 * chunk 1, 2  one counter per running thread in each: a thread adds to its
 *             first, then to its second, and never stops for a publish, so in
 *             every snapshot they are equal, or the first is one ahead
 * chunk 3...  blocks: words made of a seed; written by a thread each, which
 *             have finished before the publish
 */
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "xasm.h"

#define MOST 8

static uint64_t *words;
static uint64_t chunk_words, nr_blocks;
static unsigned nr_threads;
static pthread_barrier_t barrier;
static volatile int done;

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

static void write_block(uint64_t block, uint64_t seed)
{
	uint64_t *at = words + (3 + block) * chunk_words;

	for (uint64_t i = 0; i < chunk_words; i++)
		at[i] = seed + i;
	words[1 + block] = seed;
}

/* Writes some of its blocks, then waits for the publish. */
static void *write_blocks(void *argument)
{
	uint64_t own = (uint64_t)(uintptr_t)argument, random = own + 1;

	for (;;) {
		for (int n = 0; n < 4; n++) {
			random = mix(random);
			uint64_t block = random % nr_blocks;

			block -= block % nr_threads;
			if (block + own < nr_blocks)
				write_block(block + own, random);
		}
		pthread_barrier_wait(&barrier);
		pthread_barrier_wait(&barrier);
		if (done)
			return NULL;
	}
}

/* Never waits. */
static void *run_on(void *argument)
{
	volatile uint64_t *own = words + chunk_words + (uintptr_t)argument;

	while (!done) {
		own[0] = own[0] + 1;
		__atomic_thread_fence(__ATOMIC_RELEASE);
		own[chunk_words] = own[chunk_words] + 1;
		__atomic_thread_fence(__ATOMIC_RELEASE);
		/* Others have work to do. */
		sched_yield();
	}
	return NULL;
}

int main(int argc, char **argv)
{
	if (argc != 6)
		return 2;
	nr_threads = strtoul(argv[1], NULL, 10);
	uint64_t publishes = strtoull(argv[2], NULL, 10);
	struct xasm_options options = { .chunk_bytes = strtoull(argv[3], NULL, 10),
					.policy = strtoul(argv[5], NULL, 10) };
	uint64_t bytes = strtoull(argv[4], NULL, 10);
	xasm_arena arena = xasm_arena_create("stress", bytes, &options);
	pthread_t threads[2 * MOST];
	struct xasm_stats stats;

	if (arena < 0 || nr_threads == 0 || nr_threads > MOST)
		return 3;
	words = xasm_arena_base(arena);
	chunk_words = options.chunk_bytes / 8;
	nr_blocks = bytes / options.chunk_bytes - 3;
	if (nr_blocks >= chunk_words)
		return 4;
	for (uint64_t block = 0; block < nr_blocks; block++)
		write_block(block, block);
	pthread_barrier_init(&barrier, NULL, nr_threads + 1);
	printf("ready\n");
	fflush(stdout);
	if (getchar() != '\n')
		return 5;
	for (uintptr_t i = 0; i < nr_threads; i++) {
		if (pthread_create(&threads[i], NULL, write_blocks, (void *)i) ||
		    pthread_create(&threads[MOST + i], NULL, run_on, (void *)i))
			return 6;
	}
	for (uint64_t step = 1; step <= publishes; step++) {
		pthread_barrier_wait(&barrier);
		words[0] = step;
		if (xasm_publish(arena, step, 0) != (int64_t)step)
			return 7;
		if (options.policy == XASM_BLOCK && getchar() != '\n')
			return 9;
		done = step == publishes;
		pthread_barrier_wait(&barrier);
	}
	for (unsigned i = 0; i < nr_threads; i++) {
		pthread_join(threads[i], NULL);
		pthread_join(threads[MOST + i], NULL);
	}
	if (xasm_arena_stats(arena, &stats) || stats.generation != publishes ||
	    stats.dropped)
		return 8;
	printf("copied %llu discarded %llu\n", (unsigned long long)stats.cow_faults,
	       (unsigned long long)stats.discarded);
	return 0;
}
