//! Suggests the first possible cause to check if a service gets no packets.

use crate::snapshot::{BackendSnapshot, InterfaceSnapshot, ServiceSnapshot};

/// The state of the whole balancer that affects each of its services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Around {
    /// The names of the attached interfaces, and for each interface whether it has received frames.
    pub interfaces: Vec<(String, bool)>,
    /// Whether the operator has withdrawn the VIPs from this machine.
    pub withdrawn: bool,
}

impl Around {
    /// Returns the state of the whole balancer from a snapshot.
    #[must_use]
    pub fn of(interfaces: &[InterfaceSnapshot], withdrawn: bool) -> Self {
        let seen = |interface: &InterfaceSnapshot| interface.stats.verdicts.iter().any(|&count| count > 0);
        Self { interfaces: interfaces.iter().map(|of| (of.name.clone(), seen(of))).collect(), withdrawn }
    }
}

/// Returns the first cause that `balancer doctor` would check for a service that gets no packets.
#[must_use]
pub fn first_look(service: &ServiceSnapshot, around: &Around) -> String {
    let name = &service.name;
    let what = if around.withdrawn {
        "the VIPs are withdrawn (balancer announce)".to_owned()
    } else if around.interfaces.is_empty() {
        "the program is on no interface".to_owned()
    } else if service.backends.is_empty() {
        format!("it has no backends (balancer backend add {name}/NAME ADDRESS)")
    } else if !service.backends.iter().any(|backend| backend.eligible && backend.effective_weight() > 0) {
        format!("no backend takes clients{}", service.backends.iter().find_map(reason).unwrap_or_default())
    } else {
        arrival(service, around)
    };
    format!("no packets over the last 10 s: {what}; balancer doctor {name}")
}

fn reason(backend: &BackendSnapshot) -> Option<String> {
    let BackendSnapshot { name, state, reason, .. } = backend;
    let why = if reason.is_empty() { state.word() } else { reason };
    Some(format!(" ({name}: {why})")).filter(|_| !why.is_empty())
}

/// Suggests a check whether packets arrive at this machine, if no other problem is known.
fn arrival(service: &ServiceSnapshot, around: &Around) -> String {
    let names = |wanted: bool| {
        let names = around.interfaces.iter().filter(|(_, seen)| *seen == wanted).map(|(name, _)| name.as_str());
        names.collect::<Vec<_>>().join(", ")
    };
    let place = service.listeners.first().map(|of| of.listener.place()).unwrap_or_default();
    match names(true) {
        some if some.is_empty() => format!("no frame has arrived by {}", names(false)),
        some => format!("frames arrive by {some}, but none for {place}: do routers send {place} to this machine?"),
    }
}
