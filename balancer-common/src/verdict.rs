//! What can become of a packet, and the counters that say so: index and metric label in one enum each.

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
        /// Sent back out of the interface it came in by.
        Tx = "tx",
        /// Sent out of another interface.
        Redirect = "redirect",
        /// Handed to the kernel unchanged.
        Pass = "pass",
        /// Dropped; [`DropReason`] says why.
        Drop = "drop",
        /// The program failed. Never counted on purpose.
        Aborted = "aborted",
        /// Handed to the kernel to be sent: its neighbour is still to be resolved, or its interface takes no frames from
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
        /// A later fragment whose service cannot be told.
        FragmentUnknown = "fragment_unknown",
        /// TTL or hop limit used up in a routed mode.
        TtlExceeded = "ttl_exceeded",
        /// The backend's link-layer address or egress interface is not known.
        NoNextHop = "no_next_hop",
        /// A reply of a `nat` backend whose client's route forbids it, or forwarding is off on the interface.
        NoRoute = "no_route",
        /// A reply of a `nat` backend whose client's neighbour has not answered for seconds.
        NoNeighbour = "no_neighbour",
        /// Too big for its way, and its sender cannot be told: it allows fragmentation, is an ICMP error itself, has no
        /// single sender, or too many are told at once.
        TooBig = "too_big",
        /// The driver leaves no room in front of the frame for an outer header.
        NoHeadroom = "no_headroom",
        /// A rule denies the client.
        Denied = "denied",
        /// A reply of a `nat` backend that came in by another interface than the one that its next hop is on.
        WrongInterface = "wrong_interface",
        /// For a service, from an address that no client can have: loopback, multicast, unspecified, broadcast, a VIP.
        Martian = "martian",
        /// An echo request to a VIP, of which too many came at once.
        EchoLimited = "echo_limited",
        /// A reset by which a `nat` backend refuses a connection, while that backend is checked.
        Withheld = "withheld",
        /// To a `snat` service, of no connection that is known, and it opens none.
        FlowUnknown = "flow_unknown",
        /// It would open a connection of a `snat` service, and all addresses and ports of its pool are taken for the backend.
        NoPort = "no_port",
        /// It would open a connection of a `snat` service, and the table of connections is full.
        FlowTableFull = "flow_table_full",
    }
}

labelled! {
    /// What says that a backend may have failed, as counted in `balancer_signals_total`.
    Signal {
        /// It refuses a connection with a reset.
        Refused = "refused",
        /// It, or a router on the way to it, says that it cannot be reached.
        Unreachable = "unreachable",
        /// Clients do not go on with connections that they have begun.
        Unanswered = "unanswered",
        /// Another member of the fleet finds that it fails.
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
        /// A client not known before.
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
        /// Its backend failed.
        Down = "down",
        /// Its backend's drain deadline passed.
        Drain = "drain",
        /// Its backend went into maintenance.
        Maint = "maint",
        /// Its backend was removed.
        Removed = "removed",
        /// Its home backend came back.
        Failback = "failback",
        /// A rule sends it elsewhere.
        Rule = "rule",
        /// It was forgotten on request.
        Forgotten = "forgotten",
    }
}

/// Counters by [`MoveCause`].
pub const MOVE_COUNTERS: usize = MoveCause::COUNT;

/// A [`MoveCause`] as the kernel program carries it: the bare index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CauseIndex(pub u8);

impl CauseIndex {
    /// The position of its counter.
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

/// Room for counters by [`DropReason`]: a power of two.
pub const DROP_COUNTERS: usize = 32;

/// A [`DropReason`] as the kernel program carries it: the bare index, which it masks right before it counts.
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

/// A [`Decision`] that may not have been made, as the kernel program carries it: the index counted from 1, or 0.
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
