/* Loaded into a process before its libraries: disks that refuse or are slow, a wall clock that jumps, and a sudden end, for it
   alone. FAULTS names a file of seven 64-bit words: the error of fsync (0: none), its delay in milliseconds, what is added to the
   wall clock in seconds, whether what is below DISK is read-only, the number of the step before which a signal reaches the
   process (0: never), this signal, and the error of making a kernel map. (Remounting the disk read-only would fail: files are open.) A step is a system call that
   changes what outlives the process: a link or a pin of the kernel, and the name of a file. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t none[7];
static volatile int64_t *faults = none;

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("FAULTS");
	int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	if (file < 0)
		return;
	void *mapped = mmap(NULL, sizeof none, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	close(file);
	if (mapped != MAP_FAILED)
		faults = mapped;
}

static void step(void)
{
	if (faults[4] > 0 && __sync_sub_and_fetch(&faults[4], 1) == 0)
		kill(getpid(), (int)faults[5]);
}

long syscall(long call, ...)
{
	static long (*next)(long, ...);
	if (!next)
		next = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
	va_list rest;
	va_start(rest, call);
	long given[6];
	for (int index = 0; index < 6; index++)
		given[index] = va_arg(rest, long);
	va_end(rest);
	if (call == SYS_bpf && (given[0] == BPF_OBJ_PIN || given[0] == BPF_LINK_CREATE || given[0] == BPF_LINK_UPDATE))
		step();
	if (call == SYS_bpf && given[0] == BPF_MAP_CREATE && faults[6]) {
		errno = (int)faults[6];
		return -1;
	}
	return next(call, given[0], given[1], given[2], given[3], given[4], given[5]);
}

static int synchronise(long call, int file)
{
	if (faults[1] > 0)
		usleep((useconds_t)faults[1] * 1000);
	if (faults[0]) {
		errno = (int)faults[0];
		return -1;
	}
	return (int)syscall(call, file);
}

int fsync(int file)
{
	return synchronise(SYS_fsync, file);
}

int fdatasync(int file)
{
	return synchronise(SYS_fdatasync, file);
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
	int result = (int)syscall(SYS_clock_gettime, clock, time);
	if (result == 0 && clock == CLOCK_REALTIME)
		time->tv_sec += faults[2];
	return result;
}

static int refused(const char *path)
{
	const char *disk = getenv("DISK");
	if (!faults[3] || !disk || strncmp(path, disk, strlen(disk)))
		return 0;
	errno = EROFS;
	return 1;
}

static int open_file(const char *path, int flags, mode_t mode)
{
	if ((flags & (O_ACCMODE | O_CREAT)) != O_RDONLY && refused(path))
		return -1;
	return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int open(const char *path, int flags, ...)
{
	va_list rest;
	va_start(rest, flags);
	mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
	va_end(rest);
	return open_file(path, flags, mode);
}

int open64(const char *path, int flags, ...) __attribute__((alias("open")));

int unlink(const char *path)
{
	step();
	return refused(path) ? -1 : (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}

int rename(const char *from, const char *to)
{
	step();
	return refused(to) ? -1 : (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

int linkat(int from_directory, const char *from, int directory, const char *path, int flags)
{
	return refused(path) ? -1 : (int)syscall(SYS_linkat, from_directory, from, directory, path, flags);
}
