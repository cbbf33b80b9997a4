/*
 * deaths.c - exporter and importer are killed while attached, and neither
 * takes anything from the other.
 */
#include "check.h"

#define BYTES (64 * PAGE)

static void export_and_wait(int peer)
{
	say(peer, xpmem_make(numbered(BYTES), BYTES, MODE(0600)));
	for (;;)
		pause();
}

static void killed(pid_t pid)
{
	int status;

	CHECK(kill(pid, SIGKILL) == 0);
	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static void exporter_is_killed(void)
{
	int peer;
	pid_t pid = partner(export_and_wait, &peer);
	xpmem_segid_t segid = hear(peer);
	xpmem_apid_t apid = xpmem_get(segid, XPMEM_RDWR, ANY);
	uint64_t *seen = attach(apid, 0, BYTES);

	CHECK(seen != FAILED && seen[5] == 5);
	killed(pid);
	/* Pages never touched so far, too, and to write as well as to read. */
	for (size_t i = 0; i < BYTES / sizeof *seen; i++) {
		CHECK(seen[i] == i);
		seen[i] = ~i;
	}
	while (xpmem_get(segid, XPMEM_RDONLY, ANY) > 0)
		;
	CHECK(errno == ENOENT);
	FAILS(attach(apid, 0, PAGE), ENOENT);
	CHECK(seen[7] == ~UINT64_C(7));
	CHECK(xpmem_detach(seen) == 0);
	CHECK(xpmem_release(apid) == 0);
}

static void import_and_wait(int peer)
{
	xpmem_segid_t segid = hear(peer);
	uint64_t *seen = attach(xpmem_get(segid, XPMEM_RDWR, ANY), 0, BYTES);

	CHECK(seen != FAILED);
	seen[1] = 11;
	say(peer, 0);
	for (;;)
		pause();
}

static void importer_is_killed(void)
{
	int peer;
	pid_t pid = partner(import_and_wait, &peer);
	uint64_t *memory = numbered(BYTES);
	xpmem_segid_t segid = xpmem_make(memory, BYTES, MODE(0600));
	xpmem_apid_t apid;

	say(peer, segid);
	CHECK(hear(peer) == 0);
	killed(pid);
	CHECK(memory[1] == 11 && memory[2] == 2);
	/* The segment lives on for others. */
	apid = xpmem_get(segid, XPMEM_RDWR, ANY);
	CHECK(((uint64_t *)attach(apid, 0, BYTES))[1] == 11);
	CHECK(xpmem_release(apid) == 0);
	CHECK(xpmem_remove(segid) == 0);
	memory[1] = 12;
	CHECK(munmap(memory, BYTES) == 0);
}

int main(void)
{
	exporter_is_killed();
	importer_is_killed();
	return 0;
}
