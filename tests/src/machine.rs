//! What benchmarks say of the machine that they ran on.

use std::fs;

/// The processor and the kernel.
#[must_use]
pub fn describe() -> String {
    let cpus = cpu_info().lines().filter(|line| line.starts_with("processor")).count();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cpus} × {}, Linux {}", processor(), release.trim())
}

/// What the kernel calls the processor.
#[must_use]
pub fn processor() -> String {
    let info = cpu_info();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).and_then(|line| line.split_once(": "));
    model.map_or("unknown processor", |(_, name)| name).to_owned()
}

fn cpu_info() -> String {
    fs::read_to_string("/proc/cpuinfo").unwrap_or_default()
}
