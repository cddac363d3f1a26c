//! Problems in a list of services, and the messages about these problems.

use std::{fmt, net::SocketAddr};

use crate::listeners::Listener;

/// The object in a list of services that has a problem. All indices of services and their parts count from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// The object is a service's name.
    Name(usize),
    /// The object is a service's listener.
    Listener(usize, usize),
    /// The object is a service's table size.
    TableSize(usize),
    /// The object is the name of a service's backend.
    BackendName(usize, usize),
    /// The object is the address of a service's backend.
    BackendAddress(usize, usize),
}

/// A problem that the validation has found in a list of services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The object that has the problem.
    pub at: Place,
    /// The name of the object's service.
    pub(super) service: String,
    pub(super) fault: Box<Fault>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The object is invalid by itself or in its context, or it exceeds a maximum number.
    Invalid(String),
    /// The name of the object occurs more than once.
    NameTaken { what: &'static str, name: String, first: Place },
    /// Two services have the same listener.
    ListenerTaken { listener: Listener, first: Place, by: String },
    /// Two port ranges overlap, and neither of them is more specific.
    Overlapping { one: Listener, other: Listener, at: Place, by: String },
    /// Two objects of the same kind are hashed by the same name.
    HashedAlike(String),
    /// The replies of two `nat` backends cannot be distinguished.
    Ambiguous { one: String, other: String, address: [SocketAddr; 2], listeners: [Listener; 2], at: Place },
}

impl Problem {
    /// Whether the problem is that two existing objects contradict each other, and not that one object is invalid by
    /// itself.
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

    /// The objects that have the problem: one, or two that contradict each other.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        let other = match *self.fault {
            Fault::NameTaken { first: at, .. }
            | Fault::ListenerTaken { first: at, .. }
            | Fault::Overlapping { at, .. }
            | Fault::Ambiguous { at, .. } => Some(at),
            Fault::Invalid(_) | Fault::HashedAlike(_) => None,
        };
        [self.at].into_iter().chain(other)
    }

    /// The problem and its correction, in one line; `line` returns the line of an object in a file, if the object has a
    /// line.
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

/// Formats the problem without line numbers.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let says_where = matches!(self.at, Place::Name(_) | Place::Listener(..));
        if !says_where && !matches!(*self.fault, Fault::Ambiguous { .. }) {
            write!(f, "service {}: ", self.service)?;
        }
        f.write_str(&self.text(|_| None))
    }
}
