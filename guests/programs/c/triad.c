/*
 * Memory bandwidth as STREAM's triad measures it: a = b + s * c over arrays that
 * no cache holds, by all threads of OpenMP. Prints the best of some rounds in
 * gigabytes a second; 1 as the exit code if the result is wrong.
 */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

#define ELEMENTS (4L << 20)
#define ROUNDS 20
#define SCALE 3.0

int main(void)
{
    double *a = malloc(ELEMENTS * sizeof *a);
    double *b = malloc(ELEMENTS * sizeof *b);
    double *c = malloc(ELEMENTS * sizeof *c);
    if (a == NULL || b == NULL || c == NULL) {
        fprintf(stderr, "triad: no memory\n");
        return 1;
    }
#pragma omp parallel for schedule(static)
    for (long i = 0; i < ELEMENTS; i++) {
        a[i] = 0;
        b[i] = i;
        c[i] = 2;
    }
    double best = 1e9;
    for (int round = 0; round < ROUNDS; round++) {
        double start = omp_get_wtime();
#pragma omp parallel for schedule(static)
        for (long i = 0; i < ELEMENTS; i++)
            a[i] = b[i] + SCALE * c[i];
        double took = omp_get_wtime() - start;
        if (took < best)
            best = took;
    }
    for (long i = 0; i < ELEMENTS; i += ELEMENTS / 64)
        if (a[i] != i + SCALE * 2)
            return 1;
    printf("%.3f\n", 3.0 * ELEMENTS * sizeof *a / best / 1e9);
    return 0;
}
