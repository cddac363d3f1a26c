//! The possible outcomes of a packet. Each kind is one enum that defines counter indices and metric labels.

/// Declares a field-less enum with its counter index and its metric label.
macro_rules! labelled {
    ($(#[$outer:meta])* $name:ident { $($(#[$inner:meta])* $variant:ident = $label:literal,)+ }) => {
        $(#[$outer])*
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
        pub enum $name { $($(#[$inner])* #[cfg_attr(feature = "user", serde(rename = $label))] $variant,)+ }

        impl $name {
            /// Every variant, in the order of the counter index.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The number of variants, which is the number of counters.
            pub const COUNT: usize = Self::ALL.len();

            /// The label in metrics and JSON.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }

            /// The position in an array of counters.
            #[inline(always)]
            #[must_use]
            pub const fn index(self) -> usize {
                self as usize
            }
        }
    };
}

labelled! {
    /// The XDP action taken, as counted in `balancer_packets_seen_total`.
    Verdict {
        /// Sent back by the interface on which the packet arrived.
        Tx = "tx",
        /// Sent out of another interface.
        Redirect = "redirect",
        /// Handed to the kernel unchanged.
        Pass = "pass",
        /// Dropped; [`DropReason`] says why.
        Drop = "drop",
        /// The program failed. Never counted on purpose.
        Aborted = "aborted",
        /// Handed to the kernel for sending: the neighbour is not resolved yet, or the interface accepts no frames from
        /// XDP.
        Handed = "handed",
        /// Passed to this machine, which is the backend.
        Local = "local",
    }
}

labelled! {
    /// Why a packet was dropped, as counted in `balancer_drops_total`.
    DropReason {
        /// Shorter than its headers say, or headers that contradict themselves.
        Malformed = "malformed",
        /// The service has no backend configured.
        NoBackend = "no_backend",
        /// Every backend is down and the service says `when_all_down = "drop"`, or every backend is in maintenance.
        AllDown = "all_down",
        /// A later fragment that cannot be matched to a service.
        FragmentUnknown = "fragment_unknown",
        /// TTL or hop limit exhausted in a routed mode.
        TtlExceeded = "ttl_exceeded",
        /// The backend's link-layer address or egress interface is unknown.
        NoNextHop = "no_next_hop",
        /// A reply of a `nat` backend: the route to its client forbids it, or forwarding is off on the interface.
        NoRoute = "no_route",
        /// A reply of a `nat` backend: the neighbour towards its client has not answered for seconds.
        NoNeighbour = "no_neighbour",
        /// Too big for its path, and its sender cannot be informed: it allows fragmentation, is itself an ICMP error,
        /// has no single sender, or too many senders were informed at once.
        TooBig = "too_big",
        /// The driver leaves no room in front of the frame for an outer header.
        NoHeadroom = "no_headroom",
        /// A rule denies the client.
        Denied = "denied",
        /// A reply of a `nat` backend that arrived by another interface than the one towards its next hop.
        WrongInterface = "wrong_interface",
        /// A packet for a service from an address that no client can have: loopback, multicast, unspecified, broadcast,
        /// a VIP.
        Martian = "martian",
        /// An echo request to a VIP, beyond the limit for such requests.
        EchoLimited = "echo_limited",
        /// A reset by which a `nat` backend refuses a connection while the backend is being checked.
        Withheld = "withheld",
        /// A packet for a `snat` service that belongs to no known connection and opens none.
        FlowUnknown = "flow_unknown",
        /// A packet that would open a connection of a `snat` service, but all addresses and ports of the pool are taken
        /// for the backend.
        NoPort = "no_port",
        /// A packet that would open a connection of a `snat` service, but the table of connections is full.
        FlowTableFull = "flow_table_full",
    }
}

labelled! {
    /// A sign that a backend may have failed, as counted in `balancer_signals_total`.
    Signal {
        /// The backend refuses a connection with a reset.
        Refused = "refused",
        /// The backend, or a router on the way, reports that it cannot be reached.
        Unreachable = "unreachable",
        /// Clients do not continue connections that they have begun.
        Unanswered = "unanswered",
        /// Another member of the fleet finds the backend failed.
        Member = "member",
    }
}

labelled! {
    /// How the backend of a new connection was chosen, as counted in `balancer_decisions_total`.
    Decision {
        /// A known client stayed where it was.
        Kept = "kept",
        /// A known client was steered elsewhere.
        Moved = "moved",
        /// A client that was not known before.
        New = "new",
        /// A rule named the backend.
        Pinned = "pinned",
        /// The lookup table alone decided: the service remembers nothing, or a rule spreads the client's connections.
        Stateless = "stateless",
    }
}

labelled! {
    /// Why a known client was moved, as counted in `balancer_moves_total`.
    MoveCause {
        /// The client's backend failed.
        Down = "down",
        /// The drain deadline of the client's backend passed.
        Drain = "drain",
        /// The client's backend went into maintenance.
        Maint = "maint",
        /// The client's backend was removed.
        Removed = "removed",
        /// The client's home backend came back.
        Failback = "failback",
        /// A rule steers the client elsewhere.
        Rule = "rule",
        /// The client was forgotten on request.
        Forgotten = "forgotten",
    }
}

/// Number of counters by [`MoveCause`].
pub const MOVE_COUNTERS: usize = MoveCause::COUNT;

/// A [`MoveCause`] as the kernel program carries it: the bare index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CauseIndex(pub u8);

impl CauseIndex {
    /// Index of the counter.
    #[inline(always)]
    #[must_use]
    pub const fn counter(self) -> usize {
        self.0 as usize
    }
}

impl From<MoveCause> for CauseIndex {
    fn from(cause: MoveCause) -> Self {
        Self(cause as u8)
    }
}

/// Number of counters by [`DropReason`]: a power of two.
pub const DROP_COUNTERS: usize = 32;

/// A [`DropReason`] as the kernel program carries it: the bare index, masked right before counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropIndex(pub u8);

impl DropIndex {
    /// A position below [`DROP_COUNTERS`].
    #[inline(always)]
    #[must_use]
    pub const fn counter(self) -> usize {
        self.0 as usize & (DROP_COUNTERS - 1)
    }
}

impl From<DropReason> for DropIndex {
    fn from(reason: DropReason) -> Self {
        Self(reason as u8)
    }
}

/// An optional [`Decision`] as the kernel program carries it: the index counted from 1, or 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecisionIndex(pub u8);

impl DecisionIndex {
    /// The packet opens no connection.
    pub const NONE: Self = Self(0);

    /// The position in an array of counters by [`Decision`].
    #[inline(always)]
    #[must_use]
    pub const fn counter(self) -> Option<usize> {
        let counter = (self.0 as usize).wrapping_sub(1);
        if counter < Decision::COUNT { Some(counter) } else { None }
    }
}

impl From<Option<Decision>> for DecisionIndex {
    #[inline(always)]
    fn from(decision: Option<Decision>) -> Self {
        match decision {
            Some(decision) => Self(decision as u8 + 1),
            None => Self::NONE,
        }
    }
}

const _: () = assert!(DropReason::COUNT <= DROP_COUNTERS && DROP_COUNTERS.is_power_of_two());
