//! Settings of glibc's memory allocator: the arenas, and the sizes that get their own mappings.

/// glibc gives an allocation of at least this size, in bytes, its own mapping and unmaps it as soon as the allocation
/// is freed. Lookup tables are smaller than this size.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 1 << 20;

/// Makes all threads share one arena, and gives each large allocation its own mapping. Callers must call this function
/// before other threads exist.
///
/// By default, each thread has its own arena, and other threads cannot use the memory freed there. Each thread that
/// writes a state or reads a file would keep the memory needed for it in its own arena. In addition, glibc raises the
/// threshold for large allocations up to 32 MB when such allocations are freed, so large texts would lie between
/// long-lived data. musl has no arenas.
pub fn share() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, LARGE)]
    {
        // SAFETY: `mallopt` changes a number that only the allocator reads, and this process has only one thread at
        // this time.
        let _ = unsafe { libc::mallopt(parameter, value) };
    }
}
