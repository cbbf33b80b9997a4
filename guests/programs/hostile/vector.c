/*
 * Stores a vector register where no memory is: such a store cannot be emulated.
 *
 * Usage: vector sse|avx|avx512|x87|string [ADDRESS]
 * The address defaults to the doorbell page in the kernel's direct map.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
    const char *how = argc > 1 ? argv[1] : "";
    uint64_t address = argc > 2 ? strtoull(argv[2], 0, 0) : 0xffff9000d0000000;
    printf("%s\n", how);
    fflush(stdout);
    if (strcmp(how, "sse") == 0)
        __asm__ volatile("movups %%xmm0, (%0)" : : "r"(address) : "memory");
    if (strcmp(how, "avx") == 0)
        __asm__ volatile("vmovups %%ymm0, (%0)" : : "r"(address) : "memory");
    if (strcmp(how, "avx512") == 0) {
        if (!__builtin_cpu_supports("avx512f")) {
            printf("not there\n");
            return 4;
        }
        __asm__ volatile("vmovups %%zmm0, (%0)" : : "r"(address) : "memory");
    }
    if (strcmp(how, "x87") == 0)
        __asm__ volatile("fldz; fstpl (%0)" : : "r"(address) : "memory");
    if (strcmp(how, "string") == 0)
        __asm__ volatile("rep stosb" : : "D"(address), "a"(0), "c"(4096) : "memory");
    printf("survived\n");
    return 3;
}
