//! Checks whether this process and this kernel can run the data path.

use std::{fs, os::unix::fs::MetadataExt as _};

use anyhow::{Context as _, bail};

/// A required capability, and the capabilities that include it, with the numbers from `linux/capability.h`.
struct Needed {
    name: &'static str,
    number: u8,
    included_in: Option<u8>,
}

const CAP_SYS_ADMIN: u8 = 21;

/// The required capabilities in alphabetical order.
const NEEDED: [Needed; 3] = [
    Needed { name: "CAP_BPF", number: 39, included_in: Some(CAP_SYS_ADMIN) },
    Needed { name: "CAP_NET_ADMIN", number: 12, included_in: None },
    Needed { name: "CAP_PERFMON", number: 38, included_in: Some(CAP_SYS_ADMIN) },
];

/// The oldest kernel whose verifier is known to accept the programs.
const KERNEL: (u32, u32) = (6, 1);
/// The first kernel whose real-time variant lets the receive paths of two interfaces interrupt each other on one CPU.
const PREEMPTS: (u32, u32) = (6, 18);

/// Checks that the kernel is new enough, and that the process may load programs and attach them to interfaces.
///
/// # Errors
/// Fails if a capability is missing or the kernel is too old; the error names the required capability or kernel.
pub fn check() -> anyhow::Result<()> {
    check_kernel(&kernel()?)?;
    let status = fs::read_to_string("/proc/self/status").context("reading this process's capabilities")?;
    check_capabilities(&status)
}

/// Checks, in addition to [`check`], that the programs are alone on their CPU while they process a packet: they keep
/// data of the packet in rows of the CPU.
///
/// # Errors
/// Fails like [`check`], or if the kernel is a real-time kernel in which packets of one CPU interrupt each other.
pub fn check_to_steer() -> anyhow::Result<()> {
    check()?;
    let build = fs::read_to_string("/proc/sys/kernel/version").context("reading the kernel's build")?;
    check_preemption(&kernel()?, &build)
}

/// Whether this process is outside of the machine's first user namespace, so that its capabilities are limited.
pub(super) fn in_user_namespace() -> bool {
    /// The value of `PROC_USER_INIT_INO` in `linux/proc_ns.h`.
    const FIRST: u64 = 0xefff_fffd;
    fs::metadata("/proc/self/ns/user").is_ok_and(|namespace| namespace.ino() != FIRST)
}

/// The version of the running kernel, as `uname -r` prints it.
///
/// # Errors
/// Fails if `/proc` is not mounted.
pub fn kernel() -> anyhow::Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("reading the kernel's version")?;
    Ok(release.trim().to_owned())
}

fn check_kernel(release: &str) -> anyhow::Result<()> {
    if version(release)? < KERNEL {
        bail!("Linux {release} is too old: Linux {}.{} or newer is needed", KERNEL.0, KERNEL.1);
    }
    Ok(())
}

fn check_preemption(release: &str, build: &str) -> anyhow::Result<()> {
    let is_real_time = build.split_whitespace().any(|word| word == "PREEMPT_RT");
    if is_real_time && version(release)? >= PREEMPTS {
        bail!(
            "Linux {release} is a real-time kernel (PREEMPT_RT), in which packets of one CPU interrupt each other, so the \
             program would mix their data: boot a kernel without PREEMPT_RT"
        );
    }
    Ok(())
}

fn version(release: &str) -> anyhow::Result<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => bail!("kernel version {release:?} is not of the form MAJOR.MINOR"),
    }
}

fn check_capabilities(status: &str) -> anyhow::Result<()> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|value| u64::from_str_radix(value.trim(), 16).ok())
        .context("/proc/self/status has no CapEff line: is /proc mounted?")?;
    let has = |number: u8| effective >> number & 1 == 1;
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|needed| !has(needed.number) && !needed.included_in.is_some_and(has))
        .map(|needed| needed.name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "missing capability {}: run as root or grant them (setcap {}+ep on the program, or AmbientCapabilities= in its unit)",
        missing.join(", "),
        missing.join(",").to_lowercase(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capabilities(effective: &str) -> Result<(), String> {
        check_capabilities(&format!("Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t{effective}\n"))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn when_a_capability_is_missing_then_the_error_names_it() {
        assert_eq!(capabilities("000001ffffffffff"), Ok(()));
        assert_eq!(
            capabilities("0000004000000000"),
            Err("missing capability CAP_BPF, CAP_NET_ADMIN: run as root or grant them (setcap cap_bpf,cap_net_admin+ep \
                 on the program, or AmbientCapabilities= in its unit)"
                .to_owned())
        );
        let nothing = capabilities("0000000000000000").unwrap_err();
        assert!(nothing.starts_with("missing capability CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON: "), "{nothing}");
        // The two bits are CAP_SYS_ADMIN and CAP_NET_ADMIN.
        assert_eq!(capabilities("0000000000201000"), Ok(()));
        assert!(check_capabilities("Name:\tx\n").is_err());
    }

    #[test]
    fn when_the_kernel_is_too_old_then_the_error_names_the_needed_version() {
        for good in ["6.1.0-13-amd64", "6.1.192", "6.18", "10.0-rc1"] {
            assert!(check_kernel(good).is_ok(), "{good}");
        }
        for bad in ["6.0.19", "5.18.0", "5.10.0-46-cloud-amd64", "4.19"] {
            let error = check_kernel(bad).unwrap_err().to_string();
            assert_eq!(error, format!("Linux {bad} is too old: Linux 6.1 or newer is needed"));
        }
        assert!(check_kernel("unknown").is_err());
    }
    #[test]
    fn when_packets_of_one_cpu_may_interrupt_each_other_then_the_kernel_is_refused() {
        let real_time = "#1 SMP PREEMPT_RT Debian 6.18.15-1";
        for release in ["6.18.15-rt-amd64", "7.3.4"] {
            let error = check_preemption(release, real_time).unwrap_err().to_string();
            assert!(error.starts_with(&format!("Linux {release} is a real-time kernel (PREEMPT_RT), ")), "{error}");
            assert!(check_preemption(release, "#1 SMP PREEMPT_DYNAMIC Debian 6.18.15-1").is_ok());
        }
        for release in ["6.1.0-57-rt-amd64", "6.17.13-rt-amd64"] {
            assert!(check_preemption(release, real_time).is_ok(), "{release}");
        }
    }
}
