/*
 * Signals with handlers, line by line: what they are told, on which stack they
 * run, what is blocked meanwhile, what comes back, what interrupted calls
 * answer. Prints nothing that differs between machines.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fenv.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define HOLDS(what) printf("%s: %s\n", #what, (what) ? "yes" : "no")

static volatile sig_atomic_t called;
static volatile int depth;
static sigjmp_buf back;

static void on(int signal, void (*handler)(int, siginfo_t *, void *), int flags, uint64_t mask) {
    struct sigaction action = {0};
    action.sa_sigaction = handler;
    action.sa_flags = SA_SIGINFO | flags;
    sigemptyset(&action.sa_mask);
    for (int n = 1; n <= 64; n++)
        if (mask >> (n - 1) & 1)
            sigaddset(&action.sa_mask, n);
    if (sigaction(signal, &action, NULL) != 0)
        printf("sigaction %d: %d\n", signal, errno);
}

static uint64_t blocked(void) {
    uint64_t set = 0;
    syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &set, 8L);
    return set;
}

static void block(int how, uint64_t set) { syscall(SYS_rt_sigprocmask, how, &set, NULL, 8L); }

#define BIT(signal) (1ull << ((signal) - 1))

static void say(int signal, siginfo_t *info, void *context) {
    ucontext_t *was = context;
    printf("handler %d: signo %d code %d own %d blocked %llx before %llx aligned %d\n", signal,
        info->si_signo, info->si_code, info->si_pid == getpid(), (unsigned long long)blocked(),
        (unsigned long long)*(uint64_t *)&was->uc_sigmask,
        ((uintptr_t)__builtin_frame_address(0) & 15) == 0);
    called++;
}

static void plain(int signal) { printf("plain %d\n", signal); }

static void to_oneself(void) {
    on(SIGUSR1, say, 0, 0);
    HOLDS(kill(getpid(), SIGUSR1) == 0);
    HOLDS(raise(SIGUSR1) == 0);
    HOLDS(pthread_kill(pthread_self(), SIGUSR1) == 0);
    on(SIGUSR2, say, SA_NODEFER, BIT(SIGHUP) | BIT(SIGKILL));
    raise(SIGUSR2);
    HOLDS(blocked() == 0);
    on(SIGHUP, say, SA_RESETHAND, 0);
    raise(SIGHUP);
    struct sigaction now;
    sigaction(SIGHUP, NULL, &now);
    HOLDS(now.sa_handler == SIG_DFL);
    signal(SIGTERM, plain);
    raise(SIGTERM);
    signal(SIGTERM, SIG_IGN);
    raise(SIGTERM);
    signal(SIGTERM, SIG_DFL);
}

static void order(int signal, siginfo_t *info, void *context) {
    (void)context;
    printf("order %d value %d code %d\n", signal, info->si_value.sival_int, info->si_code);
}

static void pending_ones(void) {
    int low = SIGRTMIN + 1, high = SIGRTMIN + 3;
    uint64_t all = BIT(SIGUSR1) | BIT(SIGUSR2) | BIT(low) | BIT(high), waiting = 0;
    int signals[] = {SIGUSR1, SIGUSR2, low, high};
    for (unsigned n = 0; n < 4; n++)
        on(signals[n], order, 0, all);
    block(SIG_BLOCK, all);
    for (int n = 0; n < 3; n++) {
        union sigval value = {.sival_int = n};
        sigqueue(getpid(), high, value);
        sigqueue(getpid(), low, value);
        sigqueue(getpid(), SIGUSR2, value);
    }
    raise(SIGUSR1);
    syscall(SYS_rt_sigpending, &waiting, 8L);
    HOLDS(waiting == all);
    block(SIG_UNBLOCK, all);
    syscall(SYS_rt_sigpending, &waiting, 8L);
    HOLDS(waiting == 0);
    /* Nested: none of them blocks the others. */
    for (unsigned n = 0; n < 4; n++)
        on(signals[n], order, 0, 0);
    block(SIG_BLOCK, all);
    for (unsigned n = 0; n < 4; n++)
        raise(signals[n]);
    block(SIG_UNBLOCK, all);
    /* One that is ignored meanwhile is forgotten. */
    block(SIG_BLOCK, all);
    raise(SIGUSR1);
    signal(SIGUSR1, SIG_IGN);
    syscall(SYS_rt_sigpending, &waiting, 8L);
    HOLDS(waiting == 0);
    block(SIG_UNBLOCK, all);
    siginfo_t told;
    memset(&told, 0, sizeof told);
    told.si_code = SI_QUEUE;
    told.si_value.sival_int = 77;
    HOLDS(syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), SIGUSR2, &told) == 0);
    HOLDS(syscall(SYS_rt_sigqueueinfo, getpid(), 99, &told) == -1 && errno == EINVAL);
    HOLDS(syscall(SYS_rt_sigqueueinfo, 99999999, SIGUSR2, &told) == -1 && errno == ESRCH);
    HOLDS(syscall(SYS_rt_sigqueueinfo, getpid(), 0, &told) == 0);
}

static void twice(int signal, siginfo_t *info, void *context) {
    (void)info, (void)context;
    depth++;
    printf("depth %d\n", depth);
    if (depth < 5)
        raise(signal);
    depth--;
}

static char stack[65536];

static int on_stack(void) {
    char here;
    return &here >= stack && &here < stack + sizeof stack;
}

static void alt(int signal, siginfo_t *info, void *context) {
    (void)info;
    ucontext_t *was = context;
    stack_t now;
    int answer = sigaltstack(NULL, &now);
    printf("alt %d: on it %d, answer %d, flags %d, frame's %d\n", signal, on_stack(), answer,
        now.ss_flags, was->uc_stack.ss_flags);
    HOLDS(sigaltstack(&(stack_t){.ss_flags = SS_DISABLE}, NULL) == -1 && errno == EPERM);
}

static void alternate(void) {
    on(SIGUSR1, twice, SA_NODEFER, 0);
    raise(SIGUSR1);
    stack_t area = {.ss_sp = stack, .ss_size = sizeof stack}, was;
    HOLDS(sigaltstack(&area, NULL) == 0);
    on(SIGUSR1, alt, SA_ONSTACK, 0);
    raise(SIGUSR1);
    on(SIGUSR1, twice, SA_ONSTACK | SA_NODEFER, 0);
    raise(SIGUSR1);
    HOLDS(sigaltstack(NULL, &was) == 0 && was.ss_flags == 0 && was.ss_sp == stack);
    on(SIGUSR1, say, 0, 0);
    raise(SIGUSR1);
    HOLDS(!on_stack());
}

static void fault(int signal, siginfo_t *info, void *context) {
    ucontext_t *was = context;
    printf("fault %d: code %d, trap %lld, error %lld, own stack %d\n", signal, info->si_code,
        (long long)was->uc_mcontext.gregs[REG_TRAPNO], (long long)was->uc_mcontext.gregs[REG_ERR] & ~1,
        on_stack());
    if (signal == SIGSEGV && info->si_code > 0 && info->si_code < 128)
        printf("address %s\n", (uintptr_t)info->si_addr < 4096 ? "low" : "high");
    if (signal == SIGFPE || signal == SIGILL)
        printf("at the instruction: %d\n",
            (uintptr_t)info->si_addr == (uintptr_t)was->uc_mcontext.gregs[REG_RIP]);
    siglongjmp(back, 1);
}

static int sum(volatile char *above) {
    volatile char here[1024];
    here[0] = above[0] + 1;
    return sum(here) + here[0];
}

/* An access that the compiler knows nothing about. */
static void touch(void *at) { __asm__ volatile("movb $1, (%0)" : : "r"(at) : "memory"); }

static void faults(void) {
    int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    for (unsigned n = 0; n < 5; n++)
        on(faults[n], fault, SA_ONSTACK, 0);
    char *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!sigsetjmp(back, 1))
        touch((void *)16);
    if (!sigsetjmp(back, 1))
        touch(page);
    if (!sigsetjmp(back, 1))
        touch((void *)0x8000000000000000);
    if (!sigsetjmp(back, 1))
        touch((void *)0xffff800000001000);
    if (!sigsetjmp(back, 1))
        __asm__ volatile("xor %%edx, %%edx; xor %%ecx, %%ecx; mov $1, %%eax; div %%ecx"
            : : : "eax", "ecx", "edx");
    if (!sigsetjmp(back, 1))
        __asm__ volatile("ud2");
    if (!sigsetjmp(back, 1))
        __asm__ volatile("int3");
    if (!sigsetjmp(back, 1))
        __asm__ volatile("hlt");
    if (!sigsetjmp(back, 1))
        __asm__ volatile("call *%0" : : "r"(page));
    if (!sigsetjmp(back, 1))
        __asm__ volatile("jmp *%0" : : "r"(16L));
    if (!sigsetjmp(back, 1))
        sum("");
    /* Exceptions of SSE and of the x87, each unmasked. */
    unsigned csr = 0x1f80, control = 0x37f;
    if (!sigsetjmp(back, 1)) {
        unsigned open = 0x1d80;
        __asm__ volatile("ldmxcsr %0; xorps %%xmm1, %%xmm1; movss %1, %%xmm0; divss %%xmm1, %%xmm0"
            : : "m"(open), "m"((float){1}) : "xmm0", "xmm1");
    }
    __asm__ volatile("ldmxcsr %0" : : "m"(csr));
    if (!sigsetjmp(back, 1)) {
        unsigned open = 0x37e;
        __asm__ volatile("fldcw %0; fldz; fldz; fdivrp; fwait" : : "m"(open));
    }
    __asm__ volatile("fnclex; fninit; fldcw %0" : : "m"(control));
    HOLDS(blocked() == 0);
}

/* Every register that a handler could lose. */
static void wipe(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)info;
    ucontext_t *was = context;
    fenv_t now;
    unsigned csr;
    __asm__ volatile("fnstenv %0; fldenv %0" : "+m"(now));
    __asm__ volatile("stmxcsr %0" : "=m"(csr));
    printf("handler's control %x, mxcsr %x; fpstate %d\n", now.__control_word, csr,
        was->uc_mcontext.fpregs != NULL);
    __asm__ volatile("xorps %%xmm0, %%xmm0; xorps %%xmm7, %%xmm7; xorps %%xmm15, %%xmm15; fldz; fldz"
        : : : "xmm0", "xmm7", "xmm15", "memory");
    called++;
}

static void registers(void) {
    uint64_t got[13];
    unsigned csr = 0x6f80, kept;
    on(SIGTRAP, wipe, 0, 0);
    called = 0;
    __asm__ volatile("ldmxcsr %0" : : "m"(csr));
    __asm__ volatile(
        "mov $0x1111, %%rax; mov $0x2222, %%rbx; mov $0x3333, %%rcx; mov $0x4444, %%rdx\n"
        "mov $0x5555, %%r8; mov $0x6666, %%r9; mov $0x7777, %%r10; mov $0x8888, %%r11\n"
        "mov $0x9999, %%r12; mov $0xaaaa, %%r13; mov $0xbbbb, %%r14; mov $0xcccc, %%r15\n"
        "stc; int3\n"
        "mov %%rax, (%0); setc %%al; movzx %%al, %%eax; mov %%rax, 96(%0)\n"
        "mov %%rbx, 8(%0); mov %%rcx, 16(%0); mov %%rdx, 24(%0)\n"
        "mov %%r8, 32(%0); mov %%r9, 40(%0); mov %%r10, 48(%0); mov %%r11, 56(%0)\n"
        "mov %%r12, 64(%0); mov %%r13, 72(%0); mov %%r14, 80(%0); mov %%r15, 88(%0)\n"
        :
        : "D"(got)
        : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
        "memory", "cc");
    __asm__ volatile("stmxcsr %0" : "=m"(kept));
    csr = 0x1f80;
    __asm__ volatile("ldmxcsr %0" : : "m"(csr));
    for (int n = 0; n < 13; n++)
        printf("register %d: %llx\n", n, (unsigned long long)got[n]);
    printf("mxcsr %x\n", kept);
    HOLDS(called == 1);
}

static void vectors(void) {
    unsigned char in[48], out[48];
    for (int n = 0; n < 48; n++)
        in[n] = (unsigned char)(n * 7 + 1);
    __asm__ volatile("movups (%0), %%xmm0; movups 16(%0), %%xmm7; movups 32(%0), %%xmm15\n"
                     "int3\n"
                     "movups %%xmm0, (%1); movups %%xmm7, 16(%1); movups %%xmm15, 32(%1)\n"
        : : "r"(in), "r"(out) : "xmm0", "xmm7", "xmm15", "memory");
    HOLDS(memcmp(in, out, sizeof in) == 0);
    double x = 1.5, y;
    __asm__ volatile("fldl %1; int3; fstpl %0" : "=m"(y) : "m"(x) : "memory");
    HOLDS(y == x);
}

static void jumps(int signal, siginfo_t *info, void *context) {
    (void)info, (void)context;
    siglongjmp(back, signal);
}

/* A handler may change where the program goes on. */
static void skips(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)info;
    ucontext_t *was = context;
    was->uc_mcontext.gregs[REG_RIP] += 2;
    was->uc_mcontext.gregs[REG_RAX] = 4711;
    sigaddset(&was->uc_sigmask, SIGHUP);
}

static void changes(void) {
    on(SIGUSR1, jumps, 0, 0);
    HOLDS(sigsetjmp(back, 1) == 0 ? raise(SIGUSR1) : 1);
    HOLDS(blocked() == 0);
    on(SIGILL, skips, 0, 0);
    long answer;
    __asm__ volatile("mov $1, %%eax; ud2" : "=a"(answer) : : "memory");
    HOLDS(answer == 4711);
    HOLDS(blocked() == BIT(SIGHUP));
    block(SIG_SETMASK, 0);
}

static void waits(void) {
    uint64_t set = BIT(SIGUSR1), none = 0, was;
    siginfo_t info;
    struct timespec soon = {0, 1000000}, now = {0, 0};
    on(SIGUSR1, say, 0, 0);
    block(SIG_BLOCK, set);
    raise(SIGUSR1);
    HOLDS(syscall(SYS_rt_sigtimedwait, &set, &info, NULL, 8L) == SIGUSR1);
    HOLDS(info.si_code == SI_TKILL && info.si_pid == getpid());
    HOLDS(syscall(SYS_rt_sigtimedwait, &set, &info, &soon, 8L) == -1 && errno == EAGAIN);
    HOLDS(syscall(SYS_rt_sigtimedwait, &set, &info, &now, 8L) == -1 && errno == EAGAIN);
    HOLDS(syscall(SYS_rt_sigtimedwait, &set, &info, &now, 4L) == -1 && errno == EINVAL);
    HOLDS(syscall(SYS_rt_sigtimedwait, (void *)16, &info, &now, 8L) == -1 && errno == EFAULT);
    raise(SIGUSR1);
    HOLDS(syscall(SYS_rt_sigsuspend, &none, 8L) == -1 && errno == EINTR);
    was = blocked();
    HOLDS(was == set);
    raise(SIGUSR1);
    HOLDS(syscall(SYS_ppoll, NULL, 0L, NULL, &none, 8L) == -1 && errno == EINTR);
    HOLDS(blocked() == set);
    HOLDS(syscall(SYS_ppoll, NULL, 0L, &soon, &none, 8L) == 0);
    HOLDS(blocked() == set);
    HOLDS(syscall(SYS_rt_sigsuspend, &none, 4L) == -1 && errno == EINVAL);
    block(SIG_SETMASK, 0);
}

static void pipes(void) {
    int ends[2];
    on(SIGPIPE, say, 0, 0);
    HOLDS(pipe(ends) == 0);
    close(ends[0]);
    HOLDS(write(ends[1], "x", 1) == -1 && errno == EPIPE);
    signal(SIGPIPE, SIG_IGN);
    HOLDS(write(ends[1], "x", 1) == -1 && errno == EPIPE);
    close(ends[1]);
}

static void odd(void) {
    /* Without a restorer there is no way back. */
    struct {
        void *handler;
        unsigned long flags;
        void *restorer;
        uint64_t mask;
    } action = {(void *)say, SA_SIGINFO, NULL, 0};
    on(SIGSEGV, fault, SA_ONSTACK, 0);
    HOLDS(syscall(SYS_rt_sigaction, SIGUSR1, &action, NULL, 8L) == 0);
    if (!sigsetjmp(back, 1))
        raise(SIGUSR1);
    /* A frame that is none. */
    if (!sigsetjmp(back, 1))
        __asm__ volatile("mov $15, %%eax; mov $64, %%esp; syscall" : : : "rax", "rcx", "r11", "memory");
    HOLDS(blocked() == 0);
}

static void ends(int signal, siginfo_t *info, void *context) {
    (void)info, (void)context;
    printf("ends by %d\n", signal);
    fflush(stdout);
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc > 1 && strcmp(argv[1], "abort") == 0) {
        on(SIGABRT, ends, 0, 0);
        abort();
    }
    if (argc > 1 && strcmp(argv[1], "blocked") == 0) {
        on(SIGSEGV, ends, 0, 0);
        block(SIG_BLOCK, BIT(SIGSEGV));
        touch((void *)16);
    }
    if (argc > 1 && strcmp(argv[1], "nowhere") == 0) {
        on(SIGSEGV, ends, 0, 0);
        __asm__ volatile("mov $64, %%esp; push %%rax" : : : "memory");
    }
    if (argc > 1 && strcmp(argv[1], "wild") == 0) {
        on(SIGUSR1, (void *)0xffff800000000000, 0, 0);
        raise(SIGUSR1);
    }
    to_oneself();
    pending_ones();
    alternate();
    faults();
    registers();
    vectors();
    changes();
    waits();
    pipes();
    odd();
    puts("done");
    return 0;
}
