/*
 * Says that it runs, then computes for ever: something to kill.
 */
#include <stdio.h>

int main(void)
{
    printf("spinning\n");
    fflush(stdout);
    for (volatile unsigned long count = 0;; count++) {
    }
}
