/* A disk that is full from the n-th change on: preloaded, it lets every call from the n-th on that writes below
   FULL_DISK_UNDER fail with ENOSPC. FULL_DISK_AT is n; without it nothing fails, and the calls are not counted. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static atomic_long count;

static int below(const char *path) {
    const char *under = getenv("FULL_DISK_UNDER");
    return under && path && strncmp(path, under, strlen(under)) == 0;
}

static int full(void) {
    const char *at = getenv("FULL_DISK_AT");
    if (!at || atomic_fetch_add(&count, 1) + 1 < atol(at)) return 0;
    errno = ENOSPC;
    return 1;
}

static int full_fd(int fd) {
    char link[64], path[4096];
    if (!getenv("FULL_DISK_AT")) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return below(path) && full();
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define ON_FD(type, name, arguments, call, failed) \
    type name arguments { return full_fd(fd) ? (failed) : NEXT(name) call; }

ON_FD(ssize_t, write, (int fd, const void *data, size_t n), (fd, data, n), -1)
ON_FD(ssize_t, pwrite, (int fd, const void *data, size_t n, off_t at), (fd, data, n, at), -1)
ON_FD(ssize_t, pwrite64, (int fd, const void *data, size_t n, off64_t at), (fd, data, n, at), -1)
ON_FD(int, ftruncate, (int fd, off_t length), (fd, length), -1)
ON_FD(int, ftruncate64, (int fd, off64_t length), (fd, length), -1)
ON_FD(int, posix_fallocate, (int fd, off_t at, off_t length), (fd, at, length), ENOSPC)
ON_FD(int, posix_fallocate64, (int fd, off64_t at, off64_t length), (fd, at, length), ENOSPC)
ON_FD(int, fsync, (int fd), (fd), -1)
ON_FD(int, fdatasync, (int fd), (fd), -1)

#define OPENS(name) \
    int name(const char *path, int flags, ...) { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        if ((flags & O_CREAT) && access(path, F_OK) && below(path) && full()) return -1; \
        return NEXT(name)(path, flags, mode); \
    }

OPENS(open)
OPENS(open64)

int mkdir(const char *path, mode_t mode) { return below(path) && full() ? -1 : NEXT(mkdir)(path, mode); }
int rename(const char *from, const char *to) { return below(to) && full() ? -1 : NEXT(rename)(from, to); }
