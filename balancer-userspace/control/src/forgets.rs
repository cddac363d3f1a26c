//! Which clients a change of a service forgets: the single rule that plans predict and the data path carries out.

use std::time::Duration;

use balancer_common::clock::Clock;

use crate::io::ServiceSpec;

/// The known clients that a service forgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgets {
    /// All clients, because hashing has changed or the service was removed; with the reason. It is unknown where these
    /// clients go.
    Everybody(&'static str),
    /// Clients not seen for longer than this clock remembers. The lookup table determines where these clients go.
    Unseen(Clock),
    /// All clients, because the service no longer remembers any. The lookup table determines where these clients go.
    NobodyIsKnown,
}

impl Forgets {
    /// Whether a client last seen this long ago is forgotten.
    #[must_use]
    pub fn includes(&self, seen: Duration) -> bool {
        match self {
            Self::Everybody(_) | Self::NobodyIsKnown => true,
            Self::Unseen(clock) => seen.as_secs() / u64::from(clock.tick_seconds) > u64::from(clock.remember),
        }
    }

    /// Whether the live table determines where forgotten clients go.
    #[must_use]
    pub const fn table_says_where(&self) -> bool {
        match self {
            Self::Everybody(_) => false,
            Self::Unseen(_) | Self::NobodyIsKnown => true,
        }
    }

    /// The reason for forgetting in a few words.
    #[must_use]
    pub const fn why(&self) -> &'static str {
        match self {
            Self::Everybody(why) => why,
            Self::Unseen(_) => "remember is shorter",
            Self::NobodyIsKnown => "remember = \"0s\"",
        }
    }
}

impl ServiceSpec {
    /// The clock of the service's memory; `None` if the service has no memory.
    #[must_use]
    pub fn clock(&self) -> Option<Clock> {
        let seconds = u32::try_from(self.remember.as_secs()).unwrap_or(u32::MAX);
        (seconds > 0).then(|| match self.tick_seconds {
            0 => Clock::new(seconds),
            tick_seconds => Clock::with_ticks(seconds, tick_seconds),
        })
    }

    /// The clients that are forgotten when `next` replaces this service; if `next` is `None`, the service is removed.
    #[must_use]
    pub fn forgets(&self, next: Option<&Self>) -> Option<Forgets> {
        // Without memory there are no known clients.
        self.clock()?;
        let Some(next) = next else { return Some(Forgets::Everybody("the service is removed")) };
        // The pattern names every field, so that a new field cannot be overlooked: a client is known by a hash, at a
        // backend, for a time.
        let Self {
            id: _,
            hash_key,
            family,
            // All listeners of a service share a client's entry.
            listeners: _,
            client_prefix,
            forwarding: _,
            remember,
            tick_seconds: _,
            failback: _,
            rules: _,
            reject: _,
            flows: _,
            // The balancer records an address that it learns from a connection ID like one that it learns from a
            // packet.
            quic: _,
            // A client that is no longer steered stays known until it is steered again.
            share: _,
            local: _,
            backends: _,
        } = next;
        let Some(clock) = next.clock() else { return Some(Forgets::NobodyIsKnown) };
        if *family != self.family {
            Some(Forgets::Everybody("the address is of the other family"))
        } else if *client_prefix != self.client_prefix {
            Some(Forgets::Everybody("client_prefix is another"))
        } else if *hash_key != self.hash_key {
            Some(Forgets::Everybody("it is hashed under another name"))
        } else {
            (*remember < self.remember).then_some(Forgets::Unseen(clock))
        }
    }
}
