/* Preloaded into a run: counts every call that changes a file, and lets one go wrong.

   A call is watched when its path, or the file behind its descriptor, lies under one of
   the watched folders. A point is (call, pattern of the path, n): the n-th call of that
   name on a path that fits. Until `faults_arm` is called nothing is watched.

   Watched calls are made one at a time, so that the log is the order on the disk. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* What happens at the point; the numbers are those of shim.py. */
enum { NOTHING, KILL, HALF, ONCE, FULL, READ_ONLY };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char watched[4][PATH_MAX];
static int n_watched, log_fd = -1;
static char call_wanted[32], pattern[PATH_MAX];
static long nth, seen;
static int action, error, fired;

void faults_arm(const char *folders, const char *log, const char *call,
                const char *fits, long n, int what, int number) {
  n_watched = 0;
  char copy[4 * PATH_MAX];
  snprintf(copy, sizeof copy, "%s", folders);
  for (char *part = strtok(copy, ":"); part && n_watched < 4; part = strtok(NULL, ":"))
    snprintf(watched[n_watched++], PATH_MAX, "%s", part);
  snprintf(call_wanted, sizeof call_wanted, "%s", call);
  snprintf(pattern, sizeof pattern, "%s", fits);
  nth = n, seen = 0, action = what, error = number, fired = 0;
  int fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND, 0666);
  log_fd = fcntl(fd, F_DUPFD_CLOEXEC, 200);
  syscall(SYS_close, fd);
}

static int is_watched(const char *path) {
  for (int i = 0; i < n_watched; i++) {
    size_t n = strlen(watched[i]);
    if (!strncmp(path, watched[i], n) && (path[n] == '/' || !path[n])) return 1;
  }
  return 0;
}

static int of_fd(int fd, char *out) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, out, PATH_MAX - 1);
  if (n < 0) return 0;
  out[n] = 0;
  char *gone = strstr(out, " (deleted)");
  if (gone) *gone = 0;
  return out[0] == '/';
}

static int of_path(int dir, const char *path, char *out) {
  char above[PATH_MAX] = "";
  if (!path) return 0;
  if (path[0] == '/') {
    snprintf(out, PATH_MAX, "%s", path);
    return 1;
  }
  if (dir == AT_FDCWD) {
    if (!getcwd(above, sizeof above)) return 0;
  } else if (!of_fd(dir, above)) {
    return 0;
  }
  snprintf(out, PATH_MAX, "%.2000s/%.2000s", above, path);
  return 1;
}

/* "flag call bytes path to", tab-separated: flag is "." or what was done to it. */
static void note(char flag, const char *call, long bytes, const char *path,
                 const char *to) {
  char line[2 * PATH_MAX + 100];
  int n = snprintf(line, sizeof line, "%c\t%s\t%ld\t%s\t%s\n", flag, call, bytes, path,
                   to ? to : "");
  syscall(SYS_write, log_fd, line, n);
}

static void die(void) {
  syscall(SYS_kill, getpid(), SIGKILL);
  for (;;) pause();
}

static int takes_space(const char *call) {
  const char *calls[] = {"open", "write", "mkdir", "link", "rename", "truncate", "fsync"};
  for (int i = 0; i < 7; i++)
    if (!strcmp(call, calls[i])) return 1;
  return 0;
}

/* Takes the lock; 0: make the call; -1: it fails with `error`; 1: half of it, then die.
   Where 0 is returned for a path that is not watched the lock is not taken. */
static int enter(const char *call, long bytes, const char *path, const char *to,
                 int *held) {
  *held = 0;
  if (!n_watched || (!is_watched(path) && !(to && is_watched(to)))) return 0;
  pthread_mutex_lock(&lock);
  *held = 1;
  int here = 0;
  if (action && !strcmp(call, call_wanted) && !fnmatch(pattern, path, FNM_PATHNAME))
    here = ++seen == nth;
  if (here) fired = 1;
  if (here && action == KILL) {
    note('K', call, bytes, path, to);
    die();
  }
  if (here && action == HALF) {
    note('H', call, bytes, path, to);
    return 1;
  }
  int fails = (here && action == ONCE) || (fired && action == READ_ONLY) ||
              (fired && action == FULL && (here || takes_space(call)));
  note(fails ? (here ? 'F' : 'f') : '.', call, bytes, path, to);
  if (fails) {
    errno = error;
    return -1;
  }
  return 0;
}

static void leave(int held) {
  if (!held) return;
  int kept = errno;
  pthread_mutex_unlock(&lock);
  errno = kept;
}

#define REAL(name) \
  static typeof(&name) real; \
  if (!real) real = (typeof(&name))dlsym(RTLD_NEXT, #name)

/* The body of a wrapper: `known` fills `path`; `half` is what HALF does first. */
#define WRAP(call, bytes, known, to, type, failed, half, go) \
  do { \
    char path[PATH_MAX]; \
    int held = 0, what = (known) ? enter(call, bytes, path, to, &held) : 0; \
    type result = failed; \
    if (what == 1) { \
      half; \
      die(); \
    } \
    if (what == 0) result = go; \
    leave(held); \
    return result; \
  } while (0)

static int writes(int flags) {
  return (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC));
}

#define OPEN(name) \
  int name(const char *file, int flags, ...) { \
    REAL(name); \
    va_list more; \
    va_start(more, flags); \
    mode_t mode = va_arg(more, mode_t); \
    va_end(more); \
    WRAP("open", 0, writes(flags) && of_path(AT_FDCWD, file, path), NULL, int, -1, , \
         real(file, flags, mode)); \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
  int name(int dir, const char *file, int flags, ...) { \
    REAL(name); \
    va_list more; \
    va_start(more, flags); \
    mode_t mode = va_arg(more, mode_t); \
    va_end(more); \
    WRAP("open", 0, writes(flags) && of_path(dir, file, path), NULL, int, -1, , \
         real(dir, file, flags, mode)); \
  }
OPENAT(openat)
OPENAT(openat64)

/* What fortified code calls where no mode is given. */
int __open_2(const char *file, int flags) { return open(file, flags); }
int __open64_2(const char *file, int flags) { return open64(file, flags); }
int __openat_2(int dir, const char *file, int flags) { return openat(dir, file, flags); }
int __openat64_2(int dir, const char *file, int flags) {
  return openat64(dir, file, flags);
}

int creat(const char *file, mode_t mode) {
  return open(file, O_CREAT | O_WRONLY | O_TRUNC, mode);
}
int creat64(const char *file, mode_t mode) { return creat(file, mode); }

#define FOPEN(name) \
  FILE *name(const char *file, const char *mode) { \
    REAL(name); \
    WRAP("open", 0, strpbrk(mode, "wa+") && of_path(AT_FDCWD, file, path), NULL, \
         FILE *, NULL, , real(file, mode)); \
  }
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int fd, const void *data, size_t n) {
  REAL(write);
  WRAP("write", n, n_watched && of_fd(fd, path), NULL, ssize_t, -1,
       real(fd, data, n / 2), real(fd, data, n));
}

#define PWRITE(name) \
  ssize_t name(int fd, const void *data, size_t n, off_t at) { \
    REAL(name); \
    WRAP("write", n, n_watched && of_fd(fd, path), NULL, ssize_t, -1, \
         real(fd, data, n / 2, at), real(fd, data, n, at)); \
  }
PWRITE(pwrite)
PWRITE(pwrite64)

static long total(const struct iovec *parts, int count) {
  long n = 0;
  for (int i = 0; i < count; i++) n += parts[i].iov_len;
  return n;
}

/* Writes half of the bytes, at `at` or, where that is -1, at the end of the last. */
static void half_of(int fd, const struct iovec *parts, int count, off_t at) {
  long left = total(parts, count) / 2;
  for (int i = 0; i < count && left > 0; i++) {
    long n = (long)parts[i].iov_len < left ? (long)parts[i].iov_len : left;
    if (at < 0) syscall(SYS_write, fd, parts[i].iov_base, n);
    else syscall(SYS_pwrite64, fd, parts[i].iov_base, n, at), at += n;
    left -= n;
  }
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
  REAL(writev);
  WRAP("write", total(parts, count), n_watched && of_fd(fd, path), NULL, ssize_t, -1,
       half_of(fd, parts, count, -1), real(fd, parts, count));
}

#define PWRITEV(name) \
  ssize_t name(int fd, const struct iovec *parts, int count, off_t at) { \
    REAL(name); \
    WRAP("write", total(parts, count), n_watched && of_fd(fd, path), NULL, ssize_t, -1, \
         half_of(fd, parts, count, at), real(fd, parts, count, at)); \
  }
PWRITEV(pwritev)
PWRITEV(pwritev64)

ssize_t copy_file_range(int from, off_t *a, int fd, off_t *b, size_t n, unsigned flags) {
  REAL(copy_file_range);
  WRAP("write", n, n_watched && of_fd(fd, path), NULL, ssize_t, -1,
       real(from, a, fd, b, n / 2, flags), real(from, a, fd, b, n, flags));
}

#define SENDFILE(name) \
  ssize_t name(int fd, int from, off_t *at, size_t n) { \
    REAL(name); \
    WRAP("write", n, n_watched && of_fd(fd, path), NULL, ssize_t, -1, \
         real(fd, from, at, n / 2), real(fd, from, at, n)); \
  }
SENDFILE(sendfile)
SENDFILE(sendfile64)

int rename(const char *from, const char *to) {
  REAL(rename);
  char there[PATH_MAX];
  of_path(AT_FDCWD, to, there);
  WRAP("rename", 0, of_path(AT_FDCWD, from, path), there, int, -1, , real(from, to));
}
int renameat(int a, const char *from, int b, const char *to) {
  REAL(renameat);
  char there[PATH_MAX];
  of_path(b, to, there);
  WRAP("rename", 0, of_path(a, from, path), there, int, -1, , real(a, from, b, to));
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
  REAL(renameat2);
  char there[PATH_MAX];
  of_path(b, to, there);
  WRAP("rename", 0, of_path(a, from, path), there, int, -1, ,
       real(a, from, b, to, flags));
}
int link(const char *from, const char *to) {
  REAL(link);
  char there[PATH_MAX];
  of_path(AT_FDCWD, to, there);
  WRAP("link", 0, of_path(AT_FDCWD, from, path), there, int, -1, , real(from, to));
}
int linkat(int a, const char *from, int b, const char *to, int flags) {
  REAL(linkat);
  char there[PATH_MAX];
  of_path(b, to, there);
  WRAP("link", 0, of_path(a, from, path), there, int, -1, ,
       real(a, from, b, to, flags));
}
int symlink(const char *from, const char *to) {
  REAL(symlink);
  WRAP("link", 0, of_path(AT_FDCWD, to, path), NULL, int, -1, , real(from, to));
}
int symlinkat(const char *from, int dir, const char *to) {
  REAL(symlinkat);
  WRAP("link", 0, of_path(dir, to, path), NULL, int, -1, , real(from, dir, to));
}

int unlink(const char *file) {
  REAL(unlink);
  WRAP("delete", 0, of_path(AT_FDCWD, file, path), NULL, int, -1, , real(file));
}
int unlinkat(int dir, const char *file, int flags) {
  REAL(unlinkat);
  WRAP("delete", 0, of_path(dir, file, path), NULL, int, -1, , real(dir, file, flags));
}
int rmdir(const char *file) {
  REAL(rmdir);
  WRAP("delete", 0, of_path(AT_FDCWD, file, path), NULL, int, -1, , real(file));
}
int remove(const char *file) {
  REAL(remove);
  WRAP("delete", 0, of_path(AT_FDCWD, file, path), NULL, int, -1, , real(file));
}
int mkdir(const char *file, mode_t mode) {
  REAL(mkdir);
  WRAP("mkdir", 0, of_path(AT_FDCWD, file, path), NULL, int, -1, , real(file, mode));
}
int mkdirat(int dir, const char *file, mode_t mode) {
  REAL(mkdirat);
  WRAP("mkdir", 0, of_path(dir, file, path), NULL, int, -1, , real(dir, file, mode));
}

#define FTRUNCATE(name) \
  int name(int fd, off_t size) { \
    REAL(name); \
    WRAP("truncate", size, n_watched && of_fd(fd, path), NULL, int, -1, , \
         real(fd, size)); \
  }
FTRUNCATE(ftruncate)
FTRUNCATE(ftruncate64)

#define TRUNCATE(name) \
  int name(const char *file, off_t size) { \
    REAL(name); \
    WRAP("truncate", size, of_path(AT_FDCWD, file, path), NULL, int, -1, , \
         real(file, size)); \
  }
TRUNCATE(truncate)
TRUNCATE(truncate64)

#define FALLOCATE(name) \
  int name(int fd, int mode, off_t at, off_t n) { \
    REAL(name); \
    WRAP("truncate", n, n_watched && of_fd(fd, path), NULL, int, -1, , \
         real(fd, mode, at, n)); \
  }
FALLOCATE(fallocate)
FALLOCATE(fallocate64)

/* The bytes of a sync are the size of the file: what is safe from then on. */
static long size_of(int fd) {
  struct stat found;
  return fstat(fd, &found) ? 0 : (long)found.st_size;
}

#define SYNC(name) \
  int name(int fd) { \
    REAL(name); \
    WRAP("fsync", size_of(fd), n_watched && of_fd(fd, path), NULL, int, -1, , real(fd)); \
  }
SYNC(fsync)
SYNC(fdatasync)

int chmod(const char *file, mode_t mode) {
  REAL(chmod);
  WRAP("chmod", 0, of_path(AT_FDCWD, file, path), NULL, int, -1, , real(file, mode));
}
int fchmod(int fd, mode_t mode) {
  REAL(fchmod);
  WRAP("chmod", 0, n_watched && of_fd(fd, path), NULL, int, -1, , real(fd, mode));
}
int fchmodat(int dir, const char *file, mode_t mode, int flags) {
  REAL(fchmodat);
  WRAP("chmod", 0, of_path(dir, file, path), NULL, int, -1, ,
       real(dir, file, mode, flags));
}
