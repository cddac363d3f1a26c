//! Where glibc's allocator takes memory from.

/// Has all threads share one arena: to be called before there are others.
///
/// Otherwise each thread has one of its own, and what it gives back serves nobody else: a state that is written or a file
/// that is read, each by whichever thread is free, leaves its size in one arena after the other. musl has no arenas.
pub fn share() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `mallopt` changes a number that the allocator reads when a thread allocates for the first time.
    let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
