/*
 * cases.c NUMBER - the numbered cases of XPMEM's behaviour, each between an
 * exporter (this process) and an importer (its partner).
 */
#include "check.h"

#define BYTES (8 * PAGE)
#define WORDS (BYTES / sizeof(uint64_t))

static void import_and_answer(int peer)
{
	xpmem_segid_t segid = hear(peer);
	xpmem_apid_t apid = xpmem_get(segid, XPMEM_RDWR, ANY);
	uint64_t *seen;

	CHECK(apid > 0);
	seen = attach(apid, 0, BYTES);
	CHECK(seen != FAILED);
	for (size_t i = 0; i < WORDS; i++)
		CHECK(seen[i] == i);
	seen[3] = 33;
	say(peer, 0);
	CHECK(hear(peer) == 0);
	CHECK(seen[4] == 44);
	CHECK(xpmem_detach(seen) == 0);
	CHECK(xpmem_release(apid) == 0);
	say(peer, 0);
}

/* 001: both see each other's stores, at once and in place. */
static void case_001(void)
{
	uint64_t *memory;
	int peer;
	pid_t pid = partner(import_and_answer, &peer);
	xpmem_segid_t segid;

	memory = numbered(BYTES);
	segid = xpmem_make(memory, BYTES, MODE(0600));
	CHECK(segid > 0);
	say(peer, segid);
	CHECK(hear(peer) == 0);
	CHECK(memory[3] == 33 && memory[5] == 5);
	memory[4] = 44;
	say(peer, 0);
	CHECK(hear(peer) == 0);
	ends_well(pid);
	CHECK(xpmem_remove(segid) == 0);
	CHECK(memory[3] == 33);
}

static void detach_then_release(int peer)
{
	xpmem_apid_t apid = xpmem_get(hear(peer), XPMEM_RDWR, ANY);
	uint64_t *first, *second, *third;

	CHECK(apid > 0);
	first = attach(apid, 0, BYTES);
	second = attach(apid, 2 * PAGE, PAGE);
	third = attach(apid, 0, BYTES);
	CHECK(first != FAILED && second != FAILED && third != FAILED);
	/* 002: after detach the addresses are gone, the others are not. An
	 * address inside the attachment is as good as its first. */
	CHECK(xpmem_detach(first + 1000) == 0);
	CHECK(mincore(first, PAGE, (unsigned char[1]){0}) == -1);
	CHECK(second[0] == 2 * PAGE / sizeof *second && third[1] == 1);
	/* 003: release takes the rest. */
	CHECK(xpmem_release(apid) == 0);
	CHECK(mincore(second, PAGE, (unsigned char[1]){0}) == -1);
	CHECK(mincore(third, PAGE, (unsigned char[1]){0}) == -1);
	FAILS(xpmem_release(apid), ENOENT);
	FAILS(attach(apid, 0, PAGE), ENOENT);
	say(peer, 0);
}

static void case_002(void)
{
	int peer;
	pid_t pid = partner(detach_then_release, &peer);

	say(peer, xpmem_make(numbered(BYTES), BYTES, MODE(0600)));
	CHECK(hear(peer) == 0);
	ends_well(pid);
}

static void get_and_be_late(int peer)
{
	xpmem_segid_t segid = hear(peer);
	xpmem_apid_t apid = xpmem_get(segid, XPMEM_RDONLY, ANY);
	uint64_t *seen;

	CHECK(apid > 0);
	seen = attach(apid, 0, BYTES);
	CHECK(seen != FAILED);
	say(peer, 0);
	CHECK(hear(peer) == 0);
	FAILS(attach(apid, 0, PAGE), ENOENT);
	FAILS(xpmem_get(segid, XPMEM_RDONLY, ANY), ENOENT);
	FAILS(xpmem_remove(segid), ENOENT);
	/* Nothing is taken from under an importer. */
	CHECK(seen[7] == 7);
	CHECK(xpmem_release(apid) == 0);
	say(peer, 0);
}

/* 004: a removed segment is gone for everybody who has not attached it. */
static void case_004(void)
{
	int peer;
	pid_t pid = partner(get_and_be_late, &peer);
	xpmem_segid_t segid = xpmem_make(numbered(BYTES), BYTES, MODE(0600));

	say(peer, segid);
	CHECK(hear(peer) == 0);
	CHECK(xpmem_remove(segid) == 0);
	FAILS(xpmem_remove(segid), ENOENT);
	say(peer, 0);
	CHECK(hear(peer) == 0);
	ends_well(pid);
}

static void attach_at_addresses(int peer)
{
	xpmem_apid_t apid = xpmem_get(hear(peer), XPMEM_RDWR, ANY);
	struct xpmem_addr addr = {apid, PAGE};
	char *room = mmap(NULL, 16 * PAGE, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t *seen;

	CHECK(apid > 0 && room != MAP_FAILED);
	seen = xpmem_attach(addr, 2 * PAGE, room + 4 * PAGE);
	CHECK((char *)seen == room + 4 * PAGE);
	CHECK(seen[0] == PAGE / sizeof *seen);
	FAILS(xpmem_attach(addr, PAGE, room + 5 * PAGE), EINVAL);
	FAILS(xpmem_attach(addr, 2 * PAGE, room + 3 * PAGE), EINVAL);
	FAILS(xpmem_attach(addr, PAGE, room + 1), EINVAL);
	CHECK(xpmem_attach(addr, PAGE, room + 6 * PAGE) != FAILED);
	/* Sizes are rounded up to pages. */
	CHECK(attach(apid, 6 * PAGE, PAGE + 1) != FAILED);
	FAILS(attach(apid, 7 * PAGE, PAGE + 1), EINVAL);
	FAILS(attach(apid, 0, BYTES + 1), EINVAL);
	FAILS(attach(apid, 0, SIZE_MAX), EINVAL);
	FAILS(attach(apid, 0, 0), EINVAL);
	FAILS(attach(apid, 8, PAGE), EINVAL);
	FAILS(attach(apid, -(off_t)PAGE, PAGE), EINVAL);
	say(peer, 0);
}

/* 005: an address of the importer's choice, and pieces. */
static void case_005(void)
{
	int peer;
	pid_t pid = partner(attach_at_addresses, &peer);
	uint64_t *memory = numbered(BYTES);
	xpmem_segid_t segid = xpmem_make(memory, BYTES, MODE(0600));
	struct xpmem_addr addr = {xpmem_get(segid, XPMEM_RDWR, ANY), 0};

	say(peer, segid);
	CHECK(hear(peer) == 0);
	ends_well(pid);
	/* Never over its own source; beside it, in the same process, it may. */
	FAILS(xpmem_attach(addr, PAGE, (char *)memory + PAGE), EINVAL);
	CHECK(attach(addr.apid, 0, BYTES) != FAILED);
}

static void export_and_end(int peer)
{
	say(peer, xpmem_make(numbered(BYTES), BYTES, MODE(0600)));
	CHECK(hear(peer) == 0);
}

/* 006: an exporter that has ended is not found. */
static void case_006(void)
{
	int peer;
	pid_t pid = partner(export_and_end, &peer);
	xpmem_segid_t segid = hear(peer);

	say(peer, 0);
	ends_well(pid);
	while (xpmem_get(segid, XPMEM_RDWR, ANY) > 0)
		;
	CHECK(errno == ENOENT);
}

static void unmap_by_hand(int peer)
{
	xpmem_apid_t apid = xpmem_get(hear(peer), XPMEM_RDWR, ANY);
	uint64_t *seen = attach(apid, 0, BYTES);
	char *other;

	CHECK(seen != FAILED);
	CHECK(munmap(seen, BYTES) == 0);
	CHECK(xpmem_detach(seen) == 0);
	seen = attach(apid, 0, BYTES);
	CHECK(seen != FAILED);
	/* What the program maps there instead is the program's. */
	other = mmap((char *)seen + PAGE, PAGE, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	CHECK(other == (char *)seen + PAGE);
	*other = 1;
	FAILS(xpmem_detach(other), EINVAL);
	CHECK(xpmem_detach(seen) == 0);
	CHECK(*other == 1);
	CHECK(mincore(seen, PAGE, (unsigned char[1]){0}) == -1);
	CHECK(attach(apid, 0, BYTES) != FAILED);
	CHECK(xpmem_release(apid) == 0);
	CHECK(*other == 1);
	say(peer, 0);
}

/* 007: munmap of an attachment, and an end without detaching. */
static void case_007(void)
{
	int peer;
	pid_t pid = partner(unmap_by_hand, &peer);

	say(peer, xpmem_make(numbered(BYTES), BYTES, MODE(0600)));
	CHECK(hear(peer) == 0);
	ends_well(pid);
}

/* 902: each get is an access of its own. */
static void case_902(void)
{
	xpmem_segid_t segid = xpmem_make(numbered(BYTES), BYTES, MODE(0600));
	xpmem_apid_t first = xpmem_get(segid, XPMEM_RDWR, ANY);
	xpmem_apid_t second = xpmem_get(segid, XPMEM_RDONLY, ANY);
	uint64_t *seen;

	CHECK(first > 0 && second > 0 && first != second);
	CHECK(xpmem_release(first) == 0);
	seen = attach(second, 0, BYTES);
	CHECK(seen != FAILED && seen[9] == 9);
	CHECK(xpmem_release(second) == 0);
}

/* 903: an apid attaches as often as wanted. */
static void case_903(void)
{
	xpmem_segid_t segid = xpmem_make(numbered(BYTES), BYTES, MODE(0600));
	xpmem_apid_t apid = xpmem_get(segid, XPMEM_RDWR, ANY);
	uint64_t *seen[64];

	for (int i = 0; i < 64; i++) {
		seen[i] = attach(apid, i % 8 * (off_t)PAGE, PAGE);
		CHECK(seen[i] != FAILED);
		seen[i][0] = i;
	}
	for (int i = 0; i < 64; i++)
		CHECK(*seen[i] == 56U + i % 8);
	CHECK(xpmem_release(apid) == 0);
}

/* 904: to detach where nothing is, or twice, is no error. */
static void case_904(void)
{
	xpmem_segid_t segid = xpmem_make(numbered(BYTES), BYTES, MODE(0600));
	xpmem_apid_t apid = xpmem_get(segid, XPMEM_RDWR, ANY);
	uint64_t *seen = attach(apid, 0, BYTES);
	int own;

	CHECK(seen != FAILED);
	CHECK(xpmem_detach(NULL) == 0);
	CHECK(xpmem_detach(seen) == 0);
	CHECK(xpmem_detach(seen) == 0);
	FAILS(xpmem_detach(&own), EINVAL);
}

int main(int argc, char **argv)
{
	static const struct {
		int number;
		void (*run)(void);
	} cases[] = {
		{1, case_001}, {2, case_002}, {3, case_002}, {4, case_004},
		{5, case_005}, {6, case_006}, {7, case_007},
		{902, case_902}, {903, case_903}, {904, case_904},
	};
	int number = argc == 2 ? atoi(argv[1]) : 0;

	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		if (cases[i].number == number) {
			cases[i].run();
			return 0;
		}
	}
	fprintf(stderr, "no case %d\n", number);
	return 2;
}
