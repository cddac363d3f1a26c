//! The rules by which other balancers choose a server.

pub mod haproxy;
pub mod nginx;

#[cfg(test)]
pub(crate) mod measured;

/// A server, with the properties that matter to these rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The weight of the server in the configuration.
    pub weight: u32,
    /// Whether the server takes clients.
    pub up: bool,
}

impl Peer {
    /// A server that takes clients and has the default weight.
    pub const UP: Self = Self { weight: 1, up: true };
}

/// The weights divided by their greatest common divisor.
pub(crate) fn reduced(weights: impl Iterator<Item = u32> + Clone) -> impl Iterator<Item = u32> {
    let divisor = weights.clone().fold(0, gcd).max(1);
    weights.map(move |weight| weight / divisor)
}

const fn gcd(mut one: u32, mut other: u32) -> u32 {
    while other != 0 {
        (one, other) = (other, one % other);
    }
    one
}
