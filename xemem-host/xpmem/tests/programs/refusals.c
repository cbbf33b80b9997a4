/*
 * refusals.c - what is refused, with which errno, and what the header says
 * about layout. The layout is checked by the compiler.
 */
#include <fcntl.h>

#include "check.h"

#define SAME(type, other)                                                    \
	_Static_assert(_Generic((type)0, other: 1, default: 0), #type)

SAME(xpmem_segid_t, int64_t);
SAME(xpmem_apid_t, int64_t);
_Static_assert(sizeof(struct xpmem_addr) == 16, "size");
_Static_assert(offsetof(struct xpmem_addr, apid) == 0, "apid");
_Static_assert(offsetof(struct xpmem_addr, offset) == 8, "offset");
_Static_assert(XPMEM_RDONLY == 1 && XPMEM_RDWR == 2, "flags");
_Static_assert(XPMEM_PERMIT_MODE == 1, "permit");
_Static_assert(XPMEM_MAXADDR_SIZE == SIZE_MAX, "address space");

static int (*const version)(void) = xpmem_version;
static xpmem_segid_t (*const make)(void *, size_t, int, void *) = xpmem_make;
static int (*const drop)(xpmem_segid_t) = xpmem_remove;
static xpmem_apid_t (*const get)(xpmem_segid_t, int, int, void *) = xpmem_get;
static int (*const release)(xpmem_apid_t) = xpmem_release;
static void *(*const map)(struct xpmem_addr, size_t, void *) = xpmem_attach;
static int (*const unmap)(void *) = xpmem_detach;

/* Zeroed pages of the program file's own, as old codes have them. */
static char fixed[4 * PAGE] __attribute__((aligned(4096)));

static void make_is_refused(void)
{
	char *p = (char *)numbered(4 * PAGE);
	char *file, *shared;
	int fd;

	FAILS(make(p, PAGE, 0, (void *)0600), EINVAL);
	FAILS(make(p, PAGE, MODE(01600)), EINVAL);
	FAILS(make(p, 0, MODE(0600)), EINVAL);
	FAILS(make(p + 8, PAGE, MODE(0600)), EINVAL);
	FAILS(make(p, PAGE + 8, MODE(0600)), EINVAL);
	FAILS(make((void *)-PAGE, 4 * PAGE, MODE(0600)), EINVAL);
	FAILS(make(NULL, XPMEM_MAXADDR_SIZE, MODE(0600)), EOPNOTSUPP);
	CHECK(munmap(p + 2 * PAGE, PAGE) == 0);
	FAILS(make(p, 4 * PAGE, MODE(0600)), ENOMEM);
	CHECK(mprotect(p + PAGE, PAGE, PROT_READ) == 0);
	FAILS(make(p, 2 * PAGE, MODE(0600)), EACCES);
	p = (char *)((uintptr_t)&fd & -PAGE);
	FAILS(make(p, PAGE, MODE(0600)), EOPNOTSUPP);
	fd = open("/proc/self/exe", O_RDONLY);
	file = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	CHECK(file != MAP_FAILED);
	FAILS(make(file, PAGE, MODE(0600)), EOPNOTSUPP);
	shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(shared != MAP_FAILED);
	FAILS(make(shared, PAGE, MODE(0600)), EBUSY);
}

static void ids_are_refused(void)
{
	struct xpmem_addr none = {0, 0}, alien = {((int64_t)1 << 32) | 1, 0};
	struct xpmem_addr unknown = {((int64_t)999 << 32) | getpid(), 0};

	FAILS(drop(0), EINVAL);
	FAILS(drop(-1), EINVAL);
	FAILS(drop(999999999), ENOENT);
	FAILS(get(0, XPMEM_RDWR, ANY), EINVAL);
	FAILS(get(-5, XPMEM_RDWR, ANY), EINVAL);
	FAILS(get(999999999, XPMEM_RDWR, ANY), ENOENT);
	FAILS(release(0), EINVAL);
	FAILS(release(-1), EINVAL);
	FAILS(release(alien.apid), EACCES);
	FAILS(release(unknown.apid), ENOENT);
	FAILS(map(none, PAGE, NULL), EINVAL);
	FAILS(map(alien, PAGE, NULL), EACCES);
	FAILS(map(unknown, PAGE, NULL), ENOENT);
}

static void get_is_refused(void)
{
	xpmem_segid_t segid = make(numbered(PAGE), PAGE, MODE(0600));

	FAILS(get(segid, 0, ANY), EINVAL);
	FAILS(get(segid, XPMEM_RDWR | XPMEM_RDONLY, ANY), EINVAL);
	FAILS(get(segid, 4, ANY), EINVAL);
	FAILS(get(segid, XPMEM_RDWR, MODE(0600)), EINVAL);
	FAILS(get(segid, XPMEM_RDWR, 0, NULL), EINVAL);
	/* Nobody writes a segment that its mode lets nobody write. */
	segid = make(numbered(PAGE), PAGE, MODE(0444));
	FAILS(get(segid, XPMEM_RDWR, ANY), EACCES);
	CHECK(get(segid, XPMEM_RDONLY, ANY) > 0);
}

static void use_of_the_parents_ids(int peer)
{
	xpmem_segid_t segid = hear(peer);
	struct xpmem_addr addr = {hear(peer), 0};
	void *inherited = (void *)(intptr_t)hear(peer);
	xpmem_apid_t own;

	/* Attachments are not inherited, and what is not there is detached. */
	CHECK(mincore(inherited, PAGE, (unsigned char[1]){0}) == -1);
	CHECK(unmap(inherited) == 0);
	FAILS(map(addr, PAGE, NULL), EACCES);
	FAILS(release(addr.apid), EACCES);
	FAILS(drop(segid), EACCES);
	own = get(segid, XPMEM_RDWR, ANY);
	CHECK(own > 0 && own != addr.apid);
	CHECK(*(uint64_t *)attach(own, PAGE, PAGE) == PAGE / 8);
	say(peer, 0);
}

static void children_begin_anew(void)
{
	xpmem_segid_t segid = make(numbered(2 * PAGE), 2 * PAGE, MODE(0600));
	xpmem_apid_t apid = get(segid, XPMEM_RDWR, ANY);
	void *seen = attach(apid, 0, PAGE);
	int peer;
	pid_t pid = partner(use_of_the_parents_ids, &peer);

	say(peer, segid);
	say(peer, apid);
	say(peer, (intptr_t)seen);
	CHECK(hear(peer) == 0);
	ends_well(pid);
	CHECK(*(uint64_t *)seen == 0);
	CHECK(drop(segid) == 0);
}

static void read_only_is_read_only(void)
{
	xpmem_segid_t segid = make(fixed, sizeof fixed, MODE(0600));
	xpmem_apid_t apid = get(segid, XPMEM_RDONLY, ANY);
	char *seen = attach(apid, PAGE, PAGE);
	char out;
	int pipes[2];

	CHECK(seen != FAILED);
	fixed[PAGE + 5] = 'x';
	CHECK(seen[5] == 'x');
	CHECK(mprotect(seen, PAGE, PROT_READ | PROT_WRITE) == -1);
	CHECK(pipe(pipes) == 0 && write(pipes[1], "y", 1) == 1);
	FAILS(read(pipes[0], seen, 1), EFAULT);
	/* System calls read from it, as from any memory. */
	CHECK(write(pipes[1], seen + 5, 1) == 1);
	CHECK(read(pipes[0], &out, 1) == 1 && (out == 'y' || out == 'x'));
}

int main(void)
{
	CHECK(xpmem_init() == 0);
	CHECK(version() > 0);
	make_is_refused();
	ids_are_refused();
	get_is_refused();
	children_begin_anew();
	read_only_is_read_only();
	return 0;
}
