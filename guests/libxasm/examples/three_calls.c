/*
 * three_calls.c - heat in a plate, published step by step.
 *
 * The whole of what a code needs to publish snapshots: the three calls are
 * marked (1), (2), (3). Readers see `temperature` of arena "heat", whether it
 * runs in an enclave or on Linux; where neither an enclave nor a broker is, it
 * runs without snapshots.
 *
 *     gcc -static -O2 three_calls.c -I../include -L<target>/guest -lxasm
 *     ./a.out [STEPS [NX [NY]]]
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "xasm.h"

/* One explicit step of the heat equation; the border keeps its temperature. */
static void step_heat(double *next, const double *now, size_t nx, size_t ny)
{
	for (size_t y = 1; y + 1 < ny; y++) {
		for (size_t x = 1; x + 1 < nx; x++) {
			size_t i = y * nx + x;

			next[i] = now[i] + 0.2 * (now[i - 1] + now[i + 1] +
						  now[i - nx] + now[i + nx] -
						  4.0 * now[i]);
		}
	}
}

static double mean(const double *t, size_t n)
{
	double sum = 0.0;

	for (size_t i = 0; i < n; i++)
		sum += t[i];
	return sum / (double)n;
}

static unsigned long number(int argc, char **argv, int i, unsigned long other)
{
	return argc > i ? strtoul(argv[i], NULL, 10) : other;
}

int main(int argc, char **argv)
{
	unsigned long nr_steps = number(argc, argv, 1, 20);
	size_t nx = number(argc, argv, 2, 512);
	size_t ny = number(argc, argv, 3, 512);

	if (nx < 3 || ny < 3 || nx > 1 << 15 || ny > 1 << 15) {
		fprintf(stderr, "three_calls: %zu x %zu cells: from 3 to 32768 each\n", nx, ny);
		return 2;
	}

	size_t bytes = nx * ny * sizeof(double);
	unsigned long published = 0, dropped = 0;
	double *t, *next = malloc(bytes);

	/* (1) an arena for the field */
	xasm_arena arena = xasm_arena_create("heat", bytes, NULL);

	if (arena >= 0) {
		t = xasm_arena_alloc(arena, bytes, 0);
		/* (2) what readers see in it */
		int index = xasm_var(arena, "temperature", XASM_F64, 2,
				     (const uint64_t[]){ ny, nx }, 'C', t);
		if (index < 0) {
			fprintf(stderr, "three_calls: xasm_var: %s\n", strerror(-index));
			return 1;
		}
	} else if (arena == -ENOSYS) {
		printf("no enclave or broker here: running without snapshots\n");
		t = calloc(nx * ny, sizeof(double));
	} else {
		fprintf(stderr, "three_calls: xasm_arena_create: %s\n", strerror(-arena));
		return 1;
	}
	if (!t || !next) {
		fprintf(stderr, "three_calls: no memory for %zu bytes\n", bytes);
		return 1;
	}

	for (size_t x = 0; x < nx; x++)
		t[x] = 100.0; /* the hot edge */
	memcpy(next, t, bytes);

	for (unsigned long step = 1; step <= nr_steps; step++) {
		step_heat(next, t, nx, ny);
		memcpy(t, next, bytes);
		if (arena < 0)
			continue;
		/* (3) readers may have it */
		int64_t generation = xasm_publish(arena, step, 0.2 * (double)step);

		if (generation >= 0)
			published++;
		else
			dropped++;
	}
	printf("steps %lu  mean %.9f  published %lu  dropped %lu\n", nr_steps,
	       mean(t, nx * ny), published, dropped);

	struct xasm_stats stats;

	if (arena >= 0 && xasm_arena_stats(arena, &stats) == 0)
		printf("generation %llu  chunks copied %llu\n",
		       (unsigned long long)stats.generation,
		       (unsigned long long)stats.cow_faults);
	return 0;
}
