/*
 * verbs.c - XEMEM's verbs between processes: a segment made by libxpmem, got,
 * attached, signalled and waited for by libxemem; and an arena attached by the
 * same verbs if one is named.
 *
 *     verbs [ARENA]
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "xemem.h"
#include "xpmem.h"

#define PAGE 4096UL
#define FAILED ((void *)-1)

#define CHECK(what)                                                          \
	do {                                                                 \
		if (!(what)) {                                               \
			int seen = errno;                                    \
			fprintf(stderr, "%s:%d: %s (errno %d, %s)\n",        \
				__FILE__, __LINE__, #what, seen,             \
				xemem_error());                              \
			_exit(1);                                            \
		}                                                            \
	} while (0)

/* The call fails with this, and errno says the same. */
#define FAILS(call, number)                                                  \
	do {                                                                 \
		errno = 0;                                                   \
		CHECK((int64_t)(call) == -(number) && errno == (number));    \
		CHECK(xemem_error()[0] != 0);                                \
	} while (0)

static void *at(int64_t apid, uint64_t offset, uint64_t size)
{
	struct xemem_addr addr = {apid, offset};

	return xemem_attach(addr, size, NULL);
}

/* An apid of our parent is none of ours; we get one of our own. */
static void child(int64_t segid, int64_t parents, volatile uint64_t *inherited)
{
	int64_t apid;
	uint64_t *mine;

	FAILS(xemem_release(parents), EBADF);
	CHECK(inherited[0] == 7);
	apid = xemem_get(segid, XEMEM_RDWR);
	CHECK(apid > 0);
	mine = at(apid, 0, 0);
	CHECK(mine != FAILED && mine[0] == 7);
	mine[1] = 8;
	CHECK(xemem_release(apid) == 0);
	_exit(0);
}

static void plain(void)
{
	uint64_t *memory = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int64_t segid, apid, reader;
	uint64_t *all, *second;
	int status;
	pid_t pid;

	CHECK(memory != MAP_FAILED);
	segid = xpmem_make(memory, 2 * PAGE, XPMEM_PERMIT_MODE, (void *)0600);
	CHECK(segid > 0);
	FAILS(xemem_get(segid, 0), EINVAL);
	FAILS(xemem_get(segid, XEMEM_RDONLY | XEMEM_RDWR), EINVAL);
	FAILS(xemem_get(0, XEMEM_RDONLY), EINVAL);
	FAILS(xemem_get(segid + 1000, XEMEM_RDONLY), ENOENT);
	apid = xemem_get(segid, XEMEM_RDWR);
	reader = xemem_get(segid, XEMEM_RDONLY);
	CHECK(apid > 0 && reader > 0 && reader != apid);
	all = at(apid, 0, 0);
	second = at(reader, PAGE, 0);
	CHECK(all != FAILED && second != FAILED);
	memory[0] = 7;
	memory[PAGE / 8] = 9;
	CHECK(all[0] == 7 && second[0] == 9);
	CHECK(at(apid, 2 * PAGE, 0) == FAILED && errno == EINVAL);
	CHECK(at(apid, 8, PAGE) == FAILED && errno == EINVAL);
	CHECK(at(apid, 0, 3 * PAGE) == FAILED && errno == EINVAL);
	CHECK(at(4711, 0, 0) == FAILED && errno == EBADF);
	/* Not made for signals. */
	FAILS(xemem_signal(apid), EACCES);
	FAILS(xemem_wait(apid, 0), EACCES);
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0)
		child(segid, apid, all);
	CHECK(waitpid(pid, &status, 0) == pid && status == 0);
	CHECK(memory[1] == 8);
	CHECK(xemem_detach(second) == 0 && xemem_detach(second) == 0);
	CHECK(xemem_release(reader) == 0);
	FAILS(xemem_release(reader), EBADF);
	CHECK(xpmem_remove(segid) == 0);
	/* What is mapped stays; it cannot be attached any more. */
	CHECK(all[0] == 7);
	CHECK(at(apid, 0, 0) == FAILED && errno == EIDRM);
	CHECK(xemem_release(apid) == 0);
}

static void *wait_in_thread(void *apid)
{
	return (void *)(intptr_t)xemem_wait(*(int64_t *)apid, 60000);
}

/* Two subscribers of a bell that the test has made. */
static void signals(void)
{
	int64_t segid = xemem_lookup("bell", 60000);
	int64_t one, two;
	struct pollfd fds = {.events = POLLIN};
	pthread_t thread;
	void *got;

	CHECK(segid > 0 && segid == xemem_lookup_segid("bell"));
	one = xemem_get(segid, XEMEM_RDONLY);
	two = xemem_get(segid, XEMEM_RDONLY);
	CHECK(one > 0 && two > 0);
	fds.fd = xemem_subscribe(one);
	CHECK(fds.fd >= 0 && fds.fd == xemem_subscribe(one));
	CHECK(poll(&fds, 1, 0) == 0);
	FAILS(xemem_wait(one, 0), ETIMEDOUT);
	CHECK(xemem_signal(two) == 0 && xemem_signal(two) == 0);
	CHECK(poll(&fds, 1, 60000) == 1);
	CHECK(xemem_wait(one, 60000) == 2);
	/* The waiting thread keeps nobody from anything. */
	CHECK(pthread_create(&thread, NULL, wait_in_thread, &one) == 0);
	CHECK(xemem_signal(two) == 0);
	CHECK(pthread_join(thread, &got) == 0 && (intptr_t)got == 1);
	/* From outside it reaches both, subscribed or not. */
	CHECK(xemem_signal_segid(segid) == 0);
	CHECK(xemem_wait(one, 60000) == 1);
	FAILS(xemem_signal_segid(0), EINVAL);
	FAILS(xemem_signal_segid(segid + 1000), ENOENT);
	puts("rung");
	fflush(stdout);
	/* Our input ends when the bell has. */
	CHECK(getchar() == EOF);
	CHECK(xemem_wait(one, 60000) == 0);
	FAILS(xemem_signal(two), EIDRM);
}

static void arena(const char *name)
{
	int64_t segid = xemem_lookup(name, 60000);
	int64_t apid;
	const uint64_t *word;

	CHECK(segid > 0);
	FAILS(xemem_get(segid, XEMEM_RDWR), EACCES);
	apid = xemem_get(segid, XEMEM_RDONLY);
	CHECK(apid > 0);
	CHECK(at(apid, PAGE, 0) == FAILED && errno == EINVAL);
	word = at(apid, 0, 0);
	CHECK(word != FAILED);
	printf("%llu\n", (unsigned long long)*word);
	FAILS(xemem_signal(apid), EINVAL);
	CHECK(xemem_release(apid) == 0);
}

int main(int argc, char **argv)
{
	FAILS(xemem_lookup_segid(NULL), EINVAL);
	FAILS(xemem_lookup_segid("\xff"), EINVAL);
	FAILS(xemem_lookup_segid(""), EINVAL);
	FAILS(xemem_lookup_segid("nobody"), ENOENT);
	FAILS(xemem_lookup("nobody", 1), ETIMEDOUT);
	if (argc > 1) {
		arena(argv[1]);
	} else {
		plain();
		signals();
	}
	return 0;
}
