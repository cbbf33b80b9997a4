/*
 * spectrum.c - energy spectrum of each snapshot of an arena, checked against
 * its producer.
 *
 * The same figures as the `spectrum` program in Rust: per energy group the sum
 * over all cells of flux times cell volume, added in the order of memory, so
 * the numbers are equal to the last bit. A snapshot is whole when checksum and
 * spectrum are those that the simulation stored in the same snapshot.
 *
 *     cc -O2 spectrum.c -o spectrum $(pkg-config --cflags --libs xemem) -lm
 *     enclavectl run sim -- snap-mini &
 *     ./spectrum snap/flux [SECONDS]
 *
 * Waits SECONDS, 30 unless told otherwise, for the arena and for each snapshot;
 * with 0 it reads the last one of a simulation that has ended. One line of JSON
 * per snapshot. Exit codes: 0 no snapshot was torn, 1 one was
 * or something failed, 2 wrong usage.
 */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "xemem.h"

/* Largest relative difference of two spectra that count as equal. */
#define TOLERANCE 1e-12

/* What a snapshot says. */
struct reading {
	size_t groups;
	double *spectrum;
	size_t peak;
	/* 1 right, 0 wrong, -1 nothing to compare with. */
	int checksum_ok;
	int spectrum_ok;
	bool valid;
};

/* A dense array of doubles, first index fastest. */
static bool is_dense(const struct xemem_variable *var)
{
	int64_t stride = sizeof(double);

	if (var->dtype != XEMEM_F64 || var->lanes != 1 || var->ndim < 1)
		return false;
	for (uint32_t i = 0; i < var->ndim; i++) {
		if (var->strides[i] != stride)
			return false;
		stride *= (int64_t)var->shape[i];
	}
	return true;
}

/* The scalar `name`; false if there is none of that type. */
static bool scalar(const xemem_snapshot *snap, const char *name, uint32_t dtype,
		   void *value)
{
	struct xemem_variable var;

	if (xemem_snapshot_find(snap, name, &var) < 0 || var.dtype != dtype ||
	    var.ndim != 0)
		return false;
	memcpy(value, var.data, sizeof(double));
	return true;
}

/* FNV-1a over 64-bit words, as the producer stores it. */
static uint64_t checksum(const double *values, size_t count)
{
	uint64_t sum = UINT64_C(0xcbf29ce484222325);

	for (size_t i = 0; i < count; i++) {
		uint64_t word;

		memcpy(&word, &values[i], sizeof word);
		sum = (sum ^ word) * UINT64_C(0x100000001b3);
	}
	return sum;
}

static bool agree(const double *ours, const double *theirs, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		double most = fmax(fabs(ours[i]), fabs(theirs[i]));

		if (ours[i] != theirs[i] &&
		    !(fabs(ours[i] - theirs[i]) <= TOLERANCE * most))
			return false;
	}
	return true;
}

/* Compares with what the producer stored about the same step. */
static void compare(const xemem_snapshot *snap, uint64_t step, const double *flux,
		    size_t count, struct reading *reading)
{
	struct xemem_variable theirs;
	uint64_t of_step, sum;

	reading->checksum_ok = reading->spectrum_ok = -1;
	if (scalar(snap, "checksum_step", XEMEM_U64, &of_step) && of_step != step)
		return;
	if (scalar(snap, "checksum", XEMEM_U64, &sum))
		reading->checksum_ok = sum == checksum(flux, count);
	if (xemem_snapshot_find(snap, "spectrum", &theirs) == 0 && is_dense(&theirs))
		reading->spectrum_ok =
			theirs.ndim == 1 && theirs.shape[0] == reading->groups &&
			agree(reading->spectrum, theirs.data, reading->groups);
}

/* Reads a snapshot where it is mapped; false if it is not what we expect. */
static bool read_snapshot(const xemem_snapshot *snap, uint64_t step,
			  struct reading *reading)
{
	struct xemem_variable flux;
	const double *value;
	double volume;
	size_t cells = 1;

	if (xemem_snapshot_find(snap, "flux", &flux) < 0 || !is_dense(&flux) ||
	    !scalar(snap, "cell_volume", XEMEM_F64, &volume))
		return false;
	for (uint32_t i = 0; i + 1 < flux.ndim; i++)
		cells *= flux.shape[i];
	reading->groups = flux.shape[flux.ndim - 1];
	reading->spectrum = calloc(reading->groups, sizeof(double));
	if (!reading->spectrum)
		return false;
	reading->peak = 0;
	value = flux.data;
	for (size_t group = 0; group < reading->groups; group++) {
		double sum = 0.0;

		for (size_t cell = 0; cell < cells; cell++)
			sum += *value++;
		reading->spectrum[group] = sum * volume;
		if (reading->spectrum[group] >= reading->spectrum[reading->peak])
			reading->peak = group;
	}
	compare(snap, step, flux.data, cells * reading->groups, reading);
	/* Asked last: did anything change while we read? */
	reading->valid = xemem_snapshot_valid(snap) == 1;
	return true;
}

static const char *json_bool(int value)
{
	return value < 0 ? "null" : value ? "true" : "false";
}

static void print(const struct xemem_snapshot_about *about,
		  const struct reading *reading)
{
	printf("{\"type\":\"step\",\"step\":%llu,\"time\":%.17g,\"generation\":%llu,"
	       "\"bytes\":%llu,\"runs\":%llu,\"peak_group\":%zu,\"spectrum\":[",
	       (unsigned long long)about->step, about->time,
	       (unsigned long long)about->generation,
	       (unsigned long long)about->nbytes, (unsigned long long)about->runs,
	       reading->peak + 1);
	for (size_t i = 0; i < reading->groups; i++)
		printf("%s%.17g", i ? "," : "", reading->spectrum[i]);
	printf("],\"checksum_ok\":%s,\"spectrum_ok\":%s,\"valid\":%s}\n",
	       json_bool(reading->checksum_ok), json_bool(reading->spectrum_ok),
	       json_bool(reading->valid));
	fflush(stdout);
}

static int failed(const char *what)
{
	fprintf(stderr, "spectrum: cannot %s\n  %s\ntry: enclavectl arena ls\n", what,
		xemem_error());
	return 1;
}

/* Reads, prints and gives back; the exit code so far. */
static int one(xemem_snapshot *snap)
{
	struct xemem_snapshot_about about;
	struct reading reading = {0};
	bool torn, readable;

	readable = xemem_snapshot_about(snap, &about) == 0 &&
		   read_snapshot(snap, about.step, &reading);
	if (readable)
		print(&about, &reading);
	torn = !reading.valid || !reading.checksum_ok || !reading.spectrum_ok;
	free(reading.spectrum);
	xemem_snapshot_release(snap);
	if (!readable)
		return failed("read a snapshot");
	return torn;
}

int main(int argc, char **argv)
{
	xemem_stream *stream;
	xemem_snapshot *snap;
	struct xemem_stream_about about;
	uint32_t timeout_ms = 30000;
	int code = 0;
	int next;

	if (argc < 2 || argc > 3) {
		fprintf(stderr, "usage: spectrum ARENA [SECONDS]\n");
		return 2;
	}
	if (argc == 3)
		timeout_ms = 1000 * (uint32_t)strtoul(argv[2], NULL, 10);
	if (xemem_stream_open(argv[1], XEMEM_EVERY, timeout_ms, &stream) < 0)
		return failed("attach the arena");
	while ((next = xemem_stream_next(stream, timeout_ms, &snap)) == 1)
		code |= one(snap);
	if (next < 0)
		code = failed("have the next snapshot");
	if (xemem_stream_about(stream, &about) == 0)
		fprintf(stderr, "%llu missed; end: %llu\n",
			(unsigned long long)about.missed,
			(unsigned long long)about.end_reason);
	xemem_stream_close(stream);
	return code;
}
