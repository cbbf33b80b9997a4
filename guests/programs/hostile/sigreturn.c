/*
 * Hands forged frames to rt_sigreturn and asks for handlers where there is no
 * place for one: argv[1] says how. Ends with 3 when it has survived what a
 * program may survive; never with anything but that or a signal.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define WORDS 55
#define BEYOND ((void *)0xffff800000000000)

static uint64_t seed;
static sigjmp_buf back;
static char stack[1 << 16] __attribute__((aligned(64)));
static uint64_t frame[WORDS + 512] __attribute__((aligned(64)));
static volatile int rounds;
static int survives;

/* Not random, only unlikely (xorshift64*). */
static uint64_t noise(void) {
    seed ^= seed >> 12;
    seed ^= seed << 25;
    seed ^= seed >> 27;
    return seed * 0x2545f4914f6cdd1dull;
}

/* Also numbers that mean something somewhere. */
static uint64_t odd(void) {
    static const uint64_t known[] = {0, 1, 8, 0x7fffffffffff, 0x800000000000, 0xffff800000000000,
        0xffffffff80200000, 0xffff900000014000, 0x7ffffffff000, ~0ull, 1ull << 63, 0x33, 0x2b, 0x10};
    uint64_t n = noise();
    return n % 3 == 0 ? known[n / 3 % (sizeof known / sizeof *known)] : noise() >> (n % 64);
}

static void again(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)info, (void)context;
    siglongjmp(back, 1);
}

static void landed(void) { siglongjmp(back, 2); }

static void on(int signal, void (*handler)(int, siginfo_t *, void *), int flags) {
    struct sigaction action = {0};
    action.sa_sigaction = handler;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | flags;
    sigaction(signal, &action, NULL);
}

static void guard(void) {
    static const int all[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS};
    stack_t area = {.ss_sp = stack, .ss_size = sizeof stack};
    sigaltstack(&area, NULL);
    for (unsigned n = 0; n < sizeof all / sizeof *all; n++)
        on(all[n], again, SA_ONSTACK);
    uint64_t none = 0;
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, 8L);
}

static void come_back(void *at) {
    __asm__ volatile("mov %0, %%rsp; mov $15, %%eax; syscall; ud2" : : "r"((char *)at + 8) : "memory");
    __builtin_unreachable();
}

/* A frame of noise with a few good fields, so that it comes further. */
static void forge(void) {
    for (unsigned n = 0; n < sizeof frame / sizeof *frame; n++)
        frame[n] = odd();
    uint64_t good = noise();
    if (good & 1)
        frame[22] = (uint64_t)landed;
    if (good & 2)
        frame[21] = (uint64_t)(stack + sizeof stack / 2);
    if (good & 4)
        frame[23] &= ~0x100ull;
    if (good & 8)
        frame[29] = 0;
    else if (good & 16) {
        uint64_t *state = frame + 64;
        frame[29] = (uint64_t)state;
        if (good & 32) {
            ((uint32_t *)state)[6] &= 0xffff;
            ((uint32_t *)state)[116] = 0x46505853;
            ((uint32_t *)state)[117] = 836;
            ((uint32_t *)state)[120] = 832;
            ((uint32_t *)state)[208] = 0x46505845;
        }
        if (good & 64) {
            state[64] &= 7;
            memset(state + 65, 0, 56);
        }
    }
    if (!survives)
        return;
    /* What it takes to be told of the next fault. */
    frame[3] = (uint64_t)stack;
    frame[4] = 0;
    frame[5] = sizeof stack;
    frame[38] = 0;
}

static void forged(void) {
    sigsetjmp(back, 1);
    /* Flags that stay: alignment checks, and the direction of strings. */
    __asm__ volatile("pushf; andl $~0x40400, (%%rsp); popf" : : : "memory", "cc");
    if (++rounds > 2000)
        return;
    guard();
    forge();
    come_back(frame);
}

static void count(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)info, (void)context;
    rounds++;
}

/* Deeper and deeper, until the stack ends. */
static void dive(int signal, siginfo_t *info, void *context) {
    (void)info, (void)context;
    raise(signal);
}

static void flood(void) {
    union sigval value = {0};
    uint64_t all = ~0ull, none = 0;
    for (int signal = SIGRTMIN; signal <= SIGRTMAX; signal++)
        on(signal, count, 0);
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, NULL, 8L);
    long queued = 0;
    for (int n = 0; n < 3000; n++)
        queued += sigqueue(getpid(), SIGRTMIN + n % 30, value) == 0;
    for (int n = 1; n < 32; n++)
        if (n != SIGKILL && n != SIGSTOP)
            kill(getpid(), n);
    for (int n = 1; n < SIGRTMIN; n++)
        signal(n, SIG_IGN);
    if (queued == 0)
        exit(4);
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, 8L);
    if (rounds < queued)
        exit(5);
}

int main(int argc, char **argv) {
    const char *how = argc > 1 ? argv[1] : "";
    seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    if (strcmp(how, "forged") == 0) {
        survives = 1;
        forged();
    } else if (strcmp(how, "wild") == 0) {
        forged();
    } else if (strcmp(how, "flood") == 0) {
        flood();
    } else if (strcmp(how, "dive") == 0) {
        on(SIGUSR1, dive, 0);
        raise(SIGUSR1);
    } else if (strcmp(how, "handler") == 0) {
        on(SIGUSR1, (void *)BEYOND, 0);
        raise(SIGUSR1);
    } else if (strcmp(how, "noncanonical-handler") == 0) {
        on(SIGUSR1, (void *)0x800000000000, 0);
        raise(SIGUSR1);
    } else if (strcmp(how, "kernel-stack") == 0) {
        on(SIGILL, again, 0);
        __asm__ volatile("mov %0, %%rsp; ud2" : : "r"(0xffffffff80210000));
    } else if (strcmp(how, "noncanonical-stack") == 0) {
        on(SIGILL, again, 0);
        __asm__ volatile("mov %0, %%rsp; ud2" : : "r"(0x8000000000000000));
    } else if (strcmp(how, "no-stack") == 0) {
        on(SIGILL, again, 0);
        __asm__ volatile("mov %0, %%rsp; ud2" : : "r"(0x40L));
    } else if (strcmp(how, "read-only-stack") == 0) {
        char *page = mmap(NULL, 65536, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        on(SIGILL, again, 0);
        __asm__ volatile("mov %0, %%rsp; ud2" : : "r"(page + 65536));
    } else if (strcmp(how, "kernel-alternate") == 0) {
        uint64_t area[3] = {0xffffffff80200000, 0, 1 << 20};
        syscall(SYS_sigaltstack, area, NULL);
        on(SIGUSR1, again, SA_ONSTACK);
        raise(SIGUSR1);
    } else if (strcmp(how, "kernel-frame") == 0) {
        come_back((void *)0xffffffff80200000);
    } else if (strcmp(how, "kernel-info") == 0) {
        uint64_t set = 1u << (SIGUSR1 - 1);
        syscall(SYS_rt_sigprocmask, SIG_BLOCK, &set, NULL, 8L);
        raise(SIGUSR1);
        if (syscall(SYS_rt_sigtimedwait, &set, (void *)0xffffffff80200000, NULL, 8L) != -1)
            return 6;
    } else {
        return 1;
    }
    return 3;
}
