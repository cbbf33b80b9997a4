/*
 * Shows its arguments and the variables it was given; exits with the number
 * of arguments.
 */
#include <stdio.h>
#include <string.h>

extern char **environ;

int main(int argc, char **argv)
{
    printf("argc %d, end %d\n", argc, argv[argc] == NULL);
    for (int i = 1; i < argc; i++)
        printf("[%s] %zu\n", argv[i], strlen(argv[i]));
    for (char **variable = environ; *variable; variable++)
        if (strncmp(*variable, "PROGRAM_", 8) == 0)
            printf("%s\n", *variable);
    return argc & 0xff;
}
