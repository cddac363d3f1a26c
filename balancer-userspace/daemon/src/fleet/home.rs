//! The identity of a process's home: machine boot, network namespace and state file. A new process may take over the
//! name of an ended process with the same home.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

/// Hashes the boot id, the network namespace and the state file; two processes never share all three at the same time.
/// Clones of a machine have different boot ids.
pub(super) fn of_this_process(state_file: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().hash(&mut hasher);
    if let Ok(namespace) = fs::metadata("/proc/self/ns/net") {
        (namespace.dev(), namespace.ino()).hash(&mut hasher);
    }
    // The state file may not exist yet, so only its directory is resolved.
    state_file.parent().and_then(|folder| fs::canonicalize(folder).ok()).hash(&mut hasher);
    state_file.file_name().hash(&mut hasher);
    // The value 0 stands for an unknown home.
    hasher.finish().max(1)
}
