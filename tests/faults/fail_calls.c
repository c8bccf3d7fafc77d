/* Preloaded into a process: counts its calls that change files below one folder, and lets one of them fail.
 *
 * fault_arm(prefix, number, error, log) begins to count; error -1 kills the process at that call. A second fault_arm with
 * prefix NULL ends it. fault_count() says how many calls there were. Each call is written to the descriptor `log`, if it
 * is not negative.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static char prefix[512];
static atomic_int count;
static int wanted = -1, error_code, log_fd = -1;
static volatile int is_armed;

void fault_arm(const char *folder, int number, int error, int log) {
    is_armed = 0;
    atomic_store(&count, 0);
    wanted = number;
    error_code = error;
    log_fd = log;
    if (folder) {
        snprintf(prefix, sizeof prefix, "%s/", folder);
        is_armed = 1;
    }
}

int fault_count(void) { return atomic_load(&count); }

/* Whether this call is the one that fails. Does not return if it is to kill. */
static int meets(const char *call, const char *path) {
    char text[1200];
    if (!is_armed || strncmp(path, prefix, strlen(prefix)) != 0) return 0;
    int number = atomic_fetch_add(&count, 1);
    if (log_fd >= 0) {
        int length = snprintf(text, sizeof text, "%s %s\n", call, path + strlen(prefix));
        syscall(SYS_write, log_fd, text, length);
    }
    if (number != wanted) return 0;
    if (error_code < 0) {
        syscall(SYS_kill, getpid(), SIGKILL);
        for (;;) pause();
    }
    errno = error_code;
    return 1;
}

static int meets_at(const char *call, int folder, const char *path) {
    char link[64], text[1024];
    if (!is_armed) return 0;
    if (path && path[0] == '/') return meets(call, path);
    if (folder == AT_FDCWD) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, text, 500);
    if (length < 0) return 0;
    text[length] = 0;
    if (path) {
        strcat(text, "/");
        strncat(text, path, 400);
    }
    return meets(call, text);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WRITES (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)

#define OPEN(name)                                                                  \
    int name(const char *path, int flags, ...) {                                    \
        va_list list;                                                               \
        va_start(list, flags);                                                      \
        mode_t mode = va_arg(list, mode_t);                                         \
        va_end(list);                                                               \
        if ((flags & WRITES) && meets_at("open", AT_FDCWD, path)) return -1;        \
        return REAL(name)(path, flags, mode);                                       \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                \
    int name(int folder, const char *path, int flags, ...) {                        \
        va_list list;                                                               \
        va_start(list, flags);                                                      \
        mode_t mode = va_arg(list, mode_t);                                         \
        va_end(list);                                                               \
        if ((flags & WRITES) && meets_at("open", folder, path)) return -1;          \
        return REAL(name)(folder, path, flags, mode);                               \
    }
OPENAT(openat)
OPENAT(openat64)

#define CALL(name, type, parameters, arguments, folder, path)                       \
    type name parameters {                                                          \
        if (meets_at(#name, folder, path)) return -1;                               \
        return REAL(name) arguments;                                                \
    }
CALL(write, ssize_t, (int fd, const void *data, size_t size), (fd, data, size), fd, NULL)
CALL(pwrite, ssize_t, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at), fd, NULL)
CALL(pwrite64, ssize_t, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at), fd, NULL)
CALL(fsync, int, (int fd), (fd), fd, NULL)
CALL(fdatasync, int, (int fd), (fd), fd, NULL)
CALL(ftruncate, int, (int fd, off_t size), (fd, size), fd, NULL)
CALL(ftruncate64, int, (int fd, off64_t size), (fd, size), fd, NULL)
CALL(rename, int, (const char *from, const char *to), (from, to), AT_FDCWD, from)
CALL(renameat, int, (int one, const char *from, int other, const char *to), (one, from, other, to), one, from)
CALL(link, int, (const char *from, const char *to), (from, to), AT_FDCWD, from)
CALL(linkat, int, (int one, const char *from, int other, const char *to, int flags), (one, from, other, to, flags), one, from)
CALL(unlink, int, (const char *path), (path), AT_FDCWD, path)
CALL(unlinkat, int, (int folder, const char *path, int flags), (folder, path, flags), folder, path)
CALL(mkdir, int, (const char *path, mode_t mode), (path, mode), AT_FDCWD, path)
CALL(mkdirat, int, (int folder, const char *path, mode_t mode), (folder, path, mode), folder, path)
CALL(rmdir, int, (const char *path), (path), AT_FDCWD, path)
