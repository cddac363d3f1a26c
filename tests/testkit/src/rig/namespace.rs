//! The network namespace of a rig.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::sched::{CloneFlags, unshare};

/// The commands for `ip -batch`.
const SETUP: &str = "
link set lo up
link add in0 address 02:00:00:00:00:01 type veth peer name in1 address 02:00:00:00:00:09
link add out0 address 02:00:00:00:00:02 type veth peer name out1
link set in0 up
link set in1 up
link set out0 mtu 1300
link set out0 up
link set out1 up
addr add 10.0.0.1/24 dev in0
addr add fd00::1/64 dev in0 nodad
addr add 203.0.113.1/24 dev in0
neigh add 10.0.0.254 lladdr 02:00:00:00:00:09 dev in0 nud permanent
neigh add fd00::fe lladdr 02:00:00:00:00:09 dev in0 nud permanent
neigh add 203.0.113.7 lladdr 02:00:00:00:00:09 dev in0 nud permanent
route add 10.0.0.0/8 via 10.0.0.254
route add unreachable 192.0.2.128/25
route add 2001:db8:c::/48 via fd00::fe
route add 2001:db8:c::66/128 dev in0
addr add 10.0.1.1/24 dev out0
addr add fd01::1/64 dev out0 nodad
neigh add 10.0.1.254 lladdr 02:00:00:00:00:08 dev out0 nud permanent
neigh add fd01::fe lladdr 02:00:00:00:00:08 dev out0 nud permanent
route add 203.0.114.0/24 via 10.0.1.254
route add 2001:db8:d::/48 via fd01::fe
";

/// Moves the thread into a new namespace with the links, addresses and routes that [`Rig::new`](super::Rig::new)
/// describes. Returns the indexes of the two interfaces.
///
/// # Errors
/// Fails if the process is not root, or if the kernel returns an error.
pub fn enter_namespace() -> anyhow::Result<(u32, u32)> {
    if !nix::unistd::geteuid().is_root() {
        bail!("this test needs root: it loads the program into the kernel");
    }
    unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().context("ip -batch")?;
    ip.stdin.take().context("the input of ip")?.write_all(SETUP.trim_start().as_bytes()).context("ip -batch")?;
    let status = ip.wait().context("ip -batch")?;
    anyhow::ensure!(status.success(), "the links and routes of the namespace: ip: {status}");
    for family in ["ipv4", "ipv6"] {
        // At this path, a thread sees the settings of its own network namespace.
        let path = format!("/proc/sys/net/{family}/conf/all/forwarding");
        std::fs::write(&path, "1").with_context(|| path.clone())?;
    }
    await_carrier("in0")?;
    await_carrier("out0")?;
    Ok((nix::net::if_::if_nametoindex("in0")?, nix::net::if_::if_nametoindex("out0")?))
}

/// Waits until the kernel has noticed the carrier of an interface, because the kernel uses no routes over an interface
/// without a carrier.
fn await_carrier(interface: &str) -> anyhow::Result<()> {
    for _ in 0..500 {
        let shown = Command::new("ip").args(["-oneline", "link", "show", interface]).output()?;
        if String::from_utf8_lossy(&shown.stdout).contains("state UP") {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("{interface} has no carrier after five seconds")
}
