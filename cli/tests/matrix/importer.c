/*
 * A program written for XPMEM: attaches one page at 8 KiB of the segment SEGID,
 * prints its first word and stores 44 in the second one.
 */
#include <stdio.h>
#include <stdlib.h>

#include "xpmem.h"

int main(int argc, char **argv)
{
	if (argc != 2)
		return 2;
	xpmem_segid_t segid = strtoll(argv[1], NULL, 10);
	xpmem_apid_t apid = xpmem_get(segid, XPMEM_RDWR, XPMEM_PERMIT_MODE, NULL);
	if (apid < 0) {
		perror("xpmem_get");
		return 1;
	}
	struct xpmem_addr addr = { apid, 8192 };
	volatile unsigned long *words = xpmem_attach(addr, 4096, NULL);
	if (words == (void *)-1) {
		perror("xpmem_attach");
		return 1;
	}
	printf("%lu\n", words[0]);
	words[1] = 44;
	return xpmem_detach((void *)words) || xpmem_release(apid);
}
