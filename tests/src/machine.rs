//! What benchmarks say of the machine that they ran on.

use std::fs;

/// The processor and the kernel.
#[must_use]
pub fn describe() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).and_then(|line| line.split_once(": "));
    let cpus = info.lines().filter(|line| line.starts_with("processor")).count();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cpus} × {}, Linux {}", model.map_or("unknown processor", |(_, name)| name), release.trim())
}
