/*
 * Attaches the segment "p" and waits for a line; then reads its first word, or
 * has the kernel read it (argument 1).
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "xasm.h"

int main(int argc, char **argv)
{
	int by_kernel = argc > 1 && atoi(argv[1]) == 1;
	struct xemem_addr p = { xemem_get(xasm_lookup("p", 60000), XEMEM_RDWR), 0 };
	volatile uint64_t *words = xemem_attach(p, 0, NULL);
	char line[8];

	if (words == (void *)-1)
		return 1;
	printf("attached %" PRIu64 "\n", words[0]);
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		return 2;
	if (by_kernel)
		return write(STDOUT_FILENO, (const void *)words, 8) == 8 ? 0 : 3;
	printf("read %" PRIu64 "\n", words[0]);
	return 0;
}
