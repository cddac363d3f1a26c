//! Settings of glibc's allocator: where it takes memory from, and when it returns it.

/// The size in bytes from which on an allocation gets a mapping of its own, which glibc returns at once. Lookup tables
/// are smaller.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 1 << 20;

/// Makes all threads share one arena, and gives large allocations their own mappings. Call it before other threads
/// exist.
///
/// Otherwise each thread has its own arena, and memory freed there is unusable for other threads: each time that some
/// thread writes a state or reads a file, it would leave the size of this text in its arena. In addition, glibc raises
/// its threshold for large allocations up to 32 MB as they are freed, so such texts would lie between long-lived data.
/// musl has no arenas.
pub fn share() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, LARGE)]
    {
        // SAFETY: `mallopt` changes a number that the allocator reads, and only one thread exists.
        let _ = unsafe { libc::mallopt(parameter, value) };
    }
}
