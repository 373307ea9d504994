/* A file system whose locks do not lock: preloaded, flock always succeeds, or fails with the error that FLOCK names. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>

int flock(int fd, int operation) {
    (void)fd;
    (void)operation;
    const char *error = getenv("FLOCK");
    if (!error || !*error) return 0;
    errno = atoi(error);
    return -1;
}
