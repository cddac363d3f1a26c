//! Computes the consequences of a request on a copy of the state, so that the owner continues to handle events.

use std::time::Instant;

use balancer_config::names::BackendName;
use balancer_control::{
    controller::{Controller, Precomputed},
    io::{Change, Refused},
    plan::{Plan, Planned},
    room::Need,
};
use balancer_dataplane::{Dataplane, KnownClients};
use balancer_listeners::call::ChangeRequest;
use balancer_state::restorable::Restorable;
use tokio::task::JoinError;

use super::{Owner, member::Place};
use crate::host_state::WantedMachine;

/// A request, and a copy of the state that the request would change.
pub struct Proposing {
    change_request: ChangeRequest,
    state: Restorable,
    place: Place,
    /// The backend that the request concerns, with the known clients, if the result needs the backend's clients.
    clients: Option<(BackendName, KnownClients)>,
}

/// The consequences of a request.
#[derive(Debug)]
pub struct Proposal {
    /// The state that a restart after the change must preserve.
    pub state: Restorable,
    /// The state that this machine needs for the change.
    pub wanted: WantedMachine,
    /// The precomputed tables and the number of known clients.
    pub precomputed: Precomputed,
    /// The room that the change needs in the kernel's maps.
    pub need: Need,
}

impl Proposing {
    /// Computes the consequences of the request, which includes building the lookup tables and scanning the client
    /// table.
    ///
    /// # Errors
    /// Fails if the controller would refuse the change.
    pub fn finish(self) -> Result<Proposal, Refused> {
        let Self { change_request, mut state, place, clients } = self;
        let known_clients = clients.map(|(name, clients)| known_at(&state.controller, &name, &clients));
        let before = state.controller.services().clone();
        match change_request {
            ChangeRequest::Change(change) => {
                state.controller.change(change, state.clocks.now)?;
            }
            ChangeRequest::Reread(config) => {
                state.controller.change(Change::Reload(config), state.clocks.now)?;
            }
            ChangeRequest::Withdraw(withdrawn) => state.withdrawn = withdrawn,
        }
        let wanted = place.wanted(&state.controller, state.withdrawn);
        let precomputed = state.controller.precomputed_since(&before).with_known_clients(known_clients);
        let need = state.controller.need();
        Ok(Proposal { state, wanted, precomputed, need })
    }
}

/// The number of clients that are known at a backend.
fn known_at(controller: &Controller, name: &BackendName, clients: &KnownClients) -> u64 {
    let ids: Vec<u16> = controller.parts(name).map(|backend| backend.id().0).collect();
    let mut known = 0;
    clients.for_each(|entry, _| known += u64::from(ids.contains(&entry.backend())));
    known
}

/// A change to plan, and a copy of the state that the change would modify.
pub struct Planning {
    controller: Controller,
    change: Change,
    now: Instant,
    place: Place,
    withdrawn: bool,
    clients: Option<KnownClients>,
}

/// A plan without the numbers of known clients.
pub struct Draft {
    plan: Plan,
    clients: Option<KnownClients>,
}

impl Planning {
    /// Computes the plan and, if this balancer decides about changes, the state that this machine would need.
    ///
    /// # Errors
    /// Fails if the controller would refuse the change.
    pub fn draft(self) -> Result<(Draft, Option<WantedMachine>), Refused> {
        let Self { controller, change, now, place, withdrawn, clients } = self;
        let (plan, after) = controller.plan_with_limits(change, now)?;
        let wanted = (!controller.is_follower()).then(|| place.wanted(&after, withdrawn));
        Ok((Draft { plan, clients }, wanted))
    }
}

impl Draft {
    /// Adds the numbers of known clients, for which it scans the whole client table in a few milliseconds.
    #[must_use]
    pub fn count(self) -> Planned {
        let planned = self.plan.counted(|count| {
            if let Some(clients) = self.clients {
                clients.for_each_with_origin(count);
            }
        });
        planned.joined()
    }
}

/// The answer to a request if the computing thread has ended early.
pub fn not_worked_out(error: JoinError) -> Refused {
    Refused::Conflict(format!("nothing was changed: computing the change failed: {error}"))
}

impl<D: Dataplane> Owner<D> {
    /// Prepares to compute the state that a restart after a change must preserve, and the state that this machine needs
    /// for the change.
    ///
    /// # Errors
    /// Fails if the configuration does not have the required generation.
    pub fn propose(&mut self, change_request: ChangeRequest, if_generation: Option<u64>) -> Result<Proposing, Refused> {
        let generation = self.controller.generation();
        if if_generation.is_some_and(|wanted| wanted != generation) {
            return Err(Refused::Stale(generation));
        }
        let leaves = match &change_request {
            ChangeRequest::Change(Change::Remove { name, force: false }) => Some(name.clone()),
            ChangeRequest::Change(_) | ChangeRequest::Reread(_) | ChangeRequest::Withdraw(_) => None,
        };
        let clients = leaves.and_then(|name| Some((name, self.dataplane.known_clients()?)));
        Ok(Proposing { change_request, state: self.restorable(), place: self.place(), clients })
    }

    /// Prepares to compute the slots and clients that a change would move.
    pub fn plan(&mut self, change: Change) -> Planning {
        Planning {
            controller: self.controller.clone(),
            change,
            now: tokio::time::Instant::now().into_std(),
            place: self.place(),
            withdrawn: self.is_withdrawn(),
            clients: self.dataplane.known_clients(),
        }
    }
}
