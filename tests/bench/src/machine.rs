//! Describes the machine on which benchmarks ran.

use std::fs;

use serde::Serialize;

/// A description of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// The kernel's name for the processor.
    pub processor: String,
    /// The number of processors.
    pub processors: usize,
    /// Whether the machine runs under a hypervisor.
    pub is_virtual: bool,
    /// The version of the kernel.
    pub kernel: String,
    /// The frequency governor of the first processor, if the kernel reports one.
    pub governor: Option<String>,
}

impl Machine {
    /// Returns a description of the current machine.
    #[must_use]
    pub fn here() -> Self {
        let info = cpu_info();
        let word = |file: &str| Some(fs::read_to_string(file).ok()?.trim().to_owned());
        Self {
            processor: processor_in(&info),
            processors: info.lines().filter(|line| line.starts_with("processor")).count(),
            is_virtual: is_virtual(&info),
            kernel: word("/proc/sys/kernel/osrelease").unwrap_or_default(),
            governor: word("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        }
    }

    /// Returns the description in a few words.
    #[must_use]
    pub fn describe(&self) -> String {
        let place = if self.is_virtual { " in a virtual machine" } else { "" };
        format!("{} × {}{place}, Linux {}", self.processors, self.processor, self.kernel)
    }
}

/// Describes the processor and the kernel.
#[must_use]
pub fn describe() -> String {
    Machine::here().describe()
}

fn processor_in(info: &str) -> String {
    field(info, "model name").unwrap_or("unknown processor").to_owned()
}

/// Returns a field of the first processor in `/proc/cpuinfo`.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim())
}

fn is_virtual(info: &str) -> bool {
    field(info, "flags").is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor"))
}

fn cpu_info() -> String {
    fs::read_to_string("/proc/cpuinfo").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{is_virtual, processor_in};

    #[test]
    fn when_a_machine_has_the_flag_then_it_has_a_hypervisor() {
        let info = "processor\t: 0\nmodel name\t: A: B\nflags\t\t: fpu hypervisor lahf_lm\n";
        assert!(is_virtual(info) && !is_virtual("flags\t\t: fpu\n") && !is_virtual(""));
        assert_eq!(processor_in(info), "A: B");
        assert_eq!(processor_in(""), "unknown processor");
    }
}
