/*
 * xemem.h - how a C program on Linux reads what others publish.
 *
 * Link with libxemem.so.0 or libxemem.a:
 *
 *     cc prog.c $(pkg-config --cflags --libs xemem)
 *     cc prog.c $(pkg-config --cflags xemem) .../libxemem.a -lm
 *
 * (with -static, too, where the linker warns of functions of glibc's that this
 * library does not call).
 *
 * A *stream* follows one arena, whoever publishes it: a program in an enclave,
 * or a process on Linux. Each *snapshot* it gives is one published state,
 * mapped read-only and without a copy; chunks that did not change since the
 * snapshot before are not mapped again.
 *
 *     xemem_stream *stream;
 *     xemem_snapshot *snap;
 *     struct xemem_variable flux;
 *
 *     if (xemem_stream_open("snap/flux", XEMEM_LATEST, 30000, &stream) < 0)
 *             errx(1, "%s", xemem_error());
 *     while (xemem_stream_next(stream, 30000, &snap) == 1) {
 *             if (xemem_snapshot_find(snap, "flux", &flux) == 0)
 *                     use(flux.data, flux.shape);
 *             xemem_snapshot_release(snap);
 *     }
 *     xemem_stream_close(stream);
 *
 * Functions return a value >= 0 or a negative errno, and then set errno, too;
 * xemem_error() has the words, the broker's own where it refused. They print
 * nothing and never end the program.
 *
 * Errors of every function besides its own: -EINVAL for NULL and nonsense,
 * -ETIMEDOUT the broker did not answer within 10 s, -ECONNRESET it is gone,
 * -ESTALE the stream or apid belongs to the process that forked us, -EPROTO
 * the broker answers nonsense, -EPERM in set-user-id programs.
 *
 * The broker is the one at $XEMEM_SOCKET, else the one of the run directory of
 * all tools ($ENCLAVE_RUNDIR, /run/enclave, ...). If none runs it is started:
 * xemem-broker beside the library, in ../bin of it, or on the PATH. It is no
 * child of the program.
 *
 * Threads: any function may be called from any thread. Calls on one stream
 * take turns, so a thread that asks it something waits for another one that
 * waits for the next snapshot; use one stream per thread to wait apart. A
 * snapshot may be read and asked by many threads at once. xemem_stream_close()
 * and xemem_snapshot_release() are for the last user: no other call on the
 * same object may run then, nor come later. Snapshots outlive their stream.
 *
 * After fork(2) the child may read what is mapped, and close and release, but
 * ask for nothing: it opens streams of its own.
 */
#ifndef XEMEM_H
#define XEMEM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* For every timeout, in milliseconds: wait for ever. 0 does not wait. */
#define XEMEM_NO_LIMIT UINT32_MAX

/*
 * Words for the last failure of the calling thread, "" if there was none. Good
 * until the thread's next failure.
 */
const char *xemem_error(void);

/* ---- streams --------------------------------------------------------------- */

typedef struct xemem_stream xemem_stream;
typedef struct xemem_snapshot xemem_snapshot;

/* Which snapshots xemem_stream_next() gives: one of these, */
#define XEMEM_LATEST 1 /* the newest each time, skipping what came between */
#define XEMEM_EVERY 2  /* each one that the producer's queue kept */
/* or with this: never an arena whose producer has ended already. */
#define XEMEM_LIVE 0x100

/*
 * Attaches the arena `name`, waiting up to `timeout_ms` for a broker and a live
 * arena of that name. If none came, one that has ended and is retained does.
 * "name@N" is the segment N, which has or had that name. 0.
 *
 * -ENOENT     no such name (without waiting), -ETIMEDOUT (after waiting)
 * -EACCES     its permit does not let us read
 * -EIDRM      it has ended and is not retained
 */
int xemem_stream_open(const char *name, int how, uint32_t timeout_ms,
		      xemem_stream **stream);

/* Ends the stream; its snapshots stay. NULL is nothing. */
void xemem_stream_close(xemem_stream *stream);

/*
 * The next snapshot, waiting for it up to `timeout_ms`: 1; 0 at the end of the
 * stream (xemem_stream_about() says why), when `*snapshot` is NULL.
 *
 * It holds a lease, and with that one of the arena's banks, until released: who
 * keeps many makes the producer drop its next ones.
 *
 * -ETIMEDOUT  nothing came
 * -EDQUOT     64 snapshots held already
 * -ENOMEM     more pieces than a process may map
 */
int xemem_stream_next(xemem_stream *stream, uint32_t timeout_ms,
		      xemem_snapshot **snapshot);

/*
 * Generation `generation`, whatever was read before; the stream goes on where
 * it was. 0; -ENOENT when it is not published yet, or not kept any more.
 */
int xemem_stream_at(xemem_stream *stream, uint64_t generation,
		    xemem_snapshot **snapshot);

/* A descriptor to poll: readable when xemem_stream_next() may have something
 * new. It is the stream's; do not read or close it. */
int xemem_stream_fd(const xemem_stream *stream);

/* A generation that xemem_stream_at() would find now. */
struct xemem_generation {
	uint64_t generation;
	uint64_t step;
	double time;
	uint64_t is_leased; /* 1 while a reader holds it */
};

/*
 * Stores at most `room` generations, ascending; returns how many there are.
 * `list` may be NULL when `room` is 0.
 */
int xemem_stream_generations(xemem_stream *stream,
			     struct xemem_generation *list, size_t room);

/* A piece of the arena. */
struct xemem_range {
	uint64_t offset;
	uint64_t nbytes;
};

/*
 * The byte ranges that changed between two generations, in whichever order,
 * exact to a chunk, without comparing memory. Stores at most `room` of them,
 * ascending; returns how many there are.
 *
 * -ENOENT   no such generation
 * -ENODATA  what changed is not known any more: hold the later one, and ask
 *           xemem_snapshot_diff()
 */
int64_t xemem_stream_diff(xemem_stream *stream, uint64_t a, uint64_t b,
			  struct xemem_range *ranges, size_t room);

/* xemem_stream_about.end_reason; 0 while the stream has not ended. */
enum {
	XEMEM_CLOSED = 1,        /* closed by its program */
	XEMEM_PROGRAM_DIED = 2,
	XEMEM_EXPORTER_GONE = 3, /* its enclave, or process, is gone */
	XEMEM_REMOVED = 4
};

struct xemem_stream_about {
	uint64_t segid;
	uint64_t nbytes;        /* of the payload */
	uint64_t chunk_bytes;   /* of a copy-on-write chunk */
	uint64_t page_bytes;    /* of a host page: 4 KiB or 2 MiB */
	uint64_t nr_banks;
	uint64_t missed;        /* generations published, but never given to us */
	uint64_t runs_mapped;   /* pieces mapped so far, each a system call */
	uint64_t chunks_mapped; /* chunks in them */
	uint64_t chunks_reused; /* chunks that were in place already */
	uint64_t end_reason;
};

/* Fills in `about`; 0. */
int xemem_stream_about(xemem_stream *stream, struct xemem_stream_about *about);

/* ---- snapshots ------------------------------------------------------------- */

struct xemem_snapshot_about {
	const void *data;        /* the whole payload */
	uint64_t nbytes;
	uint64_t generation;     /* number of this publish, from 1 */
	uint64_t step;           /* the producer's */
	double time;             /* the producer's, in its own unit */
	uint64_t unix_ns;        /* wall clock at the publish */
	uint64_t chunks_copied;  /* by the producer's side since the publish before */
	uint64_t publish_cycles; /* spent in the publish */
	uint64_t runs;           /* mapped pieces it consists of */
};

/* Fills in `about`; 0. */
int xemem_snapshot_about(const xemem_snapshot *snapshot,
			 struct xemem_snapshot_about *about);

/* Element types; the numbers are those of xasm.h. */
enum {
	XEMEM_OTHER = 0, /* none of these */
	XEMEM_F64 = 1,
	XEMEM_F32 = 2,
	XEMEM_I64 = 3,
	XEMEM_I32 = 4,
	XEMEM_I16 = 5,
	XEMEM_I8 = 6,
	XEMEM_U64 = 7,
	XEMEM_U32 = 8,
	XEMEM_U16 = 9,
	XEMEM_U8 = 10,
	XEMEM_C128 = 11, /* double complex */
	XEMEM_C64 = 12   /* float complex */
};

struct xemem_variable {
	const void *data;  /* the first element; good until the release */
	uint64_t nbytes;   /* all elements lie within */
	uint64_t shape[8]; /* elements per dimension */
	int64_t strides[8]; /* bytes between neighbours per dimension */
	uint32_t dtype;    /* XEMEM_F64, ... */
	uint32_t lanes;    /* numbers in one element, most often 1 */
	uint32_t ndim;     /* 0 = scalar */
	char order;        /* 'C' last index fastest, 'F' first */
	uint8_t role;      /* 0 data, 1 coordinate, 2 on elements, 3 on vertices */
	uint8_t reserved[2];
	char name[128];
	char unit[40];     /* "" if there is none */
	char axes[72];     /* comma separated labels, "" if there are none */
};

/*
 * The variable `name`: 0. -ENOENT there is none; -EINVAL its description is
 * wrong (a variable that is found lies wholly inside the snapshot).
 */
int xemem_snapshot_find(const xemem_snapshot *snapshot, const char *name,
			struct xemem_variable *variable);

/* Stores at most `room` variables; returns how many there are. */
int xemem_snapshot_variables(const xemem_snapshot *snapshot,
			     struct xemem_variable *list, size_t room);

/*
 * 1 if what was read until now is what was published; 0 once the producer has
 * taken it back (policy discard-oldest) or broken its word. Ask after reading.
 */
int xemem_snapshot_valid(const xemem_snapshot *snapshot);

/* As xemem_stream_diff(), from generation `since` to this snapshot, whose lease
 * makes sure that the answer to an earlier one is known. */
int64_t xemem_snapshot_diff(const xemem_snapshot *snapshot, uint64_t since,
			    struct xemem_range *ranges, size_t room);

/* Gives the snapshot back: nothing of it may be read any more. NULL is nothing. */
void xemem_snapshot_release(xemem_snapshot *snapshot);

/* ---- XEMEM's verbs ---------------------------------------------------------- */

/*
 * xemem_lookup_segid(), _get, _attach, _detach, _release, _signal and
 * _signal_segid are declared in xasm.h, too, with the same types and results, so
 * that one source serves in an enclave (libxasm.a) and on Linux (this library).
 * What waits is xasm_lookup(), xasm_subscribe() and xasm_wait() there. Both headers may be included. libxasm.a and libxemem.a
 * cannot be linked together, libxasm.a and libxemem.so can: the verbs are then
 * those of libxasm, which are for enclaves (-ENOSYS on Linux), and streams are
 * read as above.
 *
 * To make segments on Linux use libxpmem (xpmem.h); their segids work here.
 */
#define XEMEM_RDONLY 1
#define XEMEM_RDWR 2

#ifndef XEMEM_ADDR
#define XEMEM_ADDR
struct xemem_addr {
	int64_t apid;
	uint64_t offset; /* bytes from the segment's beginning, whole pages */
};
#endif

/* The segment of that name; -ENOENT. */
int64_t xemem_lookup_segid(const char *name);

/* The same, waiting for the name up to `timeout_ms`; -ETIMEDOUT. */
int64_t xemem_lookup(const char *name, uint32_t timeout_ms);

/*
 * Access to it, by XEMEM_RDONLY or XEMEM_RDWR: an apid of this process.
 * -EACCES without permission, to write an arena always; -ENOENT; -EIDRM when it
 * has ended; -EDQUOT with 256 of them.
 */
int64_t xemem_get(int64_t segid, int flags);

/*
 * Maps `size` bytes at `addr.offset` of a plain segment, 0 = all behind the
 * offset, read-only or read-write as it was got. Of an arena: the newest
 * generation, whole (offset and size 0), waiting for the first one if there is
 * none; it is held until detached. `vaddr` is NULL. (void *)-1 on failure, when
 * errno is -EINVAL's, -EBADF's, -EIDRM's or -ENOTCONN's (its broker has ended).
 */
void *xemem_attach(struct xemem_addr addr, uint64_t size, void *vaddr);

/* Detaches what xemem_attach() returned; 0, also if nothing is attached there. */
int xemem_detach(void *vaddr);

/* Gives the access back and detaches all that came by it; 0 or -EBADF. */
int xemem_release(int64_t apid);

/*
 * Signals all subscribers of a plain segment but this process: 0. -EACCES when
 * it was not made for signals, -EINVAL for an arena, -EIDRM, -EBADF.
 */
int xemem_signal(int64_t apid);

/* The same from outside: get, signal, release. */
int xemem_signal_segid(int64_t segid);

/*
 * Subscribes to the signals of a plain segment and returns a descriptor to
 * poll, which is the library's. Signals sent before are not seen.
 */
int xemem_subscribe(int64_t apid);

/*
 * The number of signals since the last call, waiting for one up to
 * `timeout_ms`; 0 when the segment has ended. Subscribes first if need be.
 * -ETIMEDOUT, -EACCES, -EBADF.
 */
int64_t xemem_wait(int64_t apid, uint32_t timeout_ms);

#ifdef __cplusplus
}
#endif

#endif /* XEMEM_H */
