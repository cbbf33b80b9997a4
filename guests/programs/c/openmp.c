/* OpenMP as libgomp has it: more threads than cores, in every construct. */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

enum { SIZE = 40000 };

static double field[SIZE];

static long fibonacci(int n)
{
    long a, b;
    if (n < 2)
        return n;
#pragma omp task shared(a) if (n > 8)
    a = fibonacci(n - 1);
#pragma omp task shared(b) if (n > 8)
    b = fibonacci(n - 2);
#pragma omp taskwait
    return a + b;
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 4;
    long sum = 0, inside = 0, ordered = 0, tasks = 0;
    int single = 0, seen = 0;
    omp_set_dynamic(0);
    omp_set_num_threads(threads);
#pragma omp parallel
    {
#pragma omp atomic
        seen++;
#pragma omp single
        single++;
#pragma omp for schedule(static)
        for (int n = 0; n < SIZE; n++)
            field[n] = n * 0.5;
#pragma omp for schedule(dynamic, 100) reduction(+ : sum)
        for (int n = 0; n < SIZE; n++)
            sum += (long)field[n];
#pragma omp barrier
#pragma omp critical
        inside += sum;
#pragma omp for ordered schedule(static, 1)
        for (int n = 0; n < 100; n++)
#pragma omp ordered
            ordered = ordered * 3 % 1000003 + n;
    }
#pragma omp parallel
#pragma omp single
    tasks = fibonacci(18);
    for (int round = 0; round < 200; round++) {
#pragma omp parallel for reduction(+ : sum)
        for (int n = 0; n < 64; n++)
            sum += n;
    }
    printf("%d threads, single %d, sum %ld, inside %ld, ordered %ld, tasks %ld\n", seen, single,
           sum, inside, ordered, tasks);
    return 0;
}
