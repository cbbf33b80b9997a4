/*
 * threads.c - several threads write an arena while another one publishes it.
 *
 * Each of 6 writers has a chunk of its own and a row in a chunk that all share.
 * It writes both under a lock, gives way in the middle, and goes on: a publish,
 * which takes the same lock, finds whole rows only. Word N of a row of writer W
 * in its round R is R * 1000 + W * 10 + N.
 *
 *     gcc -static -O2 -pthread threads.c -I../include -L<target>/guest -lxasm
 *     ./a.out STEPS
 */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "xasm.h"

#define WRITERS 6
#define WORDS 8
#define CHUNK_WORDS (4096 / 8)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_barrier_t start;
static volatile int is_over;
static uint64_t (*chunks)[CHUNK_WORDS];

static void *writer(void *argument)
{
	const uint64_t nr = (uint64_t)argument;
	uint64_t *own = chunks[1 + nr], *shared = chunks[0] + nr * WORDS;
	uint64_t round = 0;

	pthread_barrier_wait(&start);
	while (!is_over) {
		round++;
		pthread_mutex_lock(&lock);
		for (uint64_t n = 0; n < WORDS; n++) {
			own[n] = round * 1000 + nr * 10 + n;
			if (n == WORDS / 2)
				sched_yield();
			shared[n] = own[n];
		}
		pthread_mutex_unlock(&lock);
		sched_yield();
	}
	return (void *)round;
}

int main(int argc, char **argv)
{
	const uint64_t steps = argc > 1 ? strtoull(argv[1], 0, 0) : 60;
	const struct xasm_options options = { .chunk_bytes = XASM_CHUNK_4K, .nr_banks = 4 };
	const uint64_t shape[] = { 1 + WRITERS, CHUNK_WORDS };
	pthread_t threads[WRITERS];
	uint64_t published = 0;
	xasm_arena arena = xasm_arena_create("threads", (1 + WRITERS) * 4096, &options);

	if (arena < 0) {
		printf("threads: %s\n", strerror(-arena));
		return 1;
	}
	chunks = xasm_arena_base(arena);
	if (xasm_var(arena, "rows", XASM_U64, 2, shape, 'C', chunks) < 0 ||
	    xasm_wait_readers(arena, 1, 60000) < 1)
		return 1;
	pthread_barrier_init(&start, NULL, 1 + WRITERS);
	for (uint64_t n = 0; n < WRITERS; n++)
		if (pthread_create(&threads[n], NULL, writer, (void *)n) != 0)
			return 1;
	pthread_barrier_wait(&start);
	for (uint64_t step = 1; step <= steps; step++) {
		pthread_mutex_lock(&lock);
		published += xasm_publish(arena, step, (double)step) >= 0;
		pthread_mutex_unlock(&lock);
		for (int n = 0; n < 4; n++)
			sched_yield();
	}
	is_over = 1;
	for (uint64_t n = 0; n < WRITERS; n++) {
		void *rounds;
		if (pthread_join(threads[n], &rounds) != 0 || rounds == NULL)
			return 1;
		/* What is in memory now is the writer's last round, whole. */
		for (uint64_t word = 0; word < WORDS; word++) {
			uint64_t wanted = (uint64_t)rounds * 1000 + n * 10 + word;
			if (chunks[1 + n][word] != wanted || chunks[0][n * WORDS + word] != wanted)
				return 1;
		}
	}
	printf("steps %s\n", published > 0 ? "published" : "lost");
	return 0;
}
