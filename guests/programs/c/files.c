/*
 * Files through stdio and the calls beneath it, in a directory that is given
 * and is empty before and after.
 *
 * Usage: files DIRECTORY
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void say_error(const char *what, int result)
{
    printf("%s: %d %s\n", what, result, result < 0 ? strerror(errno) : "ok");
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void list(const char *path)
{
    char *names[64];
    int count = 0;
    DIR *dir = opendir(path);
    if (!dir) {
        printf("opendir: %s\n", strerror(errno));
        return;
    }
    for (struct dirent *entry; (entry = readdir(dir)) && count < 64;)
        names[count++] = strdup(entry->d_name);
    closedir(dir);
    qsort(names, (size_t)count, sizeof names[0], by_name);
    printf("list:");
    for (int i = 0; i < count; i++) {
        printf(" %s", names[i]);
        free(names[i]);
    }
    printf("\n");
}

static void use_stdio(void)
{
    FILE *file = fopen("numbers.bin", "w+");
    if (!file) {
        printf("fopen: %s\n", strerror(errno));
        exit(1);
    }
    static double written[20000], read_back[20000];
    for (int i = 0; i < 20000; i++)
        written[i] = i / 7.0;
    printf("fwrite %zu\n", fwrite(written, sizeof(double), 20000, file));
    printf("ftell %ld\n", ftell(file));
    fseek(file, 8 * 100, SEEK_SET);
    double replaced = -1.0;
    fwrite(&replaced, sizeof replaced, 1, file);
    rewind(file);
    printf("fread %zu\n", fread(read_back, sizeof(double), 20000, file));
    printf("values %g %g %g\n", read_back[99], read_back[100], read_back[19999]);
    fseek(file, -8, SEEK_END);
    printf("end %ld", ftell(file));
    printf(" then %zu", fread(read_back, 8, 2, file));
    printf(" eof %d\n", feof(file) != 0);
    say_error("fclose", fclose(file));

    file = fopen("text.txt", "w");
    for (int i = 0; i < 1000; i++)
        fprintf(file, "line %d of text\n", i);
    fclose(file);
    file = fopen("text.txt", "a");
    fputs("appended\n", file);
    fclose(file);
    file = fopen("text.txt", "r");
    char line[64], last[64] = "";
    int lines = 0;
    while (fgets(line, sizeof line, file)) {
        lines++;
        strcpy(last, line);
    }
    fclose(file);
    printf("lines %d, last %s", lines, last);
}

static void use_names(void)
{
    struct stat about;
    say_error("stat", stat("numbers.bin", &about));
    printf("size %lld regular %d mode %o links %d\n", (long long)about.st_size,
           S_ISREG(about.st_mode) != 0, about.st_mode & 0777, (int)about.st_nlink);
    say_error("mkdir", mkdir("sub", 0755));
    say_error("mkdir again", mkdir("sub", 0755));
    say_error("rename", rename("text.txt", "sub/moved.txt"));
    say_error("rename gone", rename("text.txt", "sub/moved.txt"));
    say_error("link", link("numbers.bin", "second.bin"));
    say_error("chmod", chmod("numbers.bin", 0600));
    say_error("access", access("numbers.bin", R_OK | W_OK));
    say_error("access gone", access("gone", F_OK));
    say_error("truncate", truncate("numbers.bin", 12345));
    stat("second.bin", &about);
    printf("size %lld mode %o links %d\n", (long long)about.st_size, about.st_mode & 0777,
           (int)about.st_nlink);
    list(".");
    list("sub");
    list("gone");
    say_error("rmdir full", rmdir("sub"));
    say_error("open directory", open("sub", O_WRONLY));
    say_error("open through file", open("numbers.bin/x", O_RDONLY));
    say_error("open gone", open("gone/x", O_CREAT | O_WRONLY, 0644));
    say_error("bad descriptor", (int)write(77, "x", 1));
}

static void use_descriptors(void)
{
    int fd = open("raw", O_CREAT | O_EXCL | O_RDWR, 0644);
    say_error("open exclusive again", open("raw", O_CREAT | O_EXCL | O_RDWR, 0644));
    int copy = dup(fd);
    say_error("write", (int)write(fd, "0123456789", 10));
    printf("position of the copy %lld\n", (long long)lseek(copy, 0, SEEK_CUR));
    char bytes[16] = "";
    say_error("pread", (int)pread(copy, bytes, 4, 3));
    printf("pread %s\n", bytes);
    say_error("pwrite", (int)pwrite(fd, "ab", 2, 8));
    say_error("fsync", fsync(fd));
    say_error("ftruncate", ftruncate(fd, 9));
    close(fd);
    lseek(copy, 0, SEEK_SET);
    memset(bytes, 0, sizeof bytes);
    say_error("read", (int)read(copy, bytes, sizeof bytes));
    printf("read %s\n", bytes);
    close(copy);
    say_error("closed", close(copy));
    int ends[2];
    say_error("pipe", pipe(ends));
    say_error("write pipe", (int)write(ends[1], "through", 8));
    say_error("read pipe", (int)read(ends[0], bytes, sizeof bytes));
    printf("pipe %s\n", bytes);
}

int main(int argc, char **argv)
{
    if (argc != 2 || chdir(argv[1]) != 0) {
        printf("usage: files DIRECTORY\n");
        return 2;
    }
    /* Whoever starts it may have any other. */
    umask(022);
    char *cwd = getcwd(NULL, 0);
    printf("in the directory %d\n", cwd && strcmp(cwd, argv[1]) == 0);
    free(cwd);
    use_stdio();
    use_names();
    use_descriptors();
    const char *left[] = {"numbers.bin", "second.bin", "sub/moved.txt", "raw"};
    for (int i = 0; i < 4; i++)
        say_error("unlink", unlink(left[i]));
    say_error("rmdir", rmdir("sub"));
    list(".");
    return 0;
}
