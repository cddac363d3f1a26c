//! The place where a process runs: a process of the same place goes on where one has ended that left its name behind.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

/// The start of the machine, the network namespace and the state file, which no two processes have at one time. Clones of
/// a machine differ in the first.
pub(super) fn of_this_process(state_file: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().hash(&mut hasher);
    if let Ok(namespace) = fs::metadata("/proc/self/ns/net") {
        (namespace.dev(), namespace.ino()).hash(&mut hasher);
    }
    // There may be no file yet.
    state_file.parent().and_then(|folder| fs::canonicalize(folder).ok()).hash(&mut hasher);
    state_file.file_name().hash(&mut hasher);
    // 0 says that it is not known.
    hasher.finish().max(1)
}
