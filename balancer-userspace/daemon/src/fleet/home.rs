//! The identity of the place where a process runs. A new process in the same place may take over the name of one that
//! has ended there.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

/// Hashes the boot id, the network namespace and the state file; two processes never have all three in common at the
/// same time. Clones of a machine differ in the boot id.
pub(super) fn of_this_process(state_file: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().hash(&mut hasher);
    if let Ok(namespace) = fs::metadata("/proc/self/ns/net") {
        (namespace.dev(), namespace.ino()).hash(&mut hasher);
    }
    // The file may not exist yet.
    state_file.parent().and_then(|folder| fs::canonicalize(folder).ok()).hash(&mut hasher);
    state_file.file_name().hash(&mut hasher);
    // The value 0 means unknown.
    hasher.finish().max(1)
}
