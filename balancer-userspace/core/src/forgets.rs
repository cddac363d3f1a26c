//! Whom a change of a service makes strangers: the one rule that plans predict and the data path carries out.

use std::time::Duration;

use balancer_common::clock::Clock;

use crate::io::ServiceSpec;

/// Which known clients of a service are forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgets {
    /// All of them, and nobody can say where they go: they are hashed otherwise, or their service is gone.
    Everybody(&'static str),
    /// Those that were not seen for longer than this clock remembers. Where they go the table says.
    Unseen(Clock),
    /// All of them, for nobody is remembered any more. Where they go the table says.
    NobodyIsKnown,
}

impl Forgets {
    /// Whether a client is forgotten that was seen so long ago.
    #[must_use]
    pub fn includes(&self, seen: Duration) -> bool {
        match self {
            Self::Everybody(_) | Self::NobodyIsKnown => true,
            Self::Unseen(clock) => seen.as_secs() / u64::from(clock.tick_seconds) > u64::from(clock.remember),
        }
    }

    /// Whether the live table says where they go.
    #[must_use]
    pub const fn table_says_where(&self) -> bool {
        match self {
            Self::Everybody(_) => false,
            Self::Unseen(_) | Self::NobodyIsKnown => true,
        }
    }

    /// Why, in a few words.
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
    /// The clock of its memory. `None`: it has none.
    #[must_use]
    pub fn clock(&self) -> Option<Clock> {
        let seconds = u32::try_from(self.remember.as_secs()).unwrap_or(u32::MAX);
        (seconds > 0).then(|| match self.tick_seconds {
            0 => Clock::new(seconds),
            tick_seconds => Clock::with_ticks(seconds, tick_seconds),
        })
    }

    /// Whom it forgets when `next` takes its place; `None` as `next`: it is removed.
    #[must_use]
    pub fn forgets(&self, next: Option<&Self>) -> Option<Forgets> {
        // Nobody is known.
        self.clock()?;
        let Some(next) = next else { return Some(Forgets::Everybody("the service is removed")) };
        // Each field has to be thought of: a client is known by a hash, at a backend, for a time.
        let Self {
            id: _,
            hash_key,
            family,
            // A client is the same by all of them.
            listeners: _,
            client_prefix,
            forwarding: _,
            remember,
            tick_seconds: _,
            failback: _,
            rules: _,
            reject: _,
            flows: _,
            // What a connection says of an address is remembered as what a packet says.
            quic: _,
            // A client that is not steered any more stays known, for when it is again.
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
