//! A veth pair: frames enter at its far end, leave at its near end, and return.

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
/// The time limit for frames on their way.
const PATIENCE: Duration = Duration::from_secs(1);

/// A veth pair whose ends have the same name.
pub(super) struct Wire {
    name: String,
    /// The far end.
    pub(super) far_index: u32,
    /// The near end.
    pub(super) near_index: u32,
    /// Programs at the ends.
    _attached: Vec<OwnedFd>,
}

impl Wire {
    /// Creates the pair. Its far end drops and counts frames.
    pub(super) fn new(far: &Namespace, near: &Namespace, name: &str) -> Result<Self> {
        for namespace in [far, near] {
            // Only the benchmark's packets may be counted.
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

    /// Attaches a program at the near end.
    pub(super) fn attach(mut self, near: &Namespace, program: BorrowedFd<'_>) -> Result<Self> {
        let attached = near.run_in_thread(|| attach(program, &self.name, Hook::Native))?;
        let attached = attached.with_context(|| format!("attaching to the near end of {}", self.name))?;
        self._attached.push(attached);
        Ok(self)
    }

    /// The number of frames that have arrived at the far end; must be called in its namespace.
    pub(super) fn received(&self) -> Result<u64> {
        let table = fs::read_to_string("/proc/thread-self/net/dev")?;
        received_in(&table, &self.name).with_context(|| format!("the kernel counts no frames of {}", self.name))
    }

    /// Waits until this number of frames has arrived, or no more arrive. Returns the number.
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

/// Returns the number of packets that an interface has received, by a table such as `/proc/net/dev`.
fn received_in(table: &str, interface: &str) -> Option<u64> {
    let rows = table.lines().filter_map(|line| line.split_once(':'));
    let (_, figures) = rows.into_iter().find(|(name, _)| name.trim() == interface)?;
    // The number of bytes comes first.
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
