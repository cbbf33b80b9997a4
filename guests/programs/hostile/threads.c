/*
 * Asks for threads and waits in ways that no library does: each is an error of
 * the call, or the end of this program, and nothing else.
 *
 * Usage: threads limit | calls | robust | stack | word | leave
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PTHREAD_FLAGS 0x3d0f00L

static int wrong;
static uint32_t word;

static void is(const char *what, long got, int wanted)
{
    if (got == -1 && errno == wanted)
        return;
    printf("%s: %ld, %s\n", what, got, strerror(errno));
    wrong = 1;
}

static long futex(void *at, int op, uint32_t value, const void *time, void *second, uint32_t code)
{
    return syscall(SYS_futex, at, op, value, time, second, code);
}

static void *wait_for_ever(void *argument)
{
    while (__atomic_load_n(&word, __ATOMIC_SEQ_CST) == 0)
        futex(&word, FUTEX_WAIT, 0, NULL, NULL, 0);
    return argument;
}

/* As many threads as there may be, twice: ended ones make room. */
static int limit(void)
{
    enum { MOST = 100000 };
    static pthread_t threads[MOST];
    pthread_attr_t small;
    int before = 0;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 32768);
    for (int round = 0; round < 2; round++) {
        int count = 0, result = 0;
        word = 0;
        while (count < MOST && result == 0) {
            result = pthread_create(&threads[count], &small, wait_for_ever, NULL);
            count += result == 0;
        }
        if (result != EAGAIN || count < 100 || (round == 1 && count != before))
            wrong = 1;
        printf("no more after %d: %s\n", count, strerror(result));
        before = count;
        __atomic_store_n(&word, 1, __ATOMIC_SEQ_CST);
        if (futex(&word, FUTEX_WAKE, 1 << 30, NULL, NULL, 0) < 0)
            wrong = 1;
        for (int n = 0; n < count; n++)
            pthread_join(threads[n], NULL);
    }
    return wrong;
}

static int calls(void)
{
    static const uintptr_t bad[] = {
        4, 0x10000, 0x7fffffffe000, 0x7ffffffffffc, 0x800000000000,
        0xffff900000000000, 0xffffffff80200000, 0xfffffffffffffffc,
    };
    struct timespec soon = {0, 1000}, strange = {0, 1000000000}, early = {-1, 0};
    char odd[8] = "";
    for (unsigned n = 0; n < sizeof bad / sizeof *bad; n++) {
        void *at = (void *)bad[n];
        is("wait at a bad word", futex(at, FUTEX_WAIT, 0, &soon, NULL, 0), EFAULT);
        is("wait with a bad time", futex(&word, FUTEX_WAIT, 0, at, NULL, 0), EFAULT);
        is("compare a bad word", futex(at, FUTEX_CMP_REQUEUE, 1, (void *)1, &word, 0), EFAULT);
        is("operation on a bad word", futex(&word, FUTEX_WAKE_OP, 1, (void *)1, at, 0), EFAULT);
        is("clone3 from nowhere", syscall(SYS_clone3, at, 88), EFAULT);
        syscall(SYS_set_tid_address, at);
        syscall(SYS_set_robust_list, at, 24);
        is("list to nowhere", syscall(SYS_get_robust_list, 0, at, at), EFAULT);
        is("sleep until nowhere", syscall(SYS_nanosleep, at, NULL), EFAULT);
        is("mask to nowhere", syscall(SYS_sched_getaffinity, 0, 8, at), EFAULT);
    }
    for (int op = 0; op < 16; op++) {
        long got = futex(odd + 1, op, 0, &soon, odd + 1, 0);
        is("an odd address", got, EINVAL);
    }
    is("no bits", futex(&word, FUTEX_WAIT_BITSET, 0, NULL, NULL, 0), EINVAL);
    is("no bits", futex(&word, FUTEX_WAKE_BITSET, 1, NULL, NULL, 0), EINVAL);
    is("strange time", futex(&word, FUTEX_WAIT, 0, &strange, NULL, 0), EINVAL);
    is("early time", futex(&word, FUTEX_WAIT, 0, &early, NULL, 0), EINVAL);
    is("another value", futex(&word, FUTEX_WAIT, 1, NULL, NULL, 0), EAGAIN);
    is("in time", futex(&word, FUTEX_WAIT, 0, &soon, NULL, 0), ETIMEDOUT);
    is("no such operation", futex(&word, FUTEX_LOCK_PI, 0, NULL, NULL, 0), ENOSYS);
    is("negative counts", futex(&word, FUTEX_REQUEUE, -1, (void *)-1L, &word, 0), EINVAL);
    is("no such process", syscall(SYS_tgkill, getpid() + 1, getpid(), 0), ESRCH);
    is("no such thread", syscall(SYS_tkill, 0x7fffffff, 9), ESRCH);
    is("no thread", syscall(SYS_tkill, 0, 9), EINVAL);
    is("no cores", syscall(SYS_sched_setaffinity, 0, 8, odd), EINVAL);
    for (int bit = 8; bit < 63; bit++) {
        long flag = 1L << bit;
        if (flag & (PTHREAD_FLAGS | 0x81c02000L))
            continue;
        is("a strange flag", syscall(SYS_clone, PTHREAD_FLAGS | flag, 0, 0, 0, 0), EINVAL);
    }
    is("a kernel's storage", syscall(SYS_clone, PTHREAD_FLAGS, 0, 0, 0, -4096L), EPERM);
    is("a process", syscall(SYS_clone, 17, 0, 0, 0, 0), ENOSYS);
    is("a process", syscall(SYS_fork), ENOSYS);
    is("too short", syscall(SYS_clone3, &soon, 8), EINVAL);
    is("too long", syscall(SYS_clone3, &soon, 4096), E2BIG);
    return wrong;
}

/* Lists that end nowhere, in a circle, or point at the kernel. */
static void *with_list(void *argument)
{
    static struct { uintptr_t next, offset, pending; } lists[64];
    uintptr_t nr = (uintptr_t)argument;
    static const uintptr_t ends[] = {8, 0, 0xffffffff80200000, 0x7ffffffffff8, 0xfffffffffffffff8};
    lists[nr].next = nr == 5 ? (uintptr_t)&lists[6] : ends[nr % 5];
    lists[nr].offset = nr < 5 ? 0 : -(uintptr_t)8;
    lists[nr].pending = ends[(nr + 1) % 5];
    lists[6].next = (uintptr_t)&lists[6];
    syscall(SYS_set_robust_list, &lists[nr], 24);
    return NULL;
}

static int robust(void)
{
    for (uintptr_t nr = 0; nr < 6; nr++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, with_list, (void *)nr) != 0 ||
            pthread_join(thread, NULL) != 0)
            return 1;
    }
    return 0;
}

/* A thread whose stack is nowhere dies of its first push, and all with it. */
static int stack(void)
{
    static const uintptr_t tops[] = {0x10000, 0x7fffffffe000};
    for (int n = 0; n < 2; n++)
        syscall(SYS_clone, 0x10f00L, tops[n], 0, 0, 0);
    for (;;)
        sched_yield();
}

/* The memory of a word goes while somebody waits at it. */
static int unmapped(void)
{
    pthread_t thread;
    uint32_t *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pthread_create(&thread, NULL, wait_for_ever, page) != 0)
        return 1;
    sched_yield();
    munmap(page, 4096);
    is("wait", futex(page, FUTEX_WAIT, 0, NULL, NULL, 0), EFAULT);
    if (futex(page, FUTEX_WAKE, 1, NULL, NULL, 0) != 0)
        wrong = 1;
    word = 1;
    futex(&word, FUTEX_WAKE, 1, NULL, NULL, 0);
    pthread_join(thread, NULL);
    return wrong;
}

/* The program ends while its threads wait, sleep and are ready. */
static int leave(void)
{
    pthread_t thread;
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 32768);
    for (int n = 0; n < 20; n++)
        if (pthread_create(&thread, &small, wait_for_ever, NULL) != 0)
            return 1;
    sched_yield();
    return 0;
}

int main(int argc, char **argv)
{
    const char *how = argc > 1 ? argv[1] : "";
    int code = 2;
    if (strcmp(how, "limit") == 0)
        code = limit();
    if (strcmp(how, "calls") == 0)
        code = calls();
    if (strcmp(how, "robust") == 0)
        code = robust();
    if (strcmp(how, "stack") == 0)
        code = stack();
    if (strcmp(how, "word") == 0)
        code = unmapped();
    if (strcmp(how, "leave") == 0)
        code = leave();
    printf("%s: %d\n", how, code);
    return code;
}
