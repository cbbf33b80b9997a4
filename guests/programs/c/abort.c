/*
 * Ends by SIGABRT, after output that must not be lost.
 */
#include <stdio.h>
#include <stdlib.h>

int main(void)
{
    printf("before abort\n");
    fflush(stdout);
    abort();
}
