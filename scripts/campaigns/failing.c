// Preloaded into a campaign: lets one operation on a file under a folder fail, on Linux.
//
//   failing_at(folder, n, kind)   from now on operations on files under `folder` are counted, and the n-th fails; n = 0: none
//   failing_name()                what the operation was that failed, and on which path; "" if none did
//   failing_count()               operations so far
//
// Operations: open for writing, write, rename, mkdir, fsync, ftruncate. Kinds:
//
//   0  the operation fails once with ENOSPC
//   1  the operation fails once with EIO
//   2  a write writes half of its bytes, once; no failure, the writer has to go on
//   3  the disk is full from this operation on: a write writes half, and all that need room fail with ENOSPC
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { ONCE_FULL, ONCE_BROKEN, SHORT, FULL };

static char folder[PATH_MAX], failed[PATH_MAX + 32];
static long at, count;
static int kind;

void failing_at(const char *under, long n, int how) {
    snprintf(folder, sizeof folder, "%s", under);
    at = n, count = 0, kind = how, failed[0] = 0;
}

const char *failing_name(void) { return failed; }

long failing_count(void) { return count; }

static int inside(const char *path) {
    size_t length = strlen(folder);
    return length && !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

// The path of an open file, or of `path` seen from the directory `from`, in `full`; 0 if it is none of ours.
static int ours(int from, const char *path, char *full) {
    char link[64], base[PATH_MAX];
    if (!folder[0]) return 0;
    if (path && path[0] == '/') {
        snprintf(full, PATH_MAX, "%s", path);
        return inside(full);
    }
    if (from == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", from);
    ssize_t length = readlink(link, base, sizeof base - 1);
    if (length < 0) return 0;
    base[length] = 0;
    if (path) snprintf(full, PATH_MAX, "%.2000s/%.2000s", base, path);
    else snprintf(full, PATH_MAX, "%.4000s", base);
    return inside(full);
}

// Count an operation; 0: let it be, else it is to fail (with the kind SHORT: to be cut).
static int fails(const char *operation, int from, const char *path, int needs_room) {
    char full[PATH_MAX];
    if (!ours(from, path, full)) return 0;
    count++;
    if (!at || count < at || (count > at && (kind != FULL || !needs_room))) return 0;
    if (!failed[0]) snprintf(failed, sizeof failed, "%s %.4000s", operation, full);
    return 1;
}

static int reason(void) { return kind == ONCE_BROKEN ? EIO : ENOSPC; }

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define FAIL do { errno = reason(); return -1; } while (0)

// A write that fails, or is cut to its half.
#define CUT() (kind == SHORT || (kind == FULL && count == at))

#define WRITE(name, parameters, ...) \
    ssize_t name parameters { \
        REAL(name); \
        if (fails("write", file, NULL, 1)) { \
            if (!CUT()) FAIL; \
            size = size > 1 ? size / 2 : size; \
        } \
        return real(__VA_ARGS__); \
    }

WRITE(write, (int file, const void *data, size_t size), file, data, size)
WRITE(pwrite, (int file, const void *data, size_t size, off_t where), file, data, size, where)
WRITE(pwrite64, (int file, const void *data, size_t size, off64_t where), file, data, size, where)

ssize_t writev(int file, const struct iovec *parts, int number) {
    REAL(writev);
    if (fails("write", file, NULL, 1)) {
        if (!CUT()) FAIL;
        number = number > 1 ? number / 2 : number;
    }
    return real(file, parts, number);
}

// Nothing but a write can be short.
#define OTHER(operation, from, path, needs_room) if (fails(operation, from, path, needs_room) && kind != SHORT) FAIL

#define OPEN(name, parameters, from, ...) \
    int name parameters { \
        REAL(name); \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); } \
        if (flags & (O_WRONLY | O_RDWR | O_CREAT)) OTHER("open", from, path, 1); \
        return real(__VA_ARGS__, flags, mode); \
    }

OPEN(open, (const char *path, int flags, ...), AT_FDCWD, path)
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD, path)
OPEN(openat, (int from, const char *path, int flags, ...), from, from, path)
OPEN(openat64, (int from, const char *path, int flags, ...), from, from, path)

int rename(const char *old, const char *new) {
    REAL(rename);
    OTHER("rename", AT_FDCWD, new, 0);
    return real(old, new);
}

int renameat(int from, const char *old, int to, const char *new) {
    REAL(renameat);
    OTHER("rename", to, new, 0);
    return real(from, old, to, new);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    if (access(path, F_OK) == 0) return real(path, mode);  // it is there: nothing is made, and the caller is told so
    OTHER("mkdir", AT_FDCWD, path, 1);
    return real(path, mode);
}

int fsync(int file) {
    REAL(fsync);
    OTHER("fsync", file, NULL, 0);
    return real(file);
}

int fdatasync(int file) {
    REAL(fdatasync);
    OTHER("fsync", file, NULL, 0);
    return real(file);
}

int ftruncate(int file, off_t size) {
    REAL(ftruncate);
    OTHER("ftruncate", file, NULL, 1);
    return real(file, size);
}

int ftruncate64(int file, off64_t size) {
    REAL(ftruncate64);
    OTHER("ftruncate", file, NULL, 1);
    return real(file, size);
}
