//! Computes the consequences of a request on a copy, so that the owner continues to handle events.

use std::time::Instant;

use balancer_config::names::BackendName;
use balancer_control::{
    controller::{Controller, Precomputed},
    io::{Change, Refused},
    plan::{Plan, Planned},
};
use balancer_dataplane::{Dataplane, KnownClients};
use tokio::task::JoinError;

use super::{Owner, member::Place};
use crate::{call::ChangeRequest, host_state::Wanted, restorable::Restorable};

/// A request, and a copy of the state that it would change.
pub struct Proposing {
    change_request: ChangeRequest,
    state: Restorable,
    place: Place,
    /// The backend whose clients the request concerns, if there is one.
    clients: Option<(BackendName, KnownClients)>,
}

/// The consequences of a request.
#[derive(Debug)]
pub struct Proposal {
    /// The state that a restart would have to preserve.
    pub state: Restorable,
    /// The required state of this machine.
    pub wanted: Wanted,
    /// The precomputed tables and the number of known clients.
    pub precomputed: Precomputed,
}

impl Proposing {
    /// Computes the consequences, which takes as long as it takes to build the tables and scan the client table.
    ///
    /// # Errors
    /// If the change is refused.
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
        Ok(Proposal { state, wanted, precomputed })
    }
}

/// The number of clients known at a backend.
fn known_at(controller: &Controller, name: &BackendName, clients: &KnownClients) -> u64 {
    let ids: Vec<u16> = controller.parts(name).map(|backend| backend.id().0).collect();
    let mut known = 0;
    clients.for_each(|entry, _| known += u64::from(ids.contains(&entry.backend())));
    known
}

/// A change to be planned, and a copy of the state that it would change.
pub struct Planning {
    controller: Controller,
    change: Change,
    now: Instant,
    place: Place,
    withdrawn: bool,
    clients: Option<KnownClients>,
}

/// A plan whose known clients are not counted yet.
pub struct Draft {
    plan: Plan,
    clients: Option<KnownClients>,
}

impl Planning {
    /// Computes the plan and, if this balancer decides, the required state of this machine.
    ///
    /// # Errors
    /// If the change would be refused.
    pub fn draft(self) -> Result<(Draft, Option<Wanted>), Refused> {
        let Self { controller, change, now, place, withdrawn, clients } = self;
        let (plan, after) = controller.plan_with_limits(change, now)?;
        let wanted = (!controller.is_follower()).then(|| place.wanted(&after, withdrawn));
        Ok((Draft { plan, clients }, wanted))
    }
}

impl Draft {
    /// Counts known clients by scanning the whole client table, which takes milliseconds.
    #[must_use]
    pub fn count(self) -> Planned {
        let planned = self.plan.counted(|count| {
            if let Some(clients) = self.clients {
                clients.for_each(count);
            }
        });
        planned.joined()
    }
}

/// The answer if the computing thread ended early.
pub fn not_worked_out(error: JoinError) -> Refused {
    Refused::Conflict(format!("nothing was changed: working it out failed: {error}"))
}

impl<D: Dataplane> Owner<D> {
    /// Starts to compute what a restart would have to preserve after a change, and the required state of this machine.
    ///
    /// # Errors
    /// If the configuration has another generation.
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

    /// Starts to compute which slots and clients a change would move.
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
