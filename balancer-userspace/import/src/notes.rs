//! Collects the results of a conversion: services, and notes about directives that did not become settings.

use std::net::IpAddr;

use crate::{
    dialect::Dialect,
    place::Place,
    service::{Listener, Service},
};

/// The note about a header with the client's address.
pub(crate) const NO_HEADER: &str =
    "no header is added; with nat, the connection comes from the client's own address, which the backends can take";

/// The note about a proxy that takes the clients' addresses from another proxy.
pub(crate) const BEHIND_A_PROXY: &str = "clients come through another proxy, which tells their addresses; this balancer knows clients by the addresses of packets, so all clients of that proxy would be one client; let clients connect to this balancer directly";

const MOST_MULTIPLIED: usize = 65_534;

/// What a note asks of the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// The operator has to convert the directive by hand.
    NeedsYou,
    /// The balancer does not need the directive, and the note says why.
    Remark,
    /// The directive concerns only the other program itself.
    Own,
}

/// What becomes of a directive that has no counterpart.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    /// The directive concerns only the other program itself.
    Own,
    /// The balancer does not need the directive, for this reason.
    NotNeeded(&'static str),
    /// The operator has to convert the directive by hand, for this reason.
    NeedsYou(&'static str),
}

/// A note about a directive that did not become a setting of a service.
#[derive(Clone, Debug)]
pub(crate) struct Note {
    pub(crate) place: Place,
    pub(crate) directive: String,
    pub(crate) why: String,
    pub(crate) kind: Kind,
}

/// The result of a conversion: services, and notes about directives that could not be converted.
#[derive(Debug, Default)]
pub struct Conversion {
    pub(crate) services: Vec<Service>,
    /// The services that have no address to listen on yet.
    pub(crate) waiting: Vec<Service>,
    pub(crate) notes: Vec<Note>,
    pub(crate) dialect: Option<Dialect>,
    pub(crate) of_proxy: bool,
    /// The interfaces of this machine that the result names; empty if they are not known.
    pub(crate) interfaces: Vec<String>,
    /// The machine's addresses, which replace listeners on every address.
    addresses: Vec<IpAddr>,
    /// Whether the text contains a directive that could have become a service.
    pub(crate) has_candidates: bool,
    /// The number of servers so far from lines that define several servers each.
    multiplied: usize,
}

impl Conversion {
    pub(crate) fn new(dialect: Dialect, addresses: &[IpAddr]) -> Self {
        let (of_proxy, addresses) = (dialect.is_proxy(), addresses.to_vec());
        Self { dialect: Some(dialect), of_proxy, addresses, ..Self::default() }
    }

    /// Adds a note about a directive that the operator has to convert by hand.
    pub(crate) fn needs_you(&mut self, place: &Place, directive: impl Into<String>, why: impl Into<String>) {
        self.note(place, directive.into(), why.into(), Kind::NeedsYou);
    }

    /// Adds a note about a directive that the balancer does not need.
    pub(crate) fn not_needed(&mut self, place: &Place, directive: impl Into<String>, why: impl Into<String>) {
        self.note(place, directive.into(), why.into(), Kind::Remark);
    }

    /// Adds a note about a directive that concerns only the other program itself.
    pub(crate) fn own(&mut self, place: &Place, directive: impl Into<String>) {
        self.note(place, directive.into(), String::new(), Kind::Own);
    }

    /// Adds the note that an answer calls for.
    pub(crate) fn tell(&mut self, place: &Place, directive: String, answer: Answer) {
        match answer {
            Answer::Own => self.own(place, directive),
            Answer::NotNeeded(why) => self.not_needed(place, directive, why),
            Answer::NeedsYou(why) => self.needs_you(place, directive, why),
        }
    }

    fn note(&mut self, place: &Place, directive: String, why: String, kind: Kind) {
        self.notes.push(Note { place: place.clone(), directive, why, kind });
    }

    /// Returns the listeners that replace a listener on every address. If no addresses are known, the listener stays
    /// unchanged, and a note says so.
    pub(crate) fn named_addresses(&mut self, place: &Place, directive: &str, listener: Listener) -> Vec<Listener> {
        let is_v4 = listener.address.is_ipv4();
        let named: Vec<_> = self.addresses.iter().filter(|address| address.is_ipv4() == is_v4).collect();
        if named.is_empty() {
            let family = if is_v4 { "IPv4" } else { "IPv6" };
            let why = format!(
                "it listens on every address of this machine, and the balancer steers named ones; import again with \
                 --address ADDRESS, the {family} address that clients connect to"
            );
            self.needs_you(place, directive, why);
            return vec![listener];
        }
        named.into_iter().map(|&address| Listener { address, ..listener }).collect()
    }

    /// Whether a line that defines several servers may add this number of servers. The total number of servers from all
    /// such lines is limited.
    pub(crate) fn has_room_for(&mut self, servers: usize) -> bool {
        self.multiplied = self.multiplied.saturating_add(servers);
        self.multiplied < MOST_MULTIPLIED
    }

    pub(crate) fn add(&mut self, service: Service) {
        self.services.push(service);
    }

    pub(crate) fn for_you(&self) -> impl Iterator<Item = &Note> {
        self.notes.iter().filter(|note| note.kind == Kind::NeedsYou)
    }

    /// The number of directives that the operator has to convert by hand.
    #[must_use]
    pub fn need_you(&self) -> usize {
        self.for_you().count()
    }

    /// Returns the line *N services, M backends; K directives need you*.
    #[must_use]
    pub fn summary(&self) -> String {
        let counted = |number: usize, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
        let backends = self.services.iter().map(|service| service.backends.len()).sum();
        let (services, backends) = (counted(self.services.len(), "service"), counted(backends, "backend"));
        let need = if self.need_you() == 1 { "needs" } else { "need" };
        format!("{services}, {backends}; {} {need} you", counted(self.need_you(), "directive"))
    }
}
