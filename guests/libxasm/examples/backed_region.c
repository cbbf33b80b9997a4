/*
 * backed_region.c - snapshots under the XASM paper's names.
 *
 * One page with a pool of four more, as the paper's own producer used it:
 * mapped anywhere, named, written and copied five times. Readers see it as
 * arena "page" with one variable, `counter`.
 *
 *     gcc -static -O2 backed_region.c -I../include -L<target>/guest -lxasm
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "xasm.h"

static int fail(const char *what, int64_t result)
{
	if (result == -ENOSYS) {
		printf("no enclave or broker here: nothing to do\n");
		return 0;
	}
	fprintf(stderr, "backed_region: %s: %s\n", what, strerror((int)-result));
	return 1;
}

int main(void)
{
	uint32_t id, snapshot;
	void *region;
	int64_t result;

	result = aspace_get_myid(&id);
	if (result < 0)
		return fail("aspace_get_myid", result);
	result = arena_map_backed_region_anywhere(id, &region, 4096, 4 * 4096, VM_USER,
						  BK_ARENA, 4096, NULL, 0);
	if (result < 0)
		return fail("arena_map_backed_region_anywhere", result);

	volatile uint64_t *counter = region;

	result = xasm_var(xasm_arena_find(region), "counter", XASM_U64, 0, NULL, 'C', region);
	if (result < 0)
		return fail("xasm_var", result);
	result = xemem_make(region, 4096, "page");
	if (result < 0)
		return fail("xemem_make", result);
	printf("segment %lld\n", (long long)result);

	for (uint64_t round = 1; round <= 5; round++) {
		*counter = round * round;
		result = aspace_copy(id, &snapshot, 0);
		if (result < 0)
			return fail("aspace_copy", result);
		printf("snapshot %u holds %llu\n", snapshot, (unsigned long long)*counter);
	}
	return 0;
}
