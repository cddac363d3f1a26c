//! A veth pair for real frames. Frames enter at the far end, leave at the near end, and return to the far end.

use std::{
    fs,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use balancer_bench::asm::constant;
use balancer_testkit::{
    namespace::{Namespace, join},
    xdp::{Hook, attach},
};
use nix::net::if_::if_nametoindex;

const XDP_DROP: i32 = 1;
/// The time limit for frames on their way through the pair.
const PATIENCE: Duration = Duration::from_secs(1);

/// A veth pair; both ends have the same name.
pub(super) struct Wire {
    name: String,
    /// The interface index of the far end.
    pub(super) far_index: u32,
    /// The interface index of the near end.
    pub(super) near_index: u32,
    /// The programs that are attached to the ends of the pair.
    _attached: Vec<OwnedFd>,
}

impl Wire {
    /// Creates the veth pair. A program at the far end drops and counts frames.
    pub(super) fn new(far: &Namespace, near: &Namespace, name: &str) -> Result<Self> {
        for namespace in [far, near] {
            // Without IPv6, the kernel sends no packets of its own, so the benchmark counts only its own frames.
            namespace.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        }
        join((far, name), (near, name))?;
        let drop = constant(XDP_DROP).load_frags()?;
        let attached = far.run_in_thread(|| attach(drop.as_fd(), name, Hook::Native))?;
        let attached = attached.with_context(|| format!("attaching to the far end of {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            far_index: far.run_in_thread(|| if_nametoindex(name))??,
            near_index: near.run_in_thread(|| if_nametoindex(name))??,
            _attached: vec![attached],
        })
    }

    /// Attaches a program to the near end of the pair.
    pub(super) fn attach(mut self, near: &Namespace, program: BorrowedFd<'_>) -> Result<Self> {
        let attached = near.run_in_thread(|| attach(program, &self.name, Hook::Native))?;
        let attached = attached.with_context(|| format!("attaching to the near end of {}", self.name))?;
        self._attached.push(attached);
        Ok(self)
    }

    /// Returns the number of frames that have arrived at the far end. The caller must be in the far end's namespace.
    pub(super) fn received(&self) -> Result<u64> {
        let table = fs::read_to_string("/proc/thread-self/net/dev")?;
        received_in(&table, &self.name).with_context(|| format!("the kernel counts no frames of {}", self.name))
    }

    /// Waits until `count` frames have arrived at the far end, or until no more frames arrive. Returns the number of
    /// received frames.
    pub(super) fn wait_for(&self, count: u64) -> Result<u64> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let received = self.received()?;
            if received >= count || Instant::now() > deadline {
                return Ok(received);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Returns the number of packets that an interface has received according to a table such as `/proc/net/dev`.
fn received_in(table: &str, interface: &str) -> Option<u64> {
    let rows = table.lines().filter_map(|line| line.split_once(':'));
    let (_, figures) = rows.into_iter().find(|(name, _)| name.trim() == interface)?;
    // In the table, the number of received bytes precedes the number of received packets.
    figures.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::received_in;

    #[test]
    fn when_frames_pass_then_they_are_counted_by_interface() {
        let table = "Inter-|   Receive                                                |  Transmit\n \
                     face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets\n    \
                     lo:     336       4    0    0    0     0          0         0      336       4\n \
                     bare:144000000 2000000    0    0    0     0          0         0        0       0\n";
        assert_eq!(received_in(table, "bare"), Some(2_000_000));
        assert_eq!(received_in(table, "lo"), Some(4));
        assert_eq!(received_in(table, "balancer"), None);
    }
}
