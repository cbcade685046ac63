/* A disk that is full after a number of operations, for what a process writes below one directory.

   Loaded by LD_PRELOAD. `chaos_fill` begins to count operations that need room. When it is full they fail
   with ENOSPC, the first write after a part of it, as on a real disk; what is removed gives room again. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <unistd.h>

static char below[4096];
static size_t length;
static struct { long seen, after, room; } *disk; /* the same for all that are forked from here on */

void chaos_fill(const char *directory, long operations) {
  length = strlen(directory);
  strncpy(below, directory, sizeof below - 1);
  disk = mmap(NULL, sizeof *disk, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  disk->after = operations;
}

long chaos_seen(void) { return disk->seen; }

/* Whether there is no room for some bytes; what was removed since the disk is full is room again. */
static int is_full(long bytes) {
  if (disk->after < 0 || disk->seen < disk->after) {
    disk->seen++;
    return 0;
  }
  if (disk->room > bytes) {
    disk->room -= bytes;
    return 0;
  }
  errno = ENOSPC;
  return 1;
}

static int inside(const char *path) {
  char here[4096];
  if (!length || !path) return 0;
  if (path[0] != '/') {
    if (!getcwd(here, sizeof here)) return 0;
    path = here;
  }
  return !strncmp(path, below, length) && (path[length] == '/' || !path[length]);
}

static int inside_fd(int fd) {
  char link[64], path[4096];
  if (!length) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n < 0) return 0;
  path[n] = 0;
  return inside(path);
}

#define REAL(name) \
  static __typeof__(name) *real; \
  if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define MADE(path, flags) ((flags) & O_CREAT && inside(path) && access(path, F_OK) && is_full(0))

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    REAL(name); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = va_arg(rest, mode_t); \
    va_end(rest); \
    return MADE(path, flags) ? -1 : real(path, flags, mode); \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
  int name(int folder, const char *path, int flags, ...) { \
    REAL(name); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = va_arg(rest, mode_t); \
    va_end(rest); \
    return MADE(path, flags) ? -1 : real(folder, path, flags, mode); \
  }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name) \
  FILE *name(const char *path, const char *how) { \
    REAL(name); \
    return (how[0] != 'r' && inside(path) && is_full(0)) ? NULL : real(path, how); \
  }
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int fd, const void *data, size_t size) {
  REAL(write);
  if (inside_fd(fd) && is_full(size)) {
    static int part_written;
    if (part_written || size < 2) return -1;
    part_written = 1;
    return real(fd, data, size / 2);
  }
  return real(fd, data, size);
}

#define ON_FD(type, name, parameters, ...) \
  type name parameters { \
    REAL(name); \
    return inside_fd(fd) && is_full(0) ? -1 : real(__VA_ARGS__); \
  }
ON_FD(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), fd, data, size, at)
ON_FD(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), fd, data, size, at)
ON_FD(ssize_t, writev, (int fd, const struct iovec *parts, int n), fd, parts, n)
ON_FD(ssize_t, sendfile, (int fd, int from, off_t *at, size_t size), fd, from, at, size)
ON_FD(ssize_t, sendfile64, (int fd, int from, off64_t *at, size_t size), fd, from, at, size)
ON_FD(int, fsync, (int fd), fd)
ON_FD(int, fdatasync, (int fd), fd)

#define REMOVES(name, parameters, folder, ...) \
  int name parameters { \
    REAL(name); \
    struct stat file; \
    int counts = length && !fstatat(folder, path, &file, AT_SYMLINK_NOFOLLOW) && S_ISREG(file.st_mode); \
    int code = real(__VA_ARGS__); \
    if (counts && !code && disk->after >= 0 && disk->seen >= disk->after) disk->room += file.st_size; \
    return code; \
  }
REMOVES(unlink, (const char *path), AT_FDCWD, path)
REMOVES(unlinkat, (int folder, const char *path, int flags), folder, folder, path, flags)

#define ON_PATH(name, parameters, target, ...) \
  int name parameters { \
    REAL(name); \
    return inside(target) && is_full(0) ? -1 : real(__VA_ARGS__); \
  }
ON_PATH(mkdir, (const char *path, mode_t mode), path, path, mode)
ON_PATH(rename, (const char *from, const char *to), to, from, to)
ON_PATH(link, (const char *from, const char *to), to, from, to)
ON_PATH(symlink, (const char *from, const char *to), to, from, to)
