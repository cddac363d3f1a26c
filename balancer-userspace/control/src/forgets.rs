//! The single rule that determines the clients which a service forgets at a change: plans use this rule to predict, and
//! the data path uses it to forget.

use std::time::Duration;

use balancer_common::clock::Clock;

use crate::io::ServiceSpec;

/// The known clients that a service forgets at a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgets {
    /// All clients, because their hashes have changed or the service was removed; the text is the reason. No table
    /// shows where these clients go afterwards.
    Everybody(&'static str),
    /// The clients whose last packet is older than the time for which this clock remembers clients. The lookup table
    /// determines where the forgotten clients go.
    Unseen(Clock),
    /// All clients, because the service no longer remembers clients. The lookup table determines where the forgotten
    /// clients go.
    NobodyIsKnown,
}

impl Forgets {
    /// Whether the service forgets a client whose last packet is this long ago.
    #[must_use]
    pub fn includes(&self, seen: Duration) -> bool {
        match self {
            Self::Everybody(_) | Self::NobodyIsKnown => true,
            Self::Unseen(clock) => seen.as_secs() / u64::from(clock.tick_seconds) > u64::from(clock.remember),
        }
    }

    /// Whether the live table determines where the forgotten clients go.
    #[must_use]
    pub const fn table_says_where(&self) -> bool {
        match self {
            Self::Everybody(_) => false,
            Self::Unseen(_) | Self::NobodyIsKnown => true,
        }
    }

    /// The reason why the service forgets clients, in a few words.
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
    /// The clock of the service's client memory; `None` if the service has no memory.
    #[must_use]
    pub fn clock(&self) -> Option<Clock> {
        let seconds = u32::try_from(self.remember.as_secs()).unwrap_or(u32::MAX);
        (seconds > 0).then(|| match self.tick_seconds {
            0 => Clock::new(seconds),
            tick_seconds => Clock::with_ticks(seconds, tick_seconds),
        })
    }

    /// The clients that this service forgets when `next` replaces it; if `next` is `None`, the service is removed.
    #[must_use]
    pub fn forgets(&self, next: Option<&Self>) -> Option<Forgets> {
        // A service without memory has no known clients.
        self.clock()?;
        let Some(next) = next else { return Some(Forgets::Everybody("the service is removed")) };
        // The pattern names every field, so that the compiler reports a new field that is missing here. The client
        // table stores a client's hash, the client's backend and a time.
        let Self {
            id: _,
            hash_key,
            family,
            // All listeners of a service share one entry for each client.
            listeners: _,
            client_prefix,
            forwarding: _,
            remember,
            tick_seconds: _,
            failback: _,
            rules: _,
            reject: _,
            flows: _,
            // The balancer records an address from a QUIC connection ID in the same way as the source address of a
            // packet.
            quic: _,
            // A client that the program no longer steers stays known until the program steers it again.
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
