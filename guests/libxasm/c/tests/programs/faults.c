/*
 * SIGSEGV on Linux: what is the library's, and what is the program's.
 * faults MODE; exits with the failing line, 0, or by the signal MODE asks for.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "xasm.h"

#define CHECK(condition)           \
	do {                       \
		if (!(condition))  \
			return __LINE__; \
	} while (0)

static sigjmp_buf back;
static volatile int calls;
static void *volatile where;
static struct sigaction before;

/* A program's own handler: notes the address and jumps out. */
static void jump_out(int signal, siginfo_t *info, void *context)
{
	(void)context;
	calls++;
	where = signal == SIGSEGV ? info->si_addr : NULL;
	siglongjmp(back, 1);
}

/* One that was installed later and hands on what it does not know. */
static void hand_on(int signal, siginfo_t *info, void *context)
{
	calls++;
	before.sa_sigaction(signal, info, context);
}

static void count(int signal)
{
	(void)signal;
	calls++;
}

static int handle(void (*handler)(int, siginfo_t *, void *), int flags,
		  struct sigaction *old)
{
	struct sigaction action = { .sa_flags = SA_SIGINFO | flags };

	action.sa_sigaction = handler;
	return sigaction(SIGSEGV, &action, old);
}

static int is_blocked(int signal)
{
	sigset_t now;

	sigprocmask(SIG_SETMASK, NULL, &now);
	return sigismember(&now, signal);
}

/* An access that faults and is not the library's. */
static int foreign(char *at)
{
	int calls_before = calls;

	where = NULL;
	if (sigsetjmp(back, 1) == 0)
		*(volatile char *)at = 1;
	return calls == calls_before + 1 && where == at && !is_blocked(SIGSEGV) &&
	       !is_blocked(SIGUSR1);
}

static int run(const char *mode)
{
	static char *volatile nowhere_at = (char *)16;
	char *nowhere = nowhere_at;
	char *guard = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (!strcmp(mode, "earlier"))
		CHECK(handle(jump_out, SA_ONSTACK, NULL) == 0);

	struct xasm_options small = { .chunk_bytes = XASM_CHUNK_4K };
	xasm_arena arena = xasm_arena_create("faults", 8 * 4096, &small);
	volatile char *memory = xasm_arena_base(arena);

	CHECK(arena >= 0);
	memset((void *)memory, 1, 8 * 4096);
	CHECK(xasm_publish(arena, 1, 0) == 1);
	memory[0] = 2;
	if (!strcmp(mode, "nowhere"))
		*(volatile char *)nowhere = 1;
	if (!strcmp(mode, "guard"))
		*guard = 1;
	if (!strcmp(mode, "sent"))
		CHECK(kill(getpid(), SIGSEGV) == 0);
	if (!strcmp(mode, "execute"))
		((void (*)(void))(uintptr_t)memory)();
	if (!strcmp(mode, "ignored")) {
		/* Only what is sent can be ignored. */
		CHECK(signal(SIGSEGV, SIG_IGN) != SIG_ERR);
		CHECK(xasm_publish(arena, 2, 0) == 2);
		CHECK(kill(getpid(), SIGSEGV) == 0);
		memory[0] = 3;
		CHECK(memory[0] == 3);
	}
	if (!strcmp(mode, "later"))
		CHECK(handle(jump_out, 0, NULL) == 0);
	if (!strcmp(mode, "handing-on"))
		CHECK(handle(hand_on, 0, &before) == 0);
	if (!strcmp(mode, "old-style"))
		CHECK(signal(SIGSEGV, count) != SIG_ERR);
	if (!strcmp(mode, "earlier") || !strcmp(mode, "later")) {
		/* A publish puts the library in front; then both work, in turn. */
		for (int n = 2; n < 20; n++) {
			CHECK(xasm_publish(arena, n, 0) == n);
			CHECK(foreign(nowhere));
			memory[4096 * (n % 8)] = n;
			CHECK(foreign(guard));
			CHECK(memory[4096 * (n % 8)] == n);
		}
	}
	if (!strcmp(mode, "handing-on")) {
		/* It is called first here, and hands our fault to us. */
		memory[4096] = 3;
		CHECK(calls == 1 && memory[4096] == 3);
		CHECK(xasm_publish(arena, 2, 0) == 2);
		memory[4096] = 4;
		CHECK(calls == 1);
		/* Ours, its, ours again, and nobody else: the default. */
		*(volatile char *)nowhere = 1;
	}
	if (!strcmp(mode, "old-style")) {
		CHECK(xasm_publish(arena, 2, 0) == 2);
		CHECK(kill(getpid(), SIGSEGV) == 0);
		CHECK(calls == 1);
		memory[0] = 9;
		CHECK(calls == 1 && memory[0] == 9);
	}
	if (!strcmp(mode, "system-calls")) {
		int zero = open("/dev/zero", O_RDONLY);

		CHECK(zero >= 0 && memory[2 * 4096] == 1);
		CHECK(read(zero, (void *)(memory + 4096), 3 * 4096) == -1 && errno == EFAULT);
		CHECK(xasm_touch((void *)(memory + 4096), 3 * 4096) == 0);
		CHECK(read(zero, (void *)(memory + 4096), 3 * 4096) == 3 * 4096);
		CHECK(memory[2 * 4096] == 0 && memory[4 * 4096] == 1);
		CHECK(xasm_touch((void *)(memory + 4096), 8 * 4096) == -EFAULT);
		CHECK(xasm_touch(guard, 1) == -ENOENT);
		CHECK(xasm_touch((void *)(memory + 8 * 4096 - 1), 1) == 0);
	}
	return 0;
}

int main(int argc, char **argv)
{
	return argc == 2 ? run(argv[1]) : 100;
}
