//! The possible outcomes of a packet in the kernel program. Each kind of outcome is one enum that defines counter
//! indices and metric labels.

/// Declares an enum without fields whose variants have a counter index and a metric label.
macro_rules! labelled {
    ($(#[$outer:meta])* $name:ident { $($(#[$inner:meta])* $variant:ident = $label:literal,)+ }) => {
        $(#[$outer])*
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
        pub enum $name { $($(#[$inner])* #[cfg_attr(feature = "user", serde(rename = $label))] $variant,)+ }

        impl $name {
            /// Every variant of the enum, in the order of the counter index.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The number of variants, which is the number of counters.
            pub const COUNT: usize = Self::ALL.len();

            /// The label of the variant in metrics and JSON.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }

            /// The position of the variant in an array of counters.
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
        /// The program sends the packet back out of the interface on which it arrived.
        Tx = "tx",
        /// The program sends the packet out of another interface than the one on which it arrived.
        Redirect = "redirect",
        /// The program hands the packet to the kernel unchanged.
        Pass = "pass",
        /// The program drops the packet; [`DropReason`] says why.
        Drop = "drop",
        /// The program failed to process the packet. The program never counts this verdict intentionally.
        Aborted = "aborted",
        /// The program hands the packet to the kernel for sending: the neighbour is not resolved yet, or the interface
        /// accepts no frames from XDP.
        Handed = "handed",
        /// The program passes the packet to this machine, which is the backend.
        Local = "local",
    }
}

labelled! {
    /// Why the program dropped a packet, as counted in `balancer_drops_total`.
    DropReason {
        /// The packet is shorter than its headers say, or its headers contradict each other.
        Malformed = "malformed",
        /// The configuration of the service has no backend.
        NoBackend = "no_backend",
        /// Every backend of the service is down and the service has the setting `when_all_down = "drop"`, or every
        /// backend is in maintenance.
        AllDown = "all_down",
        /// The packet is a later fragment that the program cannot match to a service.
        FragmentUnknown = "fragment_unknown",
        /// The TTL or hop limit of the packet is exhausted in a routed mode.
        TtlExceeded = "ttl_exceeded",
        /// The backend's link-layer address or egress interface is unknown.
        NoNextHop = "no_next_hop",
        /// The packet is a reply of a `nat` backend: the route to the client forbids the packet, or forwarding is off
        /// on the interface.
        NoRoute = "no_route",
        /// The packet is a reply of a `nat` backend: the neighbour towards the client has not answered for seconds.
        NoNeighbour = "no_neighbour",
        /// The packet is too big for its path, and the program cannot inform the sender: the packet allows
        /// fragmentation, is itself an ICMP error or has no single sender, or the program informed too many senders at
        /// once.
        TooBig = "too_big",
        /// The driver leaves no room for an outer header in front of the frame.
        NoHeadroom = "no_headroom",
        /// A rule denies packets of the client.
        Denied = "denied",
        /// The packet is a reply of a `nat` or `snat` backend that did not arrive by the interface of the backend's
        /// next hop.
        WrongInterface = "wrong_interface",
        /// The packet is for a service, and its source is an address that no client can have: loopback, multicast,
        /// unspecified, broadcast, a VIP.
        Martian = "martian",
        /// The packet is an echo request to a VIP beyond the limit for echo requests.
        EchoLimited = "echo_limited",
        /// The packet is a reset by which a `nat` backend refuses a connection while the controller is checking this
        /// backend.
        Withheld = "withheld",
        /// The packet is for a `snat` service, belongs to no known connection and opens no connection.
        FlowUnknown = "flow_unknown",
        /// The packet would open a connection of a `snat` service, but all addresses and ports of the pool are taken
        /// for the backend.
        NoPort = "no_port",
        /// The packet would open a connection of a `snat` service, but the table of connections is full.
        FlowTableFull = "flow_table_full",
    }
}

labelled! {
    /// A sign that a backend may have failed, as counted in `balancer_signals_total`.
    Signal {
        /// The backend refuses a connection with a reset.
        Refused = "refused",
        /// The backend, or a router on the path to it, reports that the backend cannot be reached.
        Unreachable = "unreachable",
        /// Clients do not continue connections that they have begun.
        Unanswered = "unanswered",
        /// Another member of the fleet finds the backend failed.
        Member = "member",
    }
}

labelled! {
    /// How the program chose the backend of a new connection, as counted in `balancer_decisions_total`.
    Decision {
        /// A known client stayed at its backend.
        Kept = "kept",
        /// The program steered a known client to another backend than before.
        Moved = "moved",
        /// The client was not known before this connection.
        New = "new",
        /// A rule named the backend for the client.
        Pinned = "pinned",
        /// The lookup table alone determined the backend: the service remembers no clients, or a rule spreads the
        /// client's connections.
        Stateless = "stateless",
    }
}

labelled! {
    /// Why the program moved a known client, as counted in `balancer_moves_total`.
    MoveCause {
        /// The backend of the client failed.
        Down = "down",
        /// The drain deadline of the client's backend passed.
        Drain = "drain",
        /// The client's backend went into maintenance.
        Maint = "maint",
        /// The client's backend was removed.
        Removed = "removed",
        /// The client's home backend works again.
        Failback = "failback",
        /// A rule steers the client to another backend.
        Rule = "rule",
        /// A user made the balancer forget the client.
        Forgotten = "forgotten",
    }
}

/// The number of counters for variants of [`MoveCause`].
pub const MOVE_COUNTERS: usize = MoveCause::COUNT;

/// A [`MoveCause`] as the kernel program stores it: only the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CauseIndex(pub u8);

impl CauseIndex {
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

/// The number of counters for variants of [`DropReason`], which is a power of two.
pub const DROP_COUNTERS: usize = 32;

/// A [`DropReason`] as the kernel program stores it: only the index, which the program masks immediately before it
/// counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropIndex(pub u8);

impl DropIndex {
    /// The index of the counter, below [`DROP_COUNTERS`].
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

/// An optional [`Decision`] as the kernel program stores it: the index counted from 1, or 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecisionIndex(pub u8);

impl DecisionIndex {
    /// The packet opens no connection.
    pub const NONE: Self = Self(0);

    /// The position in an array of counters for variants of [`Decision`].
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
