/*
 * crowd.c - 32 importers at once, each with threads that get, attach, check,
 * store, detach and release, while everybody uses the heap. What is on a heap
 * page beside a segment must not suffer.
 */
#include <pthread.h>

#include "check.h"

#define CLIENTS 32
#define ROUNDS 12
#define THREADS 2
#define BYTES (16 * PAGE)

static xpmem_segid_t segid;
static int64_t who;

/* Blocks of all sizes with a mark in each, given back in another order. */
static void use_the_heap(unsigned seed)
{
	unsigned char *blocks[64];
	size_t sizes[64];

	for (int i = 0; i < 64; i++) {
		seed = seed * 1103515245 + 12345;
		sizes[i] = 1 + seed / 65536 % 9000;
		blocks[i] = malloc(sizes[i]);
		CHECK(blocks[i] != NULL);
		memset(blocks[i], i, sizes[i]);
	}
	for (int i = 0; i < 64; i++) {
		int block = i * 29 % 64;

		for (size_t at = 0; at < sizes[block]; at++)
			CHECK(blocks[block][at] == block);
		free(blocks[block]);
	}
}

static void *rounds(void *thread)
{
	size_t mine = (who * THREADS + (intptr_t)thread) + 1;

	for (int round = 0; round < ROUNDS; round++) {
		xpmem_apid_t apid = xpmem_get(segid, XPMEM_RDWR, ANY);
		uint64_t *seen;

		CHECK(apid > 0);
		seen = attach(apid, 0, BYTES);
		CHECK(seen != FAILED);
		CHECK(seen[1000] == 1000 && seen[BYTES / 8 - 1] == BYTES / 8 - 1);
		CHECK(seen[mine] == mine + round);
		seen[mine] = mine + round + 1;
		use_the_heap(mine * 7 + round);
		if (round % 2 == 0)
			CHECK(xpmem_detach(seen) == 0);
		CHECK(xpmem_release(apid) == 0);
	}
	return NULL;
}

static void client(int peer)
{
	pthread_t threads[THREADS];

	who = hear(peer);
	segid = hear(peer);
	for (intptr_t i = 0; i < THREADS; i++)
		CHECK(pthread_create(&threads[i], NULL, rounds, (void *)i) == 0);
	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
	say(peer, 0);
}

int main(void)
{
	pid_t pids[CLIENTS];
	int peers[CLIENTS];
	char *block, *before, *after;
	uint64_t *memory;

	for (int i = 0; i < CLIENTS; i++)
		pids[i] = partner(client, &peers[i]);
	/* Pages in the middle of the heap, with neighbours on either side. */
	before = malloc(100);
	block = malloc(BYTES + 2 * PAGE);
	after = malloc(100);
	CHECK(before != NULL && block != NULL && after != NULL);
	memset(before, 'b', 100);
	memset(after, 'a', 100);
	memory = (uint64_t *)(((uintptr_t)block + PAGE - 1) & -PAGE);
	for (size_t i = 0; i < BYTES / sizeof *memory; i++)
		memory[i] = i;
	segid = xpmem_make(memory, BYTES, MODE(0600));
	CHECK(segid > 0);
	for (int i = 0; i < CLIENTS; i++) {
		say(peers[i], i);
		say(peers[i], segid);
	}
	for (int round = 0; round < ROUNDS; round++)
		use_the_heap(round);
	for (int i = 0; i < CLIENTS; i++) {
		CHECK(hear(peers[i]) == 0);
		ends_well(pids[i]);
	}
	for (size_t i = 1; i <= CLIENTS * THREADS; i++)
		CHECK(memory[i] == i + ROUNDS);
	for (int i = 0; i < 100; i++)
		CHECK(before[i] == 'b' && after[i] == 'a');
	CHECK(xpmem_remove(segid) == 0);
	free(block);
	free(before);
	free(after);
	use_the_heap(1);
	return 0;
}
