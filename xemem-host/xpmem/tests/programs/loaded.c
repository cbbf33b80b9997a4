/*
 * loaded.c - a program that is not linked with the library but loads it at
 * run time by its name, as communication libraries do, and that waits for all
 * of its children, of which the broker must not be one.
 */
#include <dlfcn.h>

#include "check.h"

#define SYMBOL(name) __typeof__(&name) call_##name = symbol(library, #name)

static void *symbol(void *library, const char *name)
{
	void *found = dlsym(library, name);

	CHECK(found != NULL);
	return found;
}

int main(void)
{
	void *library = dlopen("libxpmem.so.0", RTLD_NOW | RTLD_LOCAL);
	struct xpmem_addr addr = {0, PAGE};
	xpmem_segid_t segid;
	uint64_t *seen;

	if (library == NULL)
		fprintf(stderr, "%s\n", dlerror());
	CHECK(library != NULL);
	SYMBOL(xpmem_init);
	SYMBOL(xpmem_version);
	SYMBOL(xpmem_make);
	SYMBOL(xpmem_remove);
	SYMBOL(xpmem_get);
	SYMBOL(xpmem_release);
	SYMBOL(xpmem_attach);
	SYMBOL(xpmem_detach);
	CHECK(call_xpmem_init() == 0);
	CHECK(wait(NULL) == -1 && errno == ECHILD);
	CHECK(call_xpmem_version() >= 0x20000);
	segid = call_xpmem_make(numbered(2 * PAGE), 2 * PAGE, MODE(0600));
	CHECK(segid > 0);
	addr.apid = call_xpmem_get(segid, XPMEM_RDONLY, ANY);
	CHECK(addr.apid > 0);
	seen = call_xpmem_attach(addr, PAGE, NULL);
	CHECK(seen != FAILED && seen[1] == PAGE / sizeof *seen + 1);
	CHECK(call_xpmem_detach(seen) == 0);
	CHECK(call_xpmem_release(addr.apid) == 0);
	CHECK(call_xpmem_remove(segid) == 0);
	return 0;
}
