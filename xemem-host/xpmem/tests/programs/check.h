/*
 * check.h - what the test programs share: checks that end the process with
 * the line in its exit text, and a partner process to talk to by bytes.
 */
#ifndef CHECK_H
#define CHECK_H

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "xpmem.h"

#define PAGE 4096UL
#define FAILED ((void *)-1)
#define MODE(bits) XPMEM_PERMIT_MODE, ((void *)(uintptr_t)(bits))
#define ANY XPMEM_PERMIT_MODE, NULL

#define CHECK(what)                                                          \
	do {                                                                 \
		if (!(what)) {                                               \
			int seen = errno;                                    \
			fprintf(stderr, "%s:%d: %s (errno %d, %s)\n",        \
				__FILE__, __LINE__, #what, seen,             \
				strerror(seen));                             \
			_exit(1);                                            \
		}                                                            \
	} while (0)

/* The call fails with -1 and this errno. */
#define FAILS(call, number)                                                  \
	do {                                                                 \
		errno = 0;                                                   \
		CHECK((intptr_t)(call) == -1 && errno == (number));          \
	} while (0)

static inline void say(int peer, int64_t word)
{
	CHECK(write(peer, &word, sizeof word) == sizeof word);
}

static inline int64_t hear(int peer)
{
	int64_t word;

	CHECK(read(peer, &word, sizeof word) == sizeof word);
	return word;
}

/* Runs `work` in another process, with a socket to this one. */
static inline pid_t partner(void (*work)(int peer), int *peer)
{
	int ends[2];
	pid_t parent = getpid();
	pid_t pid;

	CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		/* A failed check on the other side ends this one, too. */
		CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
		CHECK(getppid() == parent);
		close(ends[0]);
		work(ends[1]);
		_exit(0);
	}
	close(ends[1]);
	*peer = ends[0];
	return pid;
}

static inline void ends_well(pid_t pid)
{
	int status;

	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* Private memory with the number of each word in it. */
static inline uint64_t *numbered(size_t bytes)
{
	uint64_t *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(memory != MAP_FAILED);
	for (size_t i = 0; i < bytes / sizeof *memory; i++)
		memory[i] = i;
	return memory;
}

static inline void *attach(xpmem_apid_t apid, off_t offset, size_t size)
{
	struct xpmem_addr addr = {apid, offset};

	return xpmem_attach(addr, size, NULL);
}

#endif
