/*
 * xasm.h - how a C program publishes snapshots, in an enclave or on Linux.
 *
 * Link with libxasm.a:
 *
 *     gcc -static prog.c -I.../include -L... -lxasm      (or musl-gcc)
 *
 * An *arena* is memory of which the program publishes *generations*: frozen
 * states that readers on the Linux host, or in other enclaves, attach without
 * a copy while the program writes on. Publishing takes constant time, whatever
 * the size; the first write to a chunk after it copies that chunk.
 *
 *     xasm_arena a = xasm_arena_create("heat", 4 << 20, NULL);
 *     double *t = xasm_arena_alloc(a, sizeof(double) * nx * ny, 0);
 *     xasm_var(a, "temperature", XASM_F64, 2, (uint64_t[]){ny, nx}, 'C', t);
 *     for (step = 0; step < nr_steps; step++) {
 *             compute(t);
 *             xasm_publish(a, step, step * dt);
 *     }
 *
 * Functions return a value >= 0 or a negative errno, as Linux system calls do
 * (strerror(-result) tells more). They never abort and may be called from any
 * thread.
 *
 * The library finds out at the first call what is below: an enclave's kernel,
 * else Linux with a broker (reached, or started: xemem-broker from the
 * program's folder or $PATH), else nothing. Then each function returns -ENOSYS
 * (-EPROTO under a kernel of another version), and xasm_available() is 0. The
 * environment variable XASM_BACKEND insists: enclave, linux or off. If that
 * cannot be had, or makes no sense, one line on standard error says so.
 *
 * On Linux the library handles SIGSEGV, and passes on what is not its own; a
 * forked child has no arenas; and system calls that store into an arena need
 * xasm_touch() before. Without a broker (it was killed, and none can be started)
 * xasm_publish() returns -ENOTCONN. docs/linux.md has the whole list.
 */
#ifndef XASM_H
#define XASM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- the three calls ---------------------------------------------------- */

/* An arena of this process: a small number >= 0, or a negative errno. */
typedef int xasm_arena;

/* Element types. */
enum {
	XASM_F64 = 1,
	XASM_F32 = 2,
	XASM_I64 = 3,
	XASM_I32 = 4,
	XASM_I16 = 5,
	XASM_I8 = 6,
	XASM_U64 = 7,
	XASM_U32 = 8,
	XASM_U16 = 9,
	XASM_U8 = 10,
	XASM_C128 = 11, /* double complex */
	XASM_C64 = 12   /* float complex */
};

/* Copy-on-write granularity. */
#define XASM_CHUNK_4K UINT64_C(0x1000)
#define XASM_CHUNK_2M UINT64_C(0x200000)

/* xasm_options.flags: reader_gid counts. */
#define XASM_READER_GID 1u

/* xasm_options.policy: what a publish does when readers hold every bank but the
 * live one. */
#define XASM_DISCARD_NEWEST 0u /* -EAGAIN, counted as dropped */
#define XASM_DISCARD_OLDEST 1u /* takes the oldest from its readers, counted */
#define XASM_BLOCK 2u          /* waits for them, at most timeout_ms; with three
                                * banks, readers of each step miss none */

/* xasm_options.placement: the bank that a copy goes to. */
#define XASM_IN_TURN 0u    /* the next in turn, chunk by chunk */
#define XASM_FIRST_FREE 1u /* the first that no generation needs: least memory */
#define XASM_PREFERRED 2u  /* the one of xasm_prefer(), else the first free */

/* How an arena is made. All zero, or NULL in its place, is a good choice. */
struct xasm_options {
	uint64_t chunk_bytes; /* XASM_CHUNK_4K, XASM_CHUNK_2M; 0 = 2 MiB */
	uint64_t start;       /* wanted address, see arena_map_backed_region(); 0 = any */
	uint32_t nr_banks;    /* versions of a chunk at once, 2..16; 0 = 4; the
				 queue of published generations has one less */
	uint32_t flags;       /* XASM_READER_GID or 0 */
	uint32_t reader_gid;  /* group that may read besides the owner */
	uint32_t policy;      /* XASM_DISCARD_NEWEST, ..._OLDEST, XASM_BLOCK */
	uint32_t timeout_ms;  /* of XASM_BLOCK; 0 = no limit */
	uint32_t retain;      /* newest generations readers can get although none
				 holds them, below nr_banks; 0 = 1 */
	uint32_t placement;   /* XASM_IN_TURN, XASM_FIRST_FREE, XASM_PREFERRED */
	uint32_t reserved;    /* 0 */
};

/*
 * 1 when the program can publish: in an enclave whose kernel speaks this
 * library's version, or on Linux with a broker. Else 0: run without snapshots.
 */
int xasm_available(void);

/*
 * Makes an arena of at least `bytes` bytes (rounded up to whole chunks), all
 * zero. `name` is what readers ask for: UTF-8, 1 to 63 bytes, '/' makes a path.
 *
 * -EINVAL        name, size, chunk, banks, address or flags cannot be
 * -ENAMETOOLONG  name of more than 63 bytes
 * -EEXIST        name already taken
 * -EACCES        the broker's permits forbid the name
 * -ENOMEM        no memory for `nr_banks` times the size
 * -ENOSPC        the enclave has all its arenas (32)
 */
xasm_arena xasm_arena_create(const char *name, uint64_t bytes,
			     const struct xasm_options *options);

/*
 * Describes a variable to readers, or describes it anew (by name): `ndim`
 * dimensions (0 to 8; 0 = scalar) with `shape[i]` elements, order 'C' (last
 * index fastest) or 'F' (first index fastest), dense, beginning at `data`
 * inside the arena. Returns the variable's index.
 *
 * -ENOENT        no such arena
 * -EINVAL        NULL or empty name, unknown type or order, a dimension of 0
 * -ENAMETOOLONG  name of more than 119 bytes
 * -EFAULT        not wholly inside the arena
 * -EOVERFLOW     size beyond 64 bits
 * -ENOSPC        128 variables already
 */
int xasm_var(xasm_arena arena, const char *name, uint32_t dtype, uint32_t ndim,
	     const uint64_t *shape, char order, const void *data);

/*
 * Publishes the arena's present contents as one snapshot. `step` and `time`
 * are the program's own; readers see them. Returns the generation (1, 2, ...).
 *
 * All threads must be between writes that belong together: what has been
 * stored before the call is in the snapshot.
 *
 * -EAGAIN  every bank is held by readers; this state is not published and is
 *          counted as dropped. Go on and publish the next one.
 * -ETIMEDOUT  XASM_BLOCK waited in vain; counted as dropped
 * -ENOTCONN  on Linux: there is no broker at the moment; counted as dropped
 * -ENOENT  no such arena
 */
int64_t xasm_publish(xasm_arena arena, uint64_t step, double time);

/* ---- around them ---------------------------------------------------------- */

/* Address of the first byte, or NULL when there is no such arena. */
void *xasm_arena_base(xasm_arena arena);

/* Bytes of the arena, or 0 when there is no such arena. */
uint64_t xasm_arena_size(xasm_arena arena);

/* ---- allocations ------------------------------------------------------------ */

/*
 * What malloc() is for ordinary memory, in an arena; a variable of it is
 * described by xasm_var() with the pointer. The books are kept outside: no
 * allocation or release stores a byte in the arena, none causes a copy, and
 * snapshots hold data only. Allocations begin at multiples of 64 bytes. Any
 * thread may call these at any time, but no signal handler, and a forked child
 * gets none. xasm_arena_destroy() ends all of them.
 *
 * NULL when there is no such arena, no room (also for sizes whose product does
 * not fit 64 bits), or `align` is no power of two; xasm_allocate() tells which.
 * 0 bytes give a pointer of their own, too.
 */
void *xasm_malloc(xasm_arena arena, uint64_t bytes);
void *xasm_aligned_alloc(xasm_arena arena, uint64_t align, uint64_t bytes);

/* `count` times `bytes`, all zero. */
void *xasm_calloc(xasm_arena arena, uint64_t count, uint64_t bytes);

/*
 * Makes an allocation of that arena larger or smaller, elsewhere if need be.
 * NULL leaves it as it is. For NULL it is xasm_malloc(); 0 bytes do not free.
 */
void *xasm_realloc(xasm_arena arena, void *place, uint64_t bytes);

/*
 * Gives an allocation back; a variable that shows it should be described anew.
 * 0, also for NULL. What was freed already, or does not begin an allocation, is
 * -EINVAL; what is in no arena -ENOENT: nothing changes then, and one line on
 * standard error says so.
 */
int xasm_free(void *place);

/*
 * xasm_aligned_alloc() into `*place`, with a reason: 0, -ENOMEM, -EINVAL (align,
 * or `place` is NULL), -ENOENT, -ENOSYS. An `align` of 0 counts as 64.
 */
int xasm_allocate(xasm_arena arena, uint64_t bytes, uint64_t align, void **place);

/* xasm_aligned_alloc() under its first name. */
void *xasm_arena_alloc(xasm_arena arena, uint64_t bytes, uint64_t align);

/* Bytes that can be used of an allocation, at least those asked for; else 0. */
uint64_t xasm_usable_size(const void *place);

struct xasm_usage {
	uint64_t used;         /* bytes in use now, whole multiples of 64 */
	uint64_t peak;         /* the most that was in use at once */
	uint64_t blocks;       /* allocations now */
	uint64_t largest_free; /* bytes of the largest that could be had now */
};

/* Fills in `usage`; 0, -ENOENT, -EINVAL for NULL, -ENOSYS. */
int xasm_heap_usage(xasm_arena arena, struct xasm_usage *usage);

/* ---- more about arenas ------------------------------------------------------- */

/* xasm_var_spec.role: what a variable is on a mesh. */
enum {
	XASM_ROLE_DATA = 0,
	XASM_ROLE_COORDINATE = 1,
	XASM_ROLE_ELEMENT_FIELD = 2,
	XASM_ROLE_VERTEX_FIELD = 3
};

/* A variable with everything readers can be told. */
struct xasm_var_spec {
	const char *name;      /* 1 to 119 bytes */
	const char *unit;      /* at most 31 bytes, or NULL */
	const char *axes;      /* comma separated, at most 63 bytes, or NULL */
	const uint64_t *shape; /* `ndim` numbers; NULL when ndim is 0 */
	uint64_t offset;       /* bytes from the arena's start */
	uint32_t dtype;        /* XASM_F64, ... */
	uint32_t ndim;         /* 0 to 8 */
	char order;            /* 'C' or 'F' */
	uint8_t role;          /* XASM_ROLE_... */
	uint8_t reserved[6];   /* 0 */
};

/* xasm_var() with unit, axes, role and an offset. Errors as there. */
int xasm_var_describe(xasm_arena arena, const struct xasm_var_spec *spec);

/* Counters of an arena. */
struct xasm_stats {
	uint64_t generation;         /* newest generation */
	uint64_t dropped;            /* publishes refused */
	uint64_t discarded;          /* generations taken from their readers */
	uint64_t waited;             /* publishes that waited for a reader */
	uint64_t cow_faults;         /* chunks copied */
	uint64_t held;               /* generations published or leased */
	uint64_t segid;              /* XEMEM segment id */
	uint64_t backing_page_bytes; /* host page: 4 KiB or 2 MiB */
};

/*
 * Publishes one state of `count` arenas under one step and time: all of them or
 * none. Returns 0, or what xasm_publish() returns when one of them is not
 * published; -EINVAL for no arena, or more than 32.
 */
int xasm_publish_set(const xasm_arena *arenas, uint32_t count, uint64_t step,
		     double time);

/*
 * Has copies of the chunks that `bytes` bytes at `start` touch go to `bank` (0
 * to nr_banks - 1) from now on, where no generation needs that bank's frame; -1
 * takes the wish back. Chunks that are written in the same step and go to the
 * same bank are one piece for readers if they are neighbours. 0; -EINVAL for an
 * arena without XASM_PREFERRED or that bank, -EFAULT, -ENOENT, -ENOSYS.
 */
int xasm_prefer(const void *start, uint64_t bytes, int bank);

/* A chunk that was written in the step just published. */
struct xasm_copied {
	uint64_t chunk;    /* begins at chunk * chunk_bytes of the arena */
	uint32_t bank;     /* where it is now; its next copy goes elsewhere */
	uint32_t reserved; /* 0 */
};

/*
 * A placement policy of the program: fills the table of xasm_prefer() for the
 * steps to come. It is given `count` chunks that were written in the step just
 * published, in the order of their first writes; 128 at most, and called again
 * for more; once with 0 if there are none. It must not publish.
 */
typedef void (*xasm_policy)(void *data, xasm_arena arena, const struct xasm_copied *copied,
			    uint64_t count);

/*
 * Has `policy` called with `data` after each successful publish of an arena, by
 * the thread that publishes and before the publish returns; NULL ends that. A
 * first write never calls it. Costs one call into the kernel for 128 chunks
 * written, and what `policy` does. Not while another thread publishes the arena.
 * 0; -EINVAL for an arena without XASM_PREFERRED, -ENOENT, -ENOSYS.
 */
int xasm_set_policy(xasm_arena arena, xasm_policy policy, void *data);

/*
 * Waits until `readers` are attached, at most `timeout_ms` milliseconds (0 = no
 * limit), so that none misses the first generation. Returns how many there are;
 * -ETIMEDOUT, -ENOENT.
 */
int xasm_wait_readers(xasm_arena arena, uint32_t readers, uint32_t timeout_ms);

/* Fills in `stats`; 0, -ENOENT, or -EINVAL for NULL. */
int xasm_arena_stats(xasm_arena arena, struct xasm_stats *stats);

/*
 * Makes `bytes` bytes of arena memory at `start` writable now. Needed on Linux
 * before a system call is to store there, as read(2) does: it would fail with
 * EFAULT on a chunk that has not been written since the last publish. In an
 * enclave it changes nothing. 0, -ENOENT, or -EFAULT when not in one arena.
 */
int xasm_touch(const void *start, uint64_t bytes);

/* The arena that contains `pointer`; -ENOENT when none does. */
xasm_arena xasm_arena_find(const void *pointer);

/*
 * Ends an arena: its memory must not be used any more, no further generation
 * comes. Readers keep what they hold. The end of the process does the same.
 * 0 or -ENOENT.
 */
int xasm_arena_destroy(xasm_arena arena);

/* Counters of the enclave's kernel. */
struct xasm_kernel_stats {
	uint64_t mode;         /* ring the kernel runs in: 0 or 3 */
	uint64_t syscalls;     /* system calls served */
	uint64_t forwarded;    /* of them, forwarded to the host */
	uint64_t interrupts;   /* command interrupts taken */
	uint64_t cow_faults;   /* chunks copied on a first write */
	uint64_t publishes;    /* publishes */
	uint64_t free_bytes;   /* free memory */
	uint64_t flush_method; /* 0 upper-level store, 1 CR3 reload */
};

/* Fills in `stats`; 0, -EINVAL for NULL, -ENOSYS on Linux. */
int xasm_kernel_stats(struct xasm_kernel_stats *stats);

/* What the host counts for the CPU that runs this program; exact. */
struct xasm_host_counters {
	uint64_t emulated_instructions; /* interpreted by the host */
	uint64_t exits;                 /* exits from the guest */
	uint64_t guest_page_faults;     /* page faults given to the guest */
	uint64_t injected_interrupts;   /* interrupts given to the guest */
};

/* Fills in `counters`; 0, -EINVAL for NULL, -ENOSYS on Linux. For benchmarks. */
int xasm_host_counters(struct xasm_host_counters *counters);

/* ---- arenas of others ------------------------------------------------------- */

/*
 * A program attaches arenas that other enclaves, Linux processes or itself
 * publish: read-only, whole, without a copy. In an enclave only; processes on
 * Linux use libxemem. XEMEM's names, then what they have no word for.
 *
 *     int64_t apid = xemem_get(xasm_lookup("heat", 5000), XEMEM_RDONLY);
 *     struct xemem_addr heat = { apid, 0 };
 *     const double *t = xemem_attach(heat, 0, NULL);   // (void *)-1 on failure
 *     do use(t); while (xasm_next(t, XASM_NO_LIMIT, NULL) == 1);
 *     xemem_release(apid);
 */
#define XEMEM_RDONLY 1
#define XEMEM_RDWR 2
#define XASM_NO_LIMIT UINT32_MAX

#ifndef XEMEM_ADDR /* xemem.h has the same */
#define XEMEM_ADDR
struct xemem_addr {
	int64_t apid;
	uint64_t offset; /* 0 for an arena, else whole pages */
};
#endif

/* The segment of that name; -ENOENT. */
int64_t xemem_lookup_segid(const char *name);

/* The same, waiting for the name up to `timeout_ms`; -ETIMEDOUT. */
int64_t xasm_lookup(const char *name, uint32_t timeout_ms);

/*
 * Access to it, by XEMEM_RDONLY or XEMEM_RDWR: an apid. -EACCES without
 * permission, to write an arena always; -ENOENT; -EIDRM when it has ended.
 */
int64_t xemem_get(int64_t segid, int flags);

/*
 * Attaches `size` bytes of a plain segment from the offset on, or all that
 * follow if 0; or the whole of an arena, showing its newest generation and
 * waiting for the first one if there is none. `vaddr` is NULL or where it would
 * be anyway. (void *)-1 on failure; xasm_attach() tells which.
 */
void *xemem_attach(struct xemem_addr addr, uint64_t size, void *vaddr);

/* Detaches, or ends a segment of the program's own and unmaps it; 0, also if
 * nothing is there. */
int xemem_detach(void *vaddr);

/* Gives the access back and detaches; 0 or -EBADF. */
int xemem_release(int64_t apid);

/* xasm_attachment.policy: which generations xasm_next() shows. */
#define XASM_LATEST 1u /* the newest */
#define XASM_EVERY 2u  /* each one, as far as the exporter's queue goes */

struct xasm_attachment {
	uint64_t apid;
	uint64_t offset;      /* 0 for an arena */
	uint64_t size_bytes;  /* 0 = all that follows; then: bytes, whole pages */
	uint64_t start;       /* 0 or where it would be; then: address */
	uint32_t policy;      /* XASM_LATEST, XASM_EVERY */
	uint32_t nr_banks;    /* then: banks of the arena, 0 = plain */
	uint64_t chunk_bytes; /* then: bytes of a chunk */
};

/*
 * Attaches; of an arena nothing can be read before xasm_next(). 0, -EBADF for an
 * apid of somebody else, -EEXIST when the arena is attached, -EINVAL, -EIDRM,
 * -ENOSPC with 16 attached, -ENOMEM.
 */
int xasm_attach(struct xasm_attachment *attachment);

struct xasm_imported {
	uint64_t generation;
	uint64_t step;          /* the exporter's */
	uint64_t time_bits;     /* bits of its double */
	uint64_t unix_ns;       /* wall clock at its publish */
	uint64_t chunks_copied; /* by the exporter since its publish before */
	uint64_t chunks_mapped; /* that had to be mapped anew here */
	uint64_t address;
	uint64_t size_bytes;
	uint64_t end_reason;    /* 0, or why the stream ended: 1 closed, 2 program
				   died, 3 exporter gone, 4 removed */
};

/*
 * Shows the next generation at the same address and gives the one before back.
 * 1; 0 at the end of the stream, when the last one stays; -ETIMEDOUT; -EINVAL
 * when nothing is attached there; -EIO. After an error the memory may not be
 * read. `imported` may be NULL.
 */
int xasm_next(const void *at, uint32_t timeout_ms, struct xasm_imported *imported);

/*
 * 1 while what is shown is what was published; 0 once an exporter with
 * XASM_DISCARD_OLDEST has taken it away. To be asked after reading.
 */
int xasm_valid(const void *at);

struct xasm_found {
	const void *data;
	uint64_t bytes;
	uint64_t shape[8];
	int64_t strides[8]; /* in bytes */
	uint32_t dtype;     /* XASM_F64, ... */
	uint32_t ndim;
	char order;         /* 'C' or 'F' */
	uint8_t reserved[7];
};

/* A variable of what is attached; 0, -ENOENT, -EINVAL. */
int xasm_find(const void *at, const char *name, struct xasm_found *found);

/* ---- sharing ordinary memory ---------------------------------------------- */

/*
 * A plain segment is memory as it is, without generations. In an enclave only:
 * processes of Linux use libxemem.
 *
 *     struct xasm_segment s = { .name = "halo", .size_bytes = 1 << 20 };
 *     int64_t segid = xasm_segment_make(&s);
 *     double *halo = (double *)s.start;
 */

/* xasm_segment.flags */
#define XASM_SEGMENT_SIGNALS 1u /* it can be signalled; its maker is subscribed */
#define XASM_SEGMENT_GID 2u     /* gid counts */

struct xasm_segment {
	char name[64];        /* "" = named later by xemem_make() */
	uint64_t size_bytes;  /* whole pages; 0 = signals without memory */
	uint64_t page_bytes;  /* 4096 or 2 MiB, 0 = either; then: which */
	uint64_t start;       /* 0 or where it would be; then: address */
	uint32_t mode;        /* who may: rw bits as of a file; 0 = 0600 */
	uint32_t gid;
	uint32_t flags;
	uint32_t reserved;    /* 0 */
};

/*
 * Makes it of fresh memory: the segment id. -EINVAL; -EEXIST the name is taken;
 * -ENOSPC 16 attached or made, or 64 made; -ENOMEM, also without pages of that
 * size.
 */
int64_t xasm_segment_make(struct xasm_segment *segment);

/* Ends it; the memory stays until xemem_detach(). 0, -EACCES when it is not this
 * program's, -EIDRM. */
int xemem_remove(int64_t segid);

/* Signals every subscriber but this one. 0, -EACCES when it cannot be signalled,
 * -EIDRM, -EBADF. */
int xemem_signal(int64_t apid);

/* The same as its maker, or from outside. */
int xemem_signal_segid(int64_t segid);

/* Has signals kept from now on. 0, -EACCES, -EEXIST, -EIDRM, -EBADF. */
int xasm_subscribe(int64_t apid);

/*
 * Signals since the last time, 0 when the segment has ended. Waits up to
 * `timeout_ms` for one; -ETIMEDOUT; -ENOTCONN when nobody has subscribed.
 */
int64_t xasm_wait(int64_t apid, uint32_t timeout_ms);

/* The same as its maker. */
int64_t xasm_wait_segid(int64_t segid, uint32_t timeout_ms);

/* ---- the XASM paper's names ------------------------------------------------ */

/*
 * The same arenas under the names of the paper. Ids are 32-bit numbers (id_t).
 * Differences: the pool consists of whole banks, so its size should be a
 * multiple of the extent; the kernel chooses the physical memory; a snapshot is
 * a generation of the arenas, not an address space of its own.
 */
#ifndef XASM_NO_PAPER_NAMES

#define VM_READ (UINT64_C(1) << 0)
#define VM_WRITE (UINT64_C(1) << 1)
#define VM_USER (UINT64_C(1) << 6)
#define BK_ARENA (UINT64_C(1) << 0)

/* Stores the id of the calling process's address space; 0 or -EINVAL. */
int aspace_get_myid(uint32_t *id);

/*
 * Maps a region of `extent` bytes at `start` with a backing pool of
 * `backing_extent` bytes, from which copy-on-write faults take their frames.
 * It is an arena of 1 + backing_extent / extent banks.
 *
 * id              from aspace_get_myid()
 * start           multiple of 512 GiB, not NULL; the kernel may insist on the
 *                 address it would choose itself (-EINVAL)
 * extent          bytes, a multiple of `pagesz`
 * backing_extent  bytes, from `extent` to 15 times `extent`
 * vmflags         of VM_READ, VM_WRITE, VM_USER; all three hold anyway
 * bkflags         BK_ARENA or 0
 * pagesz          copy-on-write granularity: XASM_CHUNK_4K or XASM_CHUNK_2M
 * name            what readers ask for; NULL or "": named later by xemem_make()
 * pmem            0
 *
 * 0, -EINVAL when an argument breaks these rules, else as xasm_arena_create().
 */
int arena_map_backed_region(uint32_t id, void *start, uint64_t extent,
			    uint64_t backing_extent, uint64_t vmflags,
			    uint64_t bkflags, uint64_t pagesz, const char *name,
			    uint64_t pmem);

/* The same at an address of the kernel's choice, stored to `*start`. */
int arena_map_backed_region_anywhere(uint32_t id, void **start, uint64_t extent,
				     uint64_t backing_extent, uint64_t vmflags,
				     uint64_t bkflags, uint64_t pagesz,
				     const char *name, uint64_t pmem);

/*
 * Snapshots the address space `src`, which must be the caller's: publishes
 * each of its arenas (also those of xasm_arena_create()) and stores the number
 * of the snapshot (1, 2, ...) to `*dst`. Readers see that number as the step
 * and the time of each arena's new generation. `flags` is 0.
 *
 * When some arena could not be published the others are, `*dst` is 0 and the
 * first arena's errno is returned: -EAGAIN as for xasm_publish(). -ENOENT
 * without any arena; -EINVAL for another address space, flags, or NULL.
 */
int aspace_copy(uint32_t src, uint32_t *dst, int flags);

/*
 * SMARTMAP, as Kitten's: shows the memory of `src`, another process of the enclave, to
 * the caller `dst` at `start`, which is 1 to 12 times SMARTMAP_ALIGN; `extent` is
 * SMARTMAP_ALIGN. Its address `a` is then at `start + a`, to be read and written as it
 * is there: image, heap, stack and mmap. Arenas and attachments do not show, and
 * buffers of system calls may not lie there. When `src` ends its memory is gone: who
 * touches it then has SIGSEGV.
 *
 * 0; -EPERM another `dst`; -EINVAL no such place, or `src` is the caller; -ESRCH no such
 * process; -EBUSY another one shows there; -EEXIST it shows already; -ENOSYS on Linux.
 */
#define SMARTMAP_SHIFT 39
#define SMARTMAP_ALIGN (1ull << SMARTMAP_SHIFT)
int aspace_smartmap(uint32_t src, uint32_t dst, uint64_t start, uint64_t extent);

/* Takes that back. 0; -EPERM; -ENOENT it does not show; -ENOSYS. */
int aspace_unsmartmap(uint32_t src, uint32_t dst);

/*
 * The caller's rank among its siblings (-EPERM, -EEXIST a sibling has it), the rank of a
 * process (-ESRCH, -ENOENT it has none), and the process that has a rank (-ENOENT).
 */
int aspace_set_rank(uint32_t id, uint32_t rank);
int aspace_get_rank(uint32_t id, uint32_t *rank);
int aspace_of_rank(uint32_t rank, uint32_t *id);

/*
 * Gives the arena, or the plain segment of xasm_segment_make(), that is mapped at
 * `region`, `size` bytes long, a (further) name. One name serves all of an
 * arena's snapshots. Returns the segment id.
 *
 * -EINVAL nothing such there, or the name cannot be; -EEXIST the name is taken.
 */
int64_t xemem_make(void *region, uint64_t size, const char *name);

#endif /* XASM_NO_PAPER_NAMES */

#ifdef __cplusplus
}
#endif

#endif /* XASM_H */
