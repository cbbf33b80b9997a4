/*
 * One end of a cell of the matrix, inside an enclave: does line by line what
 * the test says, by xasm.h. The words are those of linux_peer.rs.
 *
 * Answers "@ok NUMBER", or "@error NUMBER" with the errno.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "xasm.h"

#define WAIT_MS 60000

struct memory {
	volatile uint64_t *words;
	uint64_t bytes;
};

static struct memory own, attached;
static int64_t segid, apid;
static xasm_arena arena = -1;
static uint64_t chunk;

static int64_t found;

static int is_arena(void)
{
	return arena >= 0;
}

/* volley N: so many signals */
static int64_t volley(uint64_t count)
{
	int64_t result = 0;
	while (count-- > 0 && result >= 0)
		result = xemem_signal(apid);
	return result;
}

/* gather N TIMEOUT: takes signals of the own segment until there were so many */
static int64_t gather(uint64_t count, uint32_t timeout_ms)
{
	uint64_t taken = 0;
	while (taken < count) {
		int64_t more = xasm_wait_segid(segid, timeout_ms);
		if (more <= 0)
			return more < 0 ? more : (int64_t)taken;
		taken += (uint64_t)more;
	}
	return (int64_t)taken;
}

/* rally N TIMEOUT: so many signals, an answer awaited after each; the answers */
static int64_t rally(uint64_t count, uint32_t timeout_ms)
{
	int64_t answers = 0;
	while (count-- > 0) {
		int64_t result = xemem_signal(apid);
		if (result < 0)
			return result;
		result = xasm_wait(apid, timeout_ms);
		if (result < 0)
			return result;
		answers += result;
	}
	return answers;
}

/* The other end of a rally: signals of the own segment, answered. */
static int64_t rally_own(uint64_t count, uint32_t timeout_ms)
{
	int64_t signals = 0;
	while (count-- > 0) {
		int64_t result = xasm_wait_segid(segid, timeout_ms);
		if (result < 0)
			return result;
		signals += result;
		result = xemem_signal_segid(segid);
		if (result < 0)
			return result;
	}
	return signals;
}

/* make NAME BYTES PAGE MODE SIGNALS */
static int64_t make(const char *name, uint64_t bytes, uint64_t page, uint32_t mode, int signals)
{
	struct xasm_segment segment = {
		.size_bytes = bytes,
		.page_bytes = page,
		.mode = mode,
		.flags = signals ? XASM_SEGMENT_SIGNALS : 0,
	};
	memcpy(segment.name, name, strlen(name));
	segid = xasm_segment_make(&segment);
	if (segid < 0)
		return segid;
	if (segment.page_bytes != page)
		return -EIO;
	own.words = (uint64_t *)segment.start;
	own.bytes = bytes;
	return 0;
}

/* snapshot NAME BYTES CHUNK */
static int64_t snapshot(const char *name, uint64_t bytes, uint64_t chunk_bytes)
{
	struct xasm_options options = { .chunk_bytes = chunk_bytes, .nr_banks = 3 };
	arena = xasm_arena_create(name, bytes, &options);
	if (arena < 0)
		return arena;
	own.words = xasm_arena_alloc(arena, bytes, chunk_bytes);
	own.bytes = bytes;
	chunk = chunk_bytes;
	return own.words ? 0 : -ENOMEM;
}

/* publish VALUE: in the first word of each chunk. */
static int64_t publish(uint64_t value)
{
	for (uint64_t at = 0; at < own.bytes; at += chunk)
		own.words[at / 8] = value;
	int64_t generation = xasm_publish(arena, value, 0.0);
	return generation < 0 ? generation : 0;
}

/* attach OFFSET LENGTH: 0 = all. */
static int64_t attach(uint64_t offset, uint64_t length)
{
	struct xasm_attachment to = {
		.apid = (uint64_t)apid, .offset = offset, .size_bytes = length, .policy = XASM_LATEST,
	};
	int64_t result = xasm_attach(&to);
	if (result < 0)
		return result;
	if (to.nr_banks != 0) {
		result = xasm_next((void *)to.start, WAIT_MS, NULL);
		if (result != 1)
			return result < 0 ? result : -EIDRM;
	}
	attached.words = (uint64_t *)to.start;
	attached.bytes = to.size_bytes;
	return (int64_t)to.size_bytes;
}

static int64_t load(const struct memory *memory, uint64_t offset)
{
	return offset + 8 > memory->bytes ? -ERANGE : (int64_t)memory->words[offset / 8];
}

static int64_t store(const struct memory *memory, uint64_t offset, uint64_t value)
{
	if (offset + 8 > memory->bytes)
		return -ERANGE;
	memory->words[offset / 8] = value;
	return 0;
}

/* poke OFFSET: has the kernel write there. */
static int64_t poke(uint64_t offset)
{
	return syscall(SYS_uname, (char *)attached.words + offset) == 0 ? 0 : -errno;
}

static int64_t act(const char *word, const char *name, const uint64_t *n)
{
	int64_t result;

	if (!strcmp(word, "make"))
		return make(name, n[0], n[1], (uint32_t)n[2], (int)n[3]);
	if (!strcmp(word, "snapshot"))
		return snapshot(name, n[0], n[1]);
	if (!strcmp(word, "publish"))
		return publish(n[0]);
	if (!strcmp(word, "name"))
		return xemem_make((void *)own.words, own.bytes, name) < 0 ? -EIO : 0;
	if (!strcmp(word, "segid"))
		return segid;
	if (!strcmp(word, "lookup")) {
		result = xasm_lookup(name, (uint32_t)n[0]);
		found = result < 0 ? found : result;
		return result < 0 ? result : 0;
	}
	if (!strcmp(word, "get")) {
		result = xemem_get(found, n[0] ? XEMEM_RDWR : XEMEM_RDONLY);
		apid = result < 0 ? apid : result;
		return result < 0 ? result : 0;
	}
	if (!strcmp(word, "attach"))
		return attach(n[0], n[1]);
	if (!strcmp(word, "next"))
		return xasm_next((void *)attached.words, WAIT_MS, NULL);
	if (!strcmp(word, "load"))
		return load(&attached, n[0]);
	if (!strcmp(word, "load-own"))
		return load(&own, n[0]);
	if (!strcmp(word, "store"))
		return store(&attached, n[0], n[1]);
	if (!strcmp(word, "store-own"))
		return store(&own, n[0], n[1]);
	if (!strcmp(word, "poke"))
		return poke(n[0]);
	if (!strcmp(word, "subscribe"))
		return xasm_subscribe(apid);
	if (!strcmp(word, "signal"))
		return xemem_signal(apid);
	if (!strcmp(word, "signal-own"))
		return xemem_signal_segid(segid);
	if (!strcmp(word, "wait"))
		return xasm_wait(apid, (uint32_t)n[0]);
	if (!strcmp(word, "volley"))
		return volley(n[0]);
	if (!strcmp(word, "gather"))
		return gather(n[0], (uint32_t)n[1]);
	if (!strcmp(word, "rally"))
		return rally(n[0], (uint32_t)n[1]);
	if (!strcmp(word, "rally-own"))
		return rally_own(n[0], (uint32_t)n[1]);
	if (!strcmp(word, "wait-own"))
		return xasm_wait_segid(segid, (uint32_t)n[0]);
	if (!strcmp(word, "detach"))
		return xemem_detach((void *)attached.words);
	if (!strcmp(word, "release"))
		return xemem_release(apid);
	if (!strcmp(word, "remove") && is_arena()) {
		result = xasm_arena_destroy(arena);
		arena = -1;
		return result;
	}
	if (!strcmp(word, "remove"))
		return xemem_remove(segid);
	if (!strcmp(word, "free"))
		return xemem_detach((void *)own.words);
	return -ENOSYS;
}

int main(void)
{
	char line[256], word[32], name[64];

	while (fgets(line, sizeof line, stdin)) {
		uint64_t n[4] = { 0 };
		if (sscanf(line, "%31s %63s %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64, word,
			   name, &n[0], &n[1], &n[2], &n[3]) < 2)
			return 2;
		int64_t result = act(word, name, n);
		if (result < 0)
			printf("@error %" PRId64 "\n", -result);
		else
			printf("@ok %" PRId64 "\n", result);
		fflush(stdout);
	}
	return 0;
}
