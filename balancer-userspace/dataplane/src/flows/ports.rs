//! Ports of this machine that the kernel does not assign to the machine's own sockets.

use std::fs;

use anyhow::Context as _;

const LOCAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// The lowest port of a pool; the ports below are reserved for servers.
const LOWEST: u16 = 10_240;
/// The smallest useful number of ports in a pool.
const FEWEST: u16 = 1024;

/// The longer of the two port ranges that the kernel does not assign to its own sockets.
///
/// # Errors
/// Fails if the kernel assigns nearly all ports to sockets.
pub(super) fn not_given_by_the_kernel() -> anyhow::Result<(u16, u16)> {
    let text = fs::read_to_string(LOCAL).with_context(|| format!("reading {LOCAL}"))?;
    let (first, last) = local(&text).with_context(|| format!("{LOCAL} says {text:?}"))?;
    beside(first, last).with_context(|| {
        format!(
            "the kernel gives its own sockets the ports {first} to {last} ({LOCAL}), which leaves too few for snat; give \
             snat = {{ ports = \"…\" }}, or make that range smaller"
        )
    })
}

fn local(text: &str) -> Option<(u16, u16)> {
    let mut numbers = text.split_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn beside(first: u16, last: u16) -> Option<(u16, u16)> {
    let below = (first > LOWEST).then(|| (LOWEST, first - 1));
    let above = (last < u16::MAX).then(|| (last.max(LOWEST - 1) + 1, u16::MAX));
    let length = |&(first, last): &(u16, u16)| last - first;
    below.into_iter().chain(above).filter(|range| length(range) >= FEWEST).max_by_key(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_the_kernel_gives_ports_to_its_sockets_then_the_longer_rest_is_a_pool() {
        assert_eq!(local("32768\t60999\n"), Some((32_768, 60_999)));
        for ((first, last), rest) in [
            ((32_768, 60_999), Some((10_240, 32_767))),
            ((1024, 30_000), Some((30_001, 65_535))),
            ((1024, 65_535), None),
            ((11_000, 65_000), None),
            ((1, 5000), Some((10_240, 65_535))),
        ] {
            assert_eq!(beside(first, last), rest, "{first} to {last}");
        }
    }
}
