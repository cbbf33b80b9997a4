/*
 * Copies standard input to standard output and counts what it saw.
 */
#include <stdio.h>

int main(void)
{
    unsigned long bytes = 0, lines = 0;
    for (int c; (c = getchar()) != EOF; bytes++) {
        lines += c == '\n';
        putchar(c);
    }
    printf("-- %lu bytes, %lu lines\n", bytes, lines);
    return ferror(stdin) ? 1 : 0;
}
