//! The consequences of a wish, worked out on a copy, so that the owner goes on handling events.

use std::time::Instant;

use balancer_core::{
    controller::{Controller, Foresight},
    io::{Change, Refused},
    plan::{Plan, Planned},
};
use balancer_dataplane::{Dataplane, KnownClients};
use balancer_model::names::BackendName;
use tokio::task::JoinError;

use super::{Owner, member::Place};
use crate::{call::Wish, host_state::Wanted, restorable::Restorable};

/// A wish, and a copy of what it would change.
pub struct Proposing {
    wish: Wish,
    state: Restorable,
    place: Place,
    /// Where the wish is about clients of a backend.
    clients: Option<(BackendName, KnownClients)>,
}

/// The consequences of a wish.
#[derive(Debug)]
pub struct Proposal {
    /// The state that a restart would have to keep.
    pub state: Restorable,
    /// The state that this machine would have to be in.
    pub wanted: Wanted,
    /// The lookup tables that it takes, and known clients that it is about.
    pub foresight: Foresight,
}

impl Proposing {
    /// Works it out: as long as the tables take that it moves, and the look at the client table.
    ///
    /// # Errors
    /// When it is refused.
    pub fn finish(self) -> Result<Proposal, Refused> {
        let Self { wish, mut state, place, clients } = self;
        let known_clients = clients.map(|(name, clients)| known_at(&state.controller, &name, &clients));
        let before = state.controller.services().clone();
        match wish {
            Wish::Change(change) => {
                state.controller.change(change, state.clocks.now)?;
            }
            Wish::Reread(config) => {
                state.controller.change(Change::Reload(config), state.clocks.now)?;
            }
            Wish::Withdraw(withdrawn) => state.withdrawn = withdrawn,
        }
        let wanted = place.wanted(&state.controller, state.withdrawn);
        let foresight = state.controller.foresight_since(&before).with_known_clients(known_clients);
        Ok(Proposal { state, wanted, foresight })
    }
}

/// How many clients are known at a backend.
fn known_at(controller: &Controller, name: &BackendName, clients: &KnownClients) -> u64 {
    let ids: Vec<u16> = controller.parts(name).map(|backend| backend.id().0).collect();
    let mut known = 0;
    clients.for_each(|entry, _| known += u64::from(ids.contains(&entry.backend())));
    known
}

/// A change of which somebody asks what it would do, and a copy of what it would change.
pub struct Planning {
    controller: Controller,
    change: Change,
    now: Instant,
    place: Place,
    withdrawn: bool,
    clients: Option<KnownClients>,
}

/// A plan for which the known clients have still to be counted.
pub struct Draft {
    plan: Plan,
    clients: Option<KnownClients>,
}

impl Planning {
    /// Works it out, and what would be wanted of this machine then, if that is not the fleet's to decide.
    ///
    /// # Errors
    /// When the change would be refused.
    pub fn draft(self) -> Result<(Draft, Option<Wanted>), Refused> {
        let Self { controller, change, now, place, withdrawn, clients } = self;
        let (plan, after) = controller.plan_and_make(change, now)?;
        let wanted = (!controller.is_follower()).then(|| place.wanted(&after, withdrawn));
        Ok((Draft { plan, clients }, wanted))
    }
}

impl Draft {
    /// Counts them: a look at the whole client table, in milliseconds.
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

/// The answer where the thread that works it out has ended before it was done.
pub fn not_worked_out(error: JoinError) -> Refused {
    Refused::Conflict(format!("nothing was changed: working it out failed: {error}"))
}

impl<D: Dataplane> Owner<D> {
    /// Begins to work out what a restart would have to keep after a change, and what would be wanted of this machine.
    ///
    /// # Errors
    /// When the configuration is of another generation.
    pub fn propose(&mut self, wish: Wish, if_generation: Option<u64>) -> Result<Proposing, Refused> {
        let generation = self.controller.generation();
        if if_generation.is_some_and(|wanted| wanted != generation) {
            return Err(Refused::Stale(generation));
        }
        let leaves = match &wish {
            Wish::Change(Change::Remove { name, force: false }) => Some(name.clone()),
            Wish::Change(_) | Wish::Reread(_) | Wish::Withdraw(_) => None,
        };
        let clients = leaves.and_then(|name| Some((name, self.dataplane.known_clients()?)));
        Ok(Proposing { wish, state: self.restorable(), place: self.place(), clients })
    }

    /// Begins to work out what a change would move.
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
