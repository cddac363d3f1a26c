//! Where glibc's allocator takes memory from, and when it gives it back.

/// Size in bytes from which on an allocation is a mapping of its own, which is given back at once. Lookup tables are
/// smaller.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 1 << 20;

/// Has all threads share one arena, and what is large have none: to be called before there are other threads.
///
/// Otherwise each thread has an arena of its own, and what it gives back serves nobody else: a state that is written or a file
/// that is read, each by whichever thread is free, leaves its size in one arena after the other. And what glibc takes for large
/// grows with what is given back, to 32 MB, so that such texts come to lie between what stays. musl has no arenas.
pub fn share() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, LARGE)]
    {
        // SAFETY: `mallopt` changes a number that the allocator reads, and there is one thread.
        let _ = unsafe { libc::mallopt(parameter, value) };
    }
}
