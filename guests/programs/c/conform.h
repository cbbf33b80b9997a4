/*
 * How the conformance programs call and print: the system call itself, with no
 * library between, and one line for what it answered.
 */
#ifndef CONFORM_H
#define CONFORM_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* An address that no program has. */
#define NOWHERE ((void *)0x10)
/* One beyond what programs can have. */
#define BEYOND ((void *)0x800000000000)

/* "name: value", or "name: -ERRNO". */
static inline long say(const char *name, long value) {
    if (value == -1)
        printf("%s: -%s\n", name, strerrorname_np(errno));
    else
        printf("%s: %ld\n", name, value);
    return value;
}

/* For values that differ from run to run: only whether it worked. */
static inline long say_done(const char *name, long value) {
    if (value == -1)
        printf("%s: -%s\n", name, strerrorname_np(errno));
    else
        printf("%s: done\n", name);
    return value;
}

#define CALL(name, ...) say(#name "(" #__VA_ARGS__ ")", syscall(SYS_##name, __VA_ARGS__))
#define CALL0(name) say(#name "()", syscall(SYS_##name))
#define DONE(name, ...) say_done(#name "(" #__VA_ARGS__ ")", syscall(SYS_##name, __VA_ARGS__))
/* What ought to hold. */
#define HOLDS(what) printf("%s: %s\n", #what, (what) ? "yes" : "no")

#endif
