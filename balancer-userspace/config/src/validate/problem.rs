//! Problems in a list of services, and their words.

use std::{fmt, net::SocketAddr};

use crate::listeners::Listener;

/// The object of a problem in a list of services. Numbers count from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A service's name.
    Name(usize),
    /// A service's listener.
    Listener(usize, usize),
    /// A service's table size.
    TableSize(usize),
    /// The name of a service's backend.
    BackendName(usize, usize),
    /// The address of a service's backend.
    BackendAddress(usize, usize),
}

/// A problem in a list of services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The object.
    pub at: Place,
    /// The service's name.
    pub(super) service: String,
    pub(super) fault: Box<Fault>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// An object that is invalid by itself or in its context, or one too many.
    Invalid(String),
    /// A duplicate name.
    NameTaken { what: &'static str, name: String, first: Place },
    /// Two services with the same listener.
    ListenerTaken { listener: Listener, first: Place, by: String },
    /// Two overlapping port ranges of which neither is more specific.
    Overlapping { one: Listener, other: Listener, at: Place, by: String },
    /// Two objects of one kind hashed under the same name.
    HashedAlike(String),
    /// Two `nat` backends whose replies cannot be distinguished.
    Ambiguous { one: String, other: String, address: [SocketAddr; 2], listeners: [Listener; 2], at: Place },
}

impl Problem {
    /// Whether two existing objects contradict each other; otherwise one is invalid by itself.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        match *self.fault {
            Fault::Invalid(_) => false,
            Fault::NameTaken { .. }
            | Fault::ListenerTaken { .. }
            | Fault::Overlapping { .. }
            | Fault::HashedAlike(_)
            | Fault::Ambiguous { .. } => true,
        }
    }

    /// The problem and what would be right, in one line; `line` returns the line of an object in a file, if there is
    /// one.
    #[must_use]
    pub fn text(&self, line: impl Fn(Place) -> Option<usize>) -> String {
        match &*self.fault {
            Fault::Invalid(text) | Fault::HashedAlike(text) => text.clone(),
            Fault::NameTaken { what, name, first } => {
                let line = line(*first).map(|line| format!(" on line {line}")).unwrap_or_default();
                format!("the {what} name {name:?} is taken{line}; choose another")
            }
            Fault::ListenerTaken { listener, first, by } => {
                let service =
                    line(*first).map_or_else(|| format!("service {by}"), |line| format!("the service on line {line}"));
                let (protocol, place) = (listener.protocol, listener.place());
                format!("{protocol} {place} is {service} already; give another address, port or protocol")
            }
            Fault::Overlapping { one, other, at, by } => {
                let line = line(*at).map_or_else(|| format!(" of service {by}"), |line| format!(" on line {line}"));
                format!("{one} overlaps {other}{line}, and neither is within the other; give other ports")
            }
            Fault::Ambiguous { one, other, listeners: [first, second], .. } if one == other => format!(
                "nat could not tell the replies of {one} for {first} and {second} apart: they come from one address and port; \
                 leave the backend's port out, or give the listeners ports of their own with ports = {{ … }}"
            ),
            Fault::Ambiguous { one, other, address: [address, others], listeners: [listener, _], at } => {
                let line = line(*at).map(|line| format!(", line {line}")).unwrap_or_default();
                let protocol = listener.protocol;
                format!(
                    "nat could not tell the {protocol} replies of {one} ({address}) and {other} ({others}{line}) apart; give one of \
                     them another address or port"
                )
            }
        }
    }
}

/// Formats without lines.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let says_where = matches!(self.at, Place::Name(_) | Place::Listener(..));
        if !says_where && !matches!(*self.fault, Fault::Ambiguous { .. }) {
            write!(f, "service {}: ", self.service)?;
        }
        f.write_str(&self.text(|_| None))
    }
}
