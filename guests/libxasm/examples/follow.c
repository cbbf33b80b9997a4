/*
 * follow.c - a program that reads what another enclave publishes.
 *
 * Follows the arena "heat" of three_calls.c to its end and prints the mean of
 * each step it sees. Try:
 *
 *     gcc -static -O2 follow.c -I../include -L... -lxasm -o follow
 *     enclavectl run b -- ./follow &
 *     enclavectl run a -- ./three_calls
 */
#include <stdio.h>
#include <string.h>

#include "xasm.h"

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "heat";
	struct xasm_imported step;
	struct xasm_found found;
	struct xasm_attachment at = { .policy = XASM_EVERY };
	int64_t segid = xasm_lookup(name, 60000);
	int64_t apid = xemem_get(segid, XEMEM_RDONLY);
	int result;

	at.apid = (uint64_t)apid;
	result = apid < 0 ? (int)apid : xasm_attach(&at);
	if (result < 0) {
		fprintf(stderr, "follow: attach %s: %s\n", name, strerror(-result));
		return 1;
	}
	while ((result = xasm_next((void *)at.start, 60000, &step)) == 1) {
		const double *values;
		double sum = 0;
		uint64_t n, count;

		if (xasm_find((void *)at.start, "temperature", &found) < 0 ||
		    found.dtype != XASM_F64)
			return 1;
		values = found.data;
		count = found.bytes / sizeof *values;
		for (n = 0; n < count; n++)
			sum += values[n];
		printf("step %llu: mean %.3f, %llu chunks mapped anew\n",
		       (unsigned long long)step.step, sum / (double)count,
		       (unsigned long long)step.chunks_mapped);
	}
	if (result < 0) {
		fprintf(stderr, "follow: %s\n", strerror(-result));
		return 1;
	}
	printf("the end, reason %llu\n", (unsigned long long)step.end_reason);
	return xemem_release(apid) != 0;
}
