/*
 * reader.c - a reader of streams that does what it is told, one command a
 * line, and answers each with one line: "ok" and numbers, or "error", the
 * negative errno, and the library's words.
 *
 *     open NAME HOW TIMEOUT_MS    ok SEGID NBYTES BANKS
 *     next TIMEOUT_MS             ok GENERATION STEP FIRST_WORD, or ok end REASON
 *     at GENERATION               ok GENERATION STEP FIRST_WORD
 *     look N                      ok GENERATION FIRST_WORD VALID of the Nth held
 *     find N NAME                 ok DTYPE NDIM ORDER SHAPE0 SHAPE1 FIRST UNIT
 *     variables N                 ok NAMES...
 *     release N                   ok; the later ones move up
 *     generations                 ok N FIRST LAST
 *     diff A B                    ok OFFSET+BYTES ...
 *     changed N SINCE             ok OFFSET+BYTES ... of the Nth held
 *     poll TIMEOUT_MS             ok 1 when the descriptor can be read, else 0
 *     counts                      ok MISSED CHUNKS_MAPPED CHUNKS_REUSED
 *     fork                        ok WORD RESULT ERRNO, seen by a child: the
 *                                 first word of the first held, and what the
 *                                 stream says
 *     threads NAME                ok N: snapshots that N threads have read, each
 *                                 by streams of its own, and given back in
 *                                 another thread
 *     close                       ok
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "xemem.h"

#define THREADS 6
#define ROUNDS 40
#define MOST_HELD 64
#define MOST_RANGES 8

static xemem_stream *stream;
static xemem_snapshot *held[MOST_HELD];
static int nr_held;

/* Says what failed, after checking that errno says the same. */
static void error(int64_t result)
{
	if (errno != -result)
		printf("error %lld but errno %d\n", (long long)result, errno);
	else
		printf("error %lld %s\n", (long long)result, xemem_error());
}

static uint64_t first_word(const xemem_snapshot *snap)
{
	struct xemem_snapshot_about about;
	uint64_t word = UINT64_MAX;

	if (xemem_snapshot_about(snap, &about) == 0 && about.nbytes >= sizeof word)
		memcpy(&word, about.data, sizeof word);
	return word;
}

static void hold(int result, xemem_snapshot *snap)
{
	struct xemem_snapshot_about about;

	if (result < 0) {
		error(result);
		return;
	}
	held[nr_held++] = snap;
	xemem_snapshot_about(snap, &about);
	printf("ok %llu %llu %llu\n", (unsigned long long)about.generation,
	       (unsigned long long)about.step, (unsigned long long)first_word(snap));
}

static void next(uint32_t timeout_ms)
{
	struct xemem_stream_about about;
	xemem_snapshot *snap = NULL;
	int result = xemem_stream_next(stream, timeout_ms, &snap);

	if (result == 0 && !snap && xemem_stream_about(stream, &about) == 0)
		printf("ok end %llu\n", (unsigned long long)about.end_reason);
	else
		hold(result, snap);
}

static void ranges(int64_t count, const struct xemem_range *list)
{
	if (count < 0) {
		error(count);
		return;
	}
	printf("ok");
	for (int64_t i = 0; i < count && i < MOST_RANGES; i++)
		printf(" %llu+%llu", (unsigned long long)list[i].offset,
		       (unsigned long long)list[i].nbytes);
	printf("\n");
}

static void find(int number, const char *name)
{
	struct xemem_variable var;
	double first;
	int result = xemem_snapshot_find(held[number], name, &var);

	if (result < 0) {
		error(result);
		return;
	}
	memcpy(&first, var.data, sizeof first);
	printf("ok %u %u %c %llu %llu %g %s\n", var.dtype, var.ndim, var.order,
	       (unsigned long long)var.shape[0], (unsigned long long)var.shape[1],
	       first, var.unit);
}

static void variables(int number)
{
	struct xemem_variable list[4];
	int count = xemem_snapshot_variables(held[number], list, 4);

	printf("ok");
	for (int i = 0; i < count && i < 4; i++)
		printf(" %s", list[i].name);
	printf("\n");
}

static void release(int number)
{
	xemem_snapshot_release(held[number]);
	nr_held--;
	memmove(&held[number], &held[number + 1],
		(size_t)(nr_held - number) * sizeof held[0]);
	printf("ok\n");
}

static void open_stream(const char *name, int how, uint32_t timeout_ms)
{
	struct xemem_stream_about about;
	int result = xemem_stream_open(name, how, timeout_ms, &stream);

	if (result < 0) {
		error(result);
		return;
	}
	xemem_stream_about(stream, &about);
	printf("ok %llu %llu %llu\n", (unsigned long long)about.segid,
	       (unsigned long long)about.nbytes, (unsigned long long)about.nr_banks);
}

static void generations(void)
{
	struct xemem_generation list[MOST_HELD];
	int count = xemem_stream_generations(stream, list, MOST_HELD);

	if (count < 0)
		error(count);
	else if (count == 0)
		printf("ok 0\n");
	else
		printf("ok %d %llu %llu\n", count,
		       (unsigned long long)list[0].generation,
		       (unsigned long long)list[count - 1].generation);
}

static void counts(void)
{
	struct xemem_stream_about about;

	xemem_stream_about(stream, &about);
	printf("ok %llu %llu %llu\n", (unsigned long long)about.missed,
	       (unsigned long long)about.chunks_mapped,
	       (unsigned long long)about.chunks_reused);
}

static void wait_for_news(int timeout_ms)
{
	struct pollfd fds = {.fd = xemem_stream_fd(stream), .events = POLLIN};

	printf("ok %d\n", poll(&fds, 1, timeout_ms));
}

static void fork_and_ask(void)
{
	xemem_snapshot *snap;
	int status;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		unsigned long long word = first_word(held[0]);
		int result = xemem_stream_next(stream, 0, &snap);

		printf("ok %llu %d %d\n", word, result, errno);
		fflush(stdout);
		/* Gives nothing of our parent's back. */
		xemem_snapshot_release(held[0]);
		xemem_stream_close(stream);
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
		printf("error 0 the child ended with %d\n", status);
}

static void *give_back(void *snap)
{
	xemem_snapshot_release(snap);
	return NULL;
}

/* Returns how many snapshots were read; fewer than ROUNDS after an error. */
static void *read_many(void *name)
{
	intptr_t count = 0;

	for (int round = 0; round < ROUNDS; round++) {
		struct xemem_snapshot_about about;
		xemem_stream *mine;
		xemem_snapshot *snap;
		pthread_t thread;

		if (xemem_stream_open(name, XEMEM_LATEST, 60000, &mine) < 0)
			break;
		if (xemem_stream_next(mine, 60000, &snap) == 1) {
			count += xemem_snapshot_about(snap, &about) == 0 &&
				 first_word(snap) == about.step &&
				 xemem_snapshot_valid(snap) == 1;
			/* The snapshot outlives its stream. */
			xemem_stream_close(mine);
			if (pthread_create(&thread, NULL, give_back, snap) == 0)
				pthread_join(thread, NULL);
		} else {
			xemem_stream_close(mine);
		}
		/* Words are each thread's own. */
		if (xemem_stream_at(NULL, 1, &snap) != -EINVAL ||
		    !strstr(xemem_error(), "NULL"))
			count = -ROUNDS;
	}
	return (void *)count;
}

static void threads(char *name)
{
	pthread_t started[THREADS];
	intptr_t sum = 0;

	for (int i = 0; i < THREADS; i++)
		pthread_create(&started[i], NULL, read_many, name);
	for (int i = 0; i < THREADS; i++) {
		void *count;

		pthread_join(started[i], &count);
		sum += (intptr_t)count;
	}
	printf("ok %ld\n", (long)sum);
}

static void obey(const char *line)
{
	struct xemem_range list[MOST_RANGES];
	unsigned long long a, b;
	char name[128];
	unsigned ms;
	int n;

	if (sscanf(line, "open %127s %d %u", name, &n, &ms) == 3)
		open_stream(name, n, ms);
	else if (sscanf(line, "next %u", &ms) == 1)
		next(ms);
	else if (sscanf(line, "at %llu", &a) == 1) {
		xemem_snapshot *snap = NULL;
		int result = xemem_stream_at(stream, a, &snap);

		hold(result, snap);
	} else if (sscanf(line, "look %d", &n) == 1) {
		struct xemem_snapshot_about about;

		xemem_snapshot_about(held[n], &about);
		printf("ok %llu %llu %d\n", (unsigned long long)about.generation,
		       (unsigned long long)first_word(held[n]),
		       xemem_snapshot_valid(held[n]));
	} else if (sscanf(line, "find %d %127s", &n, name) == 2)
		find(n, name);
	else if (sscanf(line, "variables %d", &n) == 1)
		variables(n);
	else if (sscanf(line, "release %d", &n) == 1)
		release(n);
	else if (strcmp(line, "generations\n") == 0)
		generations();
	else if (sscanf(line, "diff %llu %llu", &a, &b) == 2)
		ranges(xemem_stream_diff(stream, a, b, list, MOST_RANGES), list);
	else if (sscanf(line, "changed %d %llu", &n, &a) == 2)
		ranges(xemem_snapshot_diff(held[n], a, list, MOST_RANGES), list);
	else if (sscanf(line, "poll %d", &n) == 1)
		wait_for_news(n);
	else if (strcmp(line, "counts\n") == 0)
		counts();
	else if (strcmp(line, "fork\n") == 0)
		fork_and_ask();
	else if (sscanf(line, "threads %127s", name) == 1)
		threads(name);
	else if (strcmp(line, "close\n") == 0) {
		xemem_stream_close(stream);
		stream = NULL;
		printf("ok\n");
	} else
		printf("error 0 no such command\n");
}

int main(void)
{
	char line[256];

	while (fgets(line, sizeof line, stdin)) {
		obey(line);
		fflush(stdout);
	}
	while (nr_held > 0)
		xemem_snapshot_release(held[--nr_held]);
	xemem_stream_close(stream);
	return 0;
}
