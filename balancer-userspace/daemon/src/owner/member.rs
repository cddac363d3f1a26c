//! This balancer as one of several: its readiness, its withdrawal, and the VIPs of its machine.

use std::{collections::BTreeSet, net::IpAddr};

use balancer_api::model::Changed;
use balancer_config::config::OnExit;
use balancer_control::{
    controller::Controller,
    readiness::{Announcement, Facts, Fitness, FleetFacts, Readiness, Stage},
    snapshot::MemberSnapshot,
};
use balancer_dataplane::{Dataplane, KernelDataplane};
use balancer_netlink::machine::MachineState;
use tokio::time::Instant;

use super::Owner;
use crate::host_state::WantedMachine;

/// The owner's state about this balancer: see the [module](self).
#[derive(Debug, Default)]
pub(super) struct Member {
    stage: Stage,
    /// Whether the operator has withdrawn the VIPs.
    withdrawn: bool,
    /// The facts about the fleet that affect readiness; `None` if the balancer belongs to no fleet.
    fleet: Option<FleetFacts>,
    /// The VIPs that a balancer has added to this machine.
    vips: BTreeSet<(IpAddr, String)>,
    /// The problems of this machine, as one sentence each.
    troubles: Vec<String>,
    /// The reason why the state file lacks the present state.
    unsaved: Option<String>,
    /// The readiness that the owner last reported.
    told: Option<Readiness>,
}

/// Whether the balancer takes clients, and whether it is leaving. The VIPs of a leaving balancer should move to other
/// balancers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    takes_clients: bool,
    leaves: bool,
}

impl Place {
    /// Returns the state of this machine that a controller needs.
    pub(super) fn wanted(self, controller: &Controller, withdrawn: bool) -> WantedMachine {
        let mut wanted = WantedMachine::by(controller, self.takes_clients);
        if withdrawn || self.leaves {
            wanted.vips.clear();
        }
        wanted
    }
}

impl<D: Dataplane> Owner<D> {
    /// Whether the balancer is fit to receive clients.
    pub fn readiness(&self) -> Announcement {
        Announcement { readiness: self.verdict(), withdrawn: self.member.withdrawn }
    }

    fn verdict(&self) -> Readiness {
        let own = self.member.troubles.iter().chain(&self.member.unsaved).cloned();
        let of_lists = self.list_troubles().chain(self.discovery_troubles());
        let of_services = self.hindered().into_iter().chain(self.unserved());
        self.facts(own.chain(of_lists).chain(of_services).collect()).readiness()
    }

    /// Records why the state file lacks the present state; `None`: the state file is up to date.
    pub fn set_unsaved(&mut self, why: Option<&str>) {
        if self.member.unsaved.as_deref() != why {
            self.member.unsaved = why.map(str::to_owned);
            self.changed = true;
        }
    }

    /// The wanted interfaces to which the program is not attached.
    pub(super) fn missing(&self) -> Vec<String> {
        let attached = self.dataplane.attached();
        let on = |name: &&String| attached.iter().any(|interface| interface.name == **name);
        self.controller.interfaces().iter().filter(|name| !on(name)).cloned().collect()
    }

    fn facts(&self, troubles: Vec<String>) -> Facts {
        Facts {
            stage: self.member.stage,
            attached: self.dataplane.attached().len(),
            missing: self.missing(),
            unattached: self.unseen_replies(),
            out_of_step: self.step.facts(Instant::now()),
            troubles,
            fleet: self.member.fleet.clone(),
        }
    }

    /// A backend that this machine is unable to check, and the reason. The text contains no number, so that the text
    /// stays the same while the problem lasts.
    fn hindered(&self) -> Option<String> {
        let services = self.controller.services().iter();
        let mut backends =
            services.flat_map(|service| service.backends().iter().map(move |backend| (service, backend)));
        backends.find_map(|(service, backend)| {
            let why = service.hindered(backend)?;
            Some(format!("this machine cannot check backend {}: {why}", service.name_of(backend)))
        })
    }

    /// Returns the wanted state of this machine.
    pub fn wanted(&self) -> WantedMachine {
        let wanted = self.place().wanted(&self.controller, self.member.withdrawn);
        WantedMachine { features: wanted.features | self.features_kept_back_for(), ..wanted }
    }

    pub(super) fn place(&self) -> Place {
        let leaves = self.member.stage == Stage::Leaving && self.gives_way();
        Place { takes_clients: self.takes_clients(), leaves }
    }

    /// Whether this machine may have VIPs that another machine could also take. The host adds VIPs only after attaching
    /// the program, so the readiness of a balancer without a fleet need not depend on the attachment.
    fn takes_clients(&self) -> bool {
        match self.member.stage {
            Stage::Starting => self.member.fleet.is_none(),
            // A balancer with problems is degraded but still serves clients.
            Stage::Serving | Stage::Leaving => self.facts(Vec::new()).readiness().state.serves(),
        }
    }

    /// Whether routers can send clients to another balancer before this balancer ends, because of a fleet or of routing
    /// daemons. A balancer without a substitute keeps its clients if the kernel program continues to steer after the
    /// end of the process.
    pub fn gives_way(&self) -> bool {
        let settings = self.controller.settings();
        let keeps = settings.on_exit == OnExit::Keep;
        settings.fleet.is_some() || !keeps && !self.controller.vip_interfaces().is_empty()
    }

    /// Sets the stage of the process.
    pub fn set_stage(&mut self, stage: Stage) {
        self.member.stage = stage;
        self.changed = true;
    }

    /// Sets the facts about the fleet that affect readiness; `None` if the balancer belongs to no fleet.
    pub fn set_fleet(&mut self, fleet: Option<FleetFacts>) {
        if self.member.fleet != fleet {
            self.member.fleet = fleet;
            self.changed = true;
        }
    }

    /// Takes over from an ended process whether the VIPs are withdrawn.
    pub const fn take_over_withdrawn(&mut self, withdrawn: bool) {
        self.member.withdrawn = withdrawn;
    }

    /// Whether the operator has withdrawn the VIPs.
    pub const fn is_withdrawn(&self) -> bool {
        self.member.withdrawn
    }

    /// Whether the machine has no VIP left that a balancer has added.
    pub fn has_no_vips(&self) -> bool {
        self.member.vips.is_empty()
    }

    /// Withdraws or restores the VIPs at the request of the user `uid`.
    pub fn set_withdrawn(&mut self, withdrawn: bool, uid: Option<u32>) -> Changed {
        let message = match (withdrawn, self.member.withdrawn, self.controller.assigns_vips()) {
            (true, true, _) => "withdrawn already: nothing changed",
            (false, false, _) => "not withdrawn: nothing changed",
            (true, false, true) => "withdrawn: its VIPs are removed, and steering continues",
            (true, false, false) => {
                "withdrawn: no service has assign_vip, so whatever assigned the VIPs must remove \
                                     them"
            }
            (false, true, true) => "announced: its VIPs are assigned again",
            (false, true, false) => {
                "announced: no service has assign_vip, so whatever removed the VIPs must assign \
                                     them again"
            }
        };
        let message = message.to_owned();
        if withdrawn != self.member.withdrawn {
            self.member.withdrawn = withdrawn;
            self.changed = true;
            self.events.change(None, &message, uid, None);
        }
        Changed::applied(message)
    }

    /// Reports the readiness if it has changed since the last report.
    pub fn tell_readiness(&mut self) {
        let readiness = self.verdict();
        let ready = Readiness { state: Fitness::Ready, reasons: Vec::new() };
        let told = self.member.told.replace(readiness.clone()).unwrap_or(ready);
        if told == readiness {
            return;
        }
        let word = readiness.state.word().replace('_', " ");
        match readiness.reasons.as_slice() {
            [] => self.events.note(&word),
            reasons => self.events.warn(&format!("{word}: {}", reasons.join("; "))),
        }
    }

    pub(super) fn member_snapshot(&self) -> MemberSnapshot {
        MemberSnapshot {
            readiness: self.verdict(),
            withdrawn: self.member.withdrawn,
            vips: self.member.vips.iter().cloned().collect(),
            unsaved: self.member.unsaved.is_some(),
        }
    }
}

impl Owner<KernelDataplane> {
    /// Records the actual state of this machine.
    pub fn set_present(&mut self, present: MachineState) {
        let MachineState { features: _, attached, vips, troubles } = present;
        self.dataplane.set_attached(attached);
        (self.member.vips, self.member.troubles) = (vips, troubles);
        self.changed = true;
        // The kernel program may have more features now.
        self.let_go();
    }
}
