/*
 * fork and its relatives on Linux: a child has no arenas, its parent goes on.
 * Exits with the failing line; a line of input ends it.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "xasm.h"

#define CHECK(condition)           \
	do {                       \
		if (!(condition))  \
			return __LINE__; \
	} while (0)

static const struct xasm_options small = { .chunk_bytes = XASM_CHUNK_4K };

/* The child's side; 0 or the failing line. */
static int child(xasm_arena parents, char *memory)
{
	struct xasm_stats stats;

	CHECK(xasm_arena_stats(parents, &stats) == -ENOENT);
	CHECK(xasm_publish(parents, 77, 0) == -ENOENT);
	CHECK(xasm_arena_find(memory) == -ENOENT);
	void *none = NULL;
	CHECK(xasm_malloc(parents, 8) == NULL);
	CHECK(xasm_allocate(parents, 8, 0, &none) == -ENOENT);
	xasm_arena own = xasm_arena_create("forks/child", 2 * 4096, &small);
	CHECK(own >= 0);
	char *mine = xasm_arena_base(own);
	CHECK(xasm_malloc(own, 8) == mine && xasm_free(mine) == 0);
	mine[0] = 5;
	CHECK(xasm_publish(own, 1, 0) == 1);
	mine[0] = 6;
	CHECK(xasm_publish(own, 2, 0) == 2);
	return 0;
}

int main(void)
{
	xasm_arena arena = xasm_arena_create("forks", 4 * 4096, &small);
	char *memory = xasm_arena_base(arena);
	int status;

	CHECK(arena >= 0);
	CHECK(xasm_malloc(arena, 8) == memory);
	memory[0] = 1;
	CHECK(xasm_publish(arena, 1, 0) == 1);

	/* A store there ends the child, and is not the parent's. */
	pid_t pid = fork();
	if (pid == 0) {
		memory[0] = 99;
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
	CHECK(memory[0] == 1);

	/* Its end by exit() is not the end of the parent's stream. */
	pid = fork();
	if (pid == 0)
		exit(child(arena, memory));
	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK(WIFEXITED(status));
	if (WEXITSTATUS(status) != 0)
		return WEXITSTATUS(status);

	CHECK(system("exit 3") == 3 << 8);
	memory[0] = 2;
	CHECK(xasm_publish(arena, 2, 0) == 2);
	CHECK(memory[0] == 2);
	printf("published\n");
	fflush(stdout);
	return getchar() == '\n' ? 0 : __LINE__;
}
