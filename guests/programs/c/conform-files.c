/*
 * File calls, right and wrong: what they answer and with which errno. The
 * argument is an empty directory, which is empty again at the end.
 */
#include "conform.h"

#include <dirent.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/uio.h>
#include <termios.h>

static void opening(void) {
    static char longer[PATH_MAX + 2], name[NAME_MAX + 2];
    memset(longer, 'x', PATH_MAX + 1);
    memset(name, 'y', NAME_MAX + 1);
    CALL(open, "missing", O_RDONLY);
    CALL(open, "", O_RDONLY);
    CALL(open, NULL, O_RDONLY);
    CALL(open, NOWHERE, O_RDONLY);
    CALL(open, BEYOND, O_RDONLY);
    CALL(open, longer, O_RDONLY);
    CALL(open, name, O_RDONLY | O_CREAT, 0600);
    long fd = DONE(open, "file", O_RDWR | O_CREAT | O_EXCL, 0640);
    CALL(open, "file", O_RDWR | O_CREAT | O_EXCL, 0640);
    CALL(open, "file/below", O_RDONLY);
    CALL(open, "file/", O_RDONLY);
    CALL(open, "file", O_RDONLY | O_DIRECTORY);
    CALL(open, ".", O_WRONLY);
    CALL(open, ".", O_RDWR | O_CREAT, 0600);
    CALL(openat, -1, "file", O_RDONLY);
    CALL(openat, 1000, "file", O_RDONLY);
    CALL(openat, fd, "file", O_RDONLY);
    CALL(creat, "missing/file", 0600);
    CALL(close, fd);
    CALL(close, fd);
    CALL(close, -1);
    CALL(unlink, "missing");
    CALL(unlink, ".");
    CALL(unlink, "file/");
    CALL(unlinkat, AT_FDCWD, "file", 0x4000);
    CALL(unlink, "file");
}

static void transfers(void) {
    static char buffer[64];
    long fd = syscall(SYS_open, "file", O_RDWR | O_CREAT, 0600);
    long reading = syscall(SYS_open, "file", O_RDONLY);
    long writing = syscall(SYS_open, "file", O_WRONLY);
    long folder = syscall(SYS_open, ".", O_RDONLY | O_DIRECTORY);
    CALL(write, fd, "0123456789", 10L);
    CALL(write, reading, "x", 1L);
    CALL(read, writing, buffer, 1L);
    CALL(read, folder, buffer, 1L);
    CALL(read, -1, buffer, 1L);
    CALL(read, fd, buffer, 10L);
    CALL(read, reading, buffer, 0L);
    CALL(read, reading, NULL, 0L);
    CALL(read, reading, NULL, 1L);
    CALL(read, reading, BEYOND, 1L);
    CALL(write, fd, NULL, 1L);
    CALL(write, fd, BEYOND, 1L);
    CALL(pread64, reading, buffer, 4L, 8L);
    CALL(pread64, reading, buffer, 4L, 100L);
    CALL(pread64, reading, buffer, 4L, -1L);
    CALL(pwrite64, fd, "ab", 2L, 20L);
    CALL(pwrite64, fd, "ab", 2L, -1L);
    CALL(lseek, fd, 0L, SEEK_CUR);
    CALL(lseek, fd, -1L, SEEK_SET);
    CALL(lseek, fd, 0L, SEEK_END);
    CALL(lseek, fd, 5L, 99);
    CALL(lseek, -1, 0L, SEEK_SET);
    struct iovec parts[2] = {{buffer, 3}, {buffer + 8, 3}};
    struct iovec wild[2] = {{buffer, 3}, {BEYOND, 3}};
    struct iovec much[2] = {{buffer, 3}, {buffer, (size_t)-1}};
    CALL(lseek, fd, 0L, SEEK_SET);
    CALL(readv, fd, parts, 2);
    CALL(readv, fd, parts, 0);
    CALL(readv, fd, parts, -1);
    CALL(readv, fd, parts, 1025);
    CALL(readv, fd, NULL, 1);
    CALL(readv, fd, much, 2);
    CALL(readv, -1, parts, 2);
    CALL(writev, fd, wild, 2);
    CALL(writev, reading, parts, 2);
    CALL(preadv, fd, parts, 2, 1L, 0L);
    CALL(pwritev, fd, parts, 2, 1L, 0L);
    CALL(ftruncate, fd, 4L);
    CALL(ftruncate, fd, -1L);
    CALL(ftruncate, reading, 4L);
    CALL(ftruncate, -1, 4L);
    CALL(truncate, "file", 6L);
    CALL(truncate, "missing", 6L);
    CALL(truncate, ".", 6L);
    CALL(truncate, "file", -1L);
    CALL(fallocate, fd, 0, 0L, 100L);
    CALL(fallocate, fd, 0, 0L, 0L);
    CALL(fallocate, reading, 0, 0L, 100L);
    CALL(lseek, fd, 0L, SEEK_END);
    CALL(sendfile, fd, reading, NULL, 3L);
    CALL(sendfile, reading, fd, NULL, 3L);
    CALL(fsync, fd);
    CALL(fdatasync, fd);
    CALL(fsync, -1);
    CALL(fadvise64, fd, 0L, 0L, 0);
    CALL(fadvise64, fd, 0L, 0L, 77);
    CALL(flock, fd, LOCK_EX | LOCK_NB);
    CALL(flock, fd, LOCK_UN);
    CALL(flock, fd, 77);
    CALL(flock, -1, LOCK_UN);
    close(fd), close(reading), close(writing), close(folder);
    unlink("file");
}

static void descriptors(void) {
    int ends[2];
    CALL(pipe, NULL);
    CALL(pipe2, ends, 077777777);
    CALL(pipe2, ends, O_CLOEXEC);
    CALL(fcntl, ends[0], F_GETFD);
    CALL(fcntl, ends[0], F_SETFD, 0);
    CALL(fcntl, ends[0], F_GETFD);
    CALL(fcntl, ends[0], F_GETFL);
    CALL(fcntl, ends[0], F_SETFL, O_NONBLOCK);
    CALL(fcntl, ends[0], F_GETFL);
    CALL(fcntl, ends[0], 7777);
    CALL(fcntl, -1, F_GETFD);
    CALL(fcntl, ends[0], F_DUPFD, -1);
    CALL(fcntl, ends[0], F_DUPFD, 100);
    CALL(fcntl, ends[0], F_DUPFD_CLOEXEC, 100);
    CALL(fcntl, 101, F_GETFD);
    CALL(close, 100);
    CALL(close, 101);
    char byte;
    CALL(read, ends[0], &byte, 1L);
    CALL(lseek, ends[0], 0L, SEEK_CUR);
    CALL(pread64, ends[0], &byte, 1L, 0L);
    CALL(fsync, ends[0]);
    CALL(ftruncate, ends[1], 0L);
    struct pollfd polled[3] = {{ends[0], POLLIN, 0}, {ends[1], POLLOUT, 0}, {-1, POLLIN, 0}};
    CALL(poll, polled, 3, 0);
    HOLDS(polled[0].revents == 0);
    HOLDS(polled[1].revents == POLLOUT);
    CALL(write, ends[1], "ab", 2L);
    int left = 0;
    CALL(ioctl, ends[0], FIONREAD, &left);
    HOLDS(left == 2);
    CALL(poll, polled, 3, 0);
    HOLDS(polled[0].revents == POLLIN);
    polled[2].fd = 1000;
    CALL(poll, polled, 3, 0);
    HOLDS(polled[2].revents == POLLNVAL);
    CALL(poll, NULL, 1, 0);
    CALL(poll, polled, 0, 0);
    struct timespec soon = {0, 1000}, odd = {0, -1};
    CALL(ppoll, polled, 2, &soon, NULL, 8L);
    CALL(ppoll, polled, 2, &odd, NULL, 8L);
    CALL(dup, -1);
    CALL(dup, 1000);
    CALL(dup2, ends[0], 60);
    CALL(dup2, ends[0], ends[0]);
    CALL(dup2, 1000, 60);
    CALL(dup2, ends[0], -1);
    CALL(dup3, ends[0], ends[0], 0);
    CALL(dup3, ends[0], 60, 1);
    CALL(dup3, ends[0], 60, O_CLOEXEC);
    CALL(close, 60);
    struct termios modes;
    CALL(ioctl, ends[0], TCGETS, &modes);
    CALL(ioctl, -1, TCGETS, &modes);
    CALL(close, ends[1]);
    CALL(read, ends[0], &byte, 1L);
    CALL(read, ends[0], &byte, 1L);
    CALL(read, ends[0], &byte, 1L);
    close(ends[0]);
}

static void names(void) {
    char text[PATH_MAX];
    CALL(mkdir, "folder", 0700);
    CALL(mkdir, "folder", 0700);
    CALL(mkdir, "missing/folder", 0700);
    CALL(mkdirat, -1, "folder", 0700);
    CALL(creat, "folder/file", 0600);
    CALL(rmdir, "folder");
    CALL(rmdir, "folder/file");
    CALL(rmdir, "missing");
    CALL(rmdir, ".");
    CALL(unlink, "folder");
    CALL(rename, "missing", "other");
    CALL(rename, "folder", "folder/inside");
    CALL(rename, "folder/file", "folder");
    CALL(rename, "folder/file", "moved");
    CALL(renameat2, AT_FDCWD, "moved", AT_FDCWD, "folder", 1);
    CALL(renameat2, AT_FDCWD, "moved", AT_FDCWD, "other", 0x80);
    CALL(link, "moved", "second");
    CALL(link, "moved", "second");
    CALL(link, "folder", "third");
    CALL(link, "missing", "third");
    CALL(linkat, AT_FDCWD, "moved", AT_FDCWD, "third", 0x1);
    CALL(readlink, "moved", text, 64L);
    CALL(readlink, "moved", text, 0L);
    CALL(readlink, "missing", text, 64L);
    CALL(access, "moved", F_OK);
    CALL(access, "moved", 99);
    CALL(access, "missing", F_OK);
    CALL(faccessat2, AT_FDCWD, "moved", R_OK, 0x4000);
    CALL(chdir, "moved");
    CALL(chdir, "missing");
    CALL(chdir, "folder");
    CALL(access, "../moved", F_OK);
    CALL(chdir, "..");
    CALL(fchdir, -1);
    long fd = syscall(SYS_open, "moved", O_RDONLY);
    CALL(fchdir, fd);
    CALL(getdents64, fd, text, 1024L);
    CALL(close, fd);
    CALL(getcwd, text, 1L);
    CALL(getcwd, text, 0L);
    CALL(getcwd, BEYOND, 1024L);
    fd = syscall(SYS_open, "folder", O_RDONLY | O_DIRECTORY);
    CALL(getdents64, fd, text, 8L);
    CALL(getdents64, fd, BEYOND, 1024L);
    CALL(getdents64, fd, text, 1024L);
    CALL(getdents64, fd, text, 1024L);
    CALL(close, fd);
    CALL(unlink, "second");
    CALL(unlink, "moved");
    CALL(rmdir, "folder");
}

static void attributes(void) {
    struct stat st;
    struct statx stx;
    struct statfs fs;
    DONE(umask, 027);
    CALL(umask, 022);
    long fd = DONE(open, "file", O_RDWR | O_CREAT, 0666);
    CALL(write, fd, "12345", 5L);
    CALL(fstat, fd, &st);
    HOLDS(st.st_size == 5 && S_ISREG(st.st_mode) && (st.st_mode & 07777) == 0644);
    HOLDS(st.st_nlink == 1 && st.st_blksize > 0);
    CALL(fstat, -1, &st);
    CALL(fstat, fd, BEYOND);
    CALL(stat, "missing", &st);
    CALL(stat, "file", NULL);
    CALL(lstat, "file", &st);
    CALL(newfstatat, fd, "", &st, AT_EMPTY_PATH);
    CALL(newfstatat, fd, "", &st, 0);
    CALL(newfstatat, AT_FDCWD, "file", &st, 0x40000000);
    CALL(statx, AT_FDCWD, "file", 0, STATX_SIZE, &stx);
    HOLDS(stx.stx_size == 5);
    CALL(statx, AT_FDCWD, "file", 0x40000000, STATX_SIZE, &stx);
    CALL(statx, AT_FDCWD, "file", 0, STATX_SIZE, BEYOND);
    CALL(statfs, "file", &fs);
    CALL(statfs, "missing", &fs);
    CALL(fstatfs, -1, &fs);
    CALL(chmod, "file", 0600);
    CALL(chmod, "missing", 0600);
    CALL(fchmod, fd, 0400);
    CALL(fchmod, -1, 0400);
    CALL(fchmodat, AT_FDCWD, "file", 0600);
    CALL(chown, "file", -1, -1);
    CALL(chown, "missing", -1, -1);
    CALL(fchown, fd, -1, -1);
    CALL(lchown, "file", -1, -1);
    CALL(fchownat, AT_FDCWD, "file", -1, -1, 0x40000000);
    struct timespec times[2] = {{1000000, 5}, {2000000, 6}};
    struct timespec odd[2] = {{0, 1000000000}, {0, 0}};
    CALL(utimensat, AT_FDCWD, "file", times, 0);
    CALL(fstat, fd, &st);
    HOLDS(st.st_mtim.tv_sec == 2000000 && st.st_mtim.tv_nsec == 6);
    CALL(utimensat, AT_FDCWD, "file", odd, 0);
    CALL(utimensat, AT_FDCWD, "missing", NULL, 0);
    CALL(utimensat, fd, NULL, NULL, 0);
    CALL(close, fd);
    CALL(unlink, "file");
    CALL(getrandom, &st, 16L, 0);
    CALL(getrandom, &st, 16L, 0xff);
    CALL(getrandom, BEYOND, 16L, 0);
}

int main(int argc, char **argv) {
    if (argc != 2 || chdir(argv[1]) != 0)
        return 2;
    opening();
    transfers();
    descriptors();
    names();
    attributes();
    return 0;
}
