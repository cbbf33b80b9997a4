/*
 * locks.c - a process-shared mutex, a condition variable and a bare futex
 * inside an attached segment, each used by two processes.
 */
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>

#include "check.h"

#define TIMES 20000

struct shared {
	pthread_mutex_t mutex;
	pthread_cond_t turned;
	int turn;
	long count;
	_Atomic uint32_t word;
	_Atomic uint32_t woken;
};

static void count(struct shared *shared)
{
	for (int i = 0; i < TIMES; i++) {
		CHECK(pthread_mutex_lock(&shared->mutex) == 0);
		shared->count = shared->count + 1;
		CHECK(pthread_mutex_unlock(&shared->mutex) == 0);
	}
}

/* Waits until it is `mine`, then hands the turn over. */
static void take_turns(struct shared *shared, int mine)
{
	CHECK(pthread_mutex_lock(&shared->mutex) == 0);
	for (int i = 0; i < 200; i++) {
		while (shared->turn != mine)
			CHECK(pthread_cond_wait(&shared->turned,
						&shared->mutex) == 0);
		shared->turn = !mine;
		CHECK(pthread_cond_signal(&shared->turned) == 0);
	}
	CHECK(pthread_mutex_unlock(&shared->mutex) == 0);
}

static long futex(_Atomic uint32_t *word, int what, uint32_t value)
{
	return syscall(SYS_futex, word, what, value, NULL, NULL, 0);
}

static void import(int peer)
{
	xpmem_apid_t apid = xpmem_get(hear(peer), XPMEM_RDWR, ANY);
	struct shared *shared = attach(apid, 0, PAGE);

	CHECK(shared != FAILED);
	say(peer, 0);
	count(shared);
	take_turns(shared, 1);
	while (atomic_load(&shared->word) == 0)
		futex(&shared->word, FUTEX_WAIT, 0);
	atomic_store(&shared->woken, 1);
	say(peer, 0);
}

int main(void)
{
	pthread_mutexattr_t mutex;
	pthread_condattr_t condition;
	struct shared *shared;
	int peer;
	pid_t pid = partner(import, &peer);

	shared = (struct shared *)numbered(PAGE);
	memset(shared, 0, sizeof *shared);
	CHECK(pthread_mutexattr_init(&mutex) == 0);
	CHECK(pthread_mutexattr_setpshared(&mutex, PTHREAD_PROCESS_SHARED) == 0);
	CHECK(pthread_mutex_init(&shared->mutex, &mutex) == 0);
	CHECK(pthread_condattr_init(&condition) == 0);
	CHECK(pthread_condattr_setpshared(&condition, PTHREAD_PROCESS_SHARED) == 0);
	CHECK(pthread_cond_init(&shared->turned, &condition) == 0);
	say(peer, xpmem_make(shared, PAGE, MODE(0600)));
	CHECK(hear(peer) == 0);
	count(shared);
	take_turns(shared, 0);
	/* Only somebody who sleeps there is woken; then it was no chance. */
	while (futex(&shared->word, FUTEX_WAKE, 1) != 1)
		sched_yield();
	CHECK(atomic_load(&shared->woken) == 0);
	atomic_store(&shared->word, 1);
	futex(&shared->word, FUTEX_WAKE, 1);
	CHECK(hear(peer) == 0);
	ends_well(pid);
	CHECK(shared->count == 2L * TIMES);
	return 0;
}
