//! What all dialects are converted to, before it is written.

use std::{
    error::Error,
    fmt::{self, Display, Formatter},
    net::IpAddr,
    rc::Rc,
};

use crate::Dialect;

/// A line of one of the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) line: usize,
    /// Named unless there is one file.
    pub(crate) file: Option<Rc<str>>,
}

impl Display for Place {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "line {}", self.line)?;
        if let Some(file) = &self.file {
            write!(f, " of {file}")?;
        }
        Ok(())
    }
}

/// The text is not a configuration that can be converted.
#[derive(Debug, PartialEq, Eq)]
pub struct NotUnderstood(String);

impl NotUnderstood {
    pub(crate) fn at(place: &Place, what: impl Display) -> Self {
        Self(format!("{place}: {what}"))
    }
}

impl Display for NotUnderstood {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for NotUnderstood {}

/// A directive that has no counterpart.
#[derive(Clone, Debug)]
pub(crate) struct Note {
    pub(crate) place: Place,
    pub(crate) directive: String,
    pub(crate) why: String,
    pub(crate) needs_you: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Listener {
    pub(crate) address: IpAddr,
    pub(crate) first: u16,
    pub(crate) last: u16,
    pub(crate) udp: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Forwarding {
    #[default]
    Nat,
    Dsr,
    Ipip,
    Gue,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum CheckKind {
    #[default]
    None,
    Tcp,
    Http {
        https: bool,
        method: Option<String>,
        path: Option<String>,
        host: Option<String>,
        status: Option<String>,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) kind: CheckKind,
    pub(crate) interval_ms: Option<u64>,
    pub(crate) fall: Option<u32>,
    pub(crate) rise: Option<u32>,
    pub(crate) port: Option<u16>,
}

#[derive(Clone, Debug)]
pub(crate) struct Backend {
    pub(crate) place: Place,
    pub(crate) name: String,
    pub(crate) address: IpAddr,
    pub(crate) port: Option<u16>,
    pub(crate) weight: Option<u32>,
    pub(crate) backup: bool,
    pub(crate) disabled: bool,
    pub(crate) checked: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) place: Place,
    pub(crate) name: String,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) forwarding: Forwarding,
    pub(crate) remember: Option<u64>,
    /// The lengths of a client's prefix, for IPv4 and IPv6.
    pub(crate) prefix: Option<(u8, u8)>,
    pub(crate) check: Option<Check>,
    pub(crate) backends: Vec<Backend>,
}

/// Services, and what could not be converted.
#[derive(Debug, Default)]
pub struct Conversion {
    pub(crate) services: Vec<Service>,
    pub(crate) notes: Vec<Note>,
}

impl Conversion {
    /// Names a directive that a person has to look at.
    pub(crate) fn needs_you(&mut self, place: &Place, directive: impl Into<String>, why: impl Into<String>) {
        let (directive, why) = (directive.into(), why.into());
        self.notes.push(Note { place: place.clone(), directive, why, needs_you: true });
    }

    /// Names a directive that the balancer does without.
    pub(crate) fn not_needed(&mut self, place: &Place, directive: impl Into<String>, why: impl Into<String>) {
        let (directive, why) = (directive.into(), why.into());
        self.notes.push(Note { place: place.clone(), directive, why, needs_you: false });
    }

    pub(crate) fn add(&mut self, service: Service) {
        self.services.push(service);
    }

    pub(crate) fn services(&self) -> &[Service] {
        &self.services
    }

    pub(crate) fn notes(&self) -> &[Note] {
        &self.notes
    }

    pub(crate) fn nothing(&self, dialect: Dialect) -> NotUnderstood {
        let notes = self.notes.iter().filter(|note| note.needs_you).take(5);
        let mut why: String = notes.map(|note| format!("; {}: {}: {}", note.place, note.directive, note.why)).collect();
        if why.is_empty() {
            why = "; it has no listener whose backends are given by address".to_owned();
        }
        NotUnderstood(format!("nothing in it can become a service, read as {dialect}{why}"))
    }

    /// The number of directives that a person has to look at.
    #[must_use]
    pub fn need_you(&self) -> usize {
        self.notes.iter().filter(|note| note.needs_you).count()
    }

    /// *N services, M backends; K directives need you*.
    #[must_use]
    pub fn summary(&self) -> String {
        let counted = |number: usize, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
        let backends = self.services.iter().map(|service| service.backends.len()).sum();
        let (services, backends) = (counted(self.services.len(), "service"), counted(backends, "backend"));
        let need = if self.need_you() == 1 { "needs" } else { "need" };
        format!("{services}, {backends}; {} {need} you", counted(self.need_you(), "directive"))
    }
}
