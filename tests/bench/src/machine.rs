//! Describes the machine on which benchmarks ran.

use std::fs;

/// Describes the processor and the kernel in a few words.
#[must_use]
pub fn describe() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let processors = info.lines().filter(|line| line.starts_with("processor")).count();
    let place = if is_virtual(&info) { " in a virtual machine" } else { "" };
    format!("{processors} × {}{place}, Linux {}", processor_in(&info), kernel.trim())
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
