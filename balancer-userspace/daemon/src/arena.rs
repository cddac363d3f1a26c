//! Settings of glibc's allocator: where it takes memory from, and when it returns it.

/// The allocation size in bytes from which on an allocation is a separate mapping, which is returned at once. Lookup
/// tables are smaller.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 1 << 20;

/// Makes all threads share one arena, and gives large allocations their own mappings. It must be called before there
/// are other threads.
///
/// Otherwise each thread has its own arena, and memory freed there is unusable for other threads: writing a state or
/// reading a file, each on whichever thread is free, would leave its size in one arena after another. Also, glibc
/// raises its threshold for large allocations up to 32 MB as they are freed, so such texts would lie between long-lived
/// data. musl has no arenas.
pub fn share() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, LARGE)]
    {
        // SAFETY: `mallopt` changes a number that the allocator reads, and there is one thread.
        let _ = unsafe { libc::mallopt(parameter, value) };
    }
}
