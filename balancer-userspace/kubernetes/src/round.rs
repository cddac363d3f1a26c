//! One comparison of the cluster with the balancer: computes the wanted state of the balancer, and the changes to make
//! to Services.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use balancer_api::model::ServiceView;
use k8s_openapi::api::core::v1::{Node, Service};

use crate::{
    args::Target,
    candidates::{Candidates, nodes, pods},
    changes::{self, full},
    drop_in::{DropIn, ServiceText},
    fit::{self, Refusal},
    members::{Before, members},
    others,
    pools::{self, Family, Grant, Problem},
    slices::EndpointSlice,
    wanted::{self, Terms, Wanted, port_keys},
};

/// The finalizer that keeps a Service in the cluster until the balancer no longer serves it.
pub const FINALIZER: &str = "sticky.balancer/cleanup";

/// The observed state of cluster and balancer, which is the input of a comparison.
#[derive(Clone, Copy, Debug)]
pub struct World<'a> {
    /// All Services of the cluster.
    pub services: &'a [Service],
    /// All `EndpointSlice`s of the cluster.
    pub slices: &'a [EndpointSlice],
    /// All nodes of the cluster, if nodes are the backends.
    pub nodes: &'a [Node],
    pub drop_in: &'a DropIn,
    pub actual: &'a [ServiceView],
    /// The services that the balancer has refused, by name.
    pub refused: &'a BTreeMap<String, Refusal>,
}

/// The result of a comparison, which is the wanted state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Round {
    /// The wanted contents of this program's drop-in.
    pub drop_in: DropIn,
    /// The backends that must not take new clients, as `SERVICE/BACKEND`.
    pub draining: BTreeSet<String>,
    /// The consequences of the comparison for each Service of this program.
    pub outcomes: Vec<Outcome>,
    /// The number of free addresses in the pools, by address family.
    pub left: BTreeMap<Family, f64>,
}

/// The consequences of the comparison for a Service.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The Service in the version that the program has read.
    pub object: Object,
    /// The change to make to the Service.
    pub step: Step,
    /// Notices for the owner of the Service.
    pub notices: Vec<Notice>,
}

/// The identity of a Service, and the version that the program has read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Object {
    pub namespace: String,
    pub name: String,
    /// The UID of the Service, which no other Service ever has.
    pub uid: String,
    /// The version of the Service that the program has read.
    pub version: String,
    pub finalizers: Vec<String>,
}

/// A change to make to a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// No change of the Service is due.
    Nothing,
    /// Add the finalizer, which must happen before the balancer serves the Service.
    Finalize,
    /// Write these addresses to the status of the Service, as soon as the balancer serves them.
    Publish(Vec<IpAddr>),
    /// Remove the finalizer and the addresses, as soon as the balancer no longer serves the Service.
    Release,
}

/// A notice to the owner of a Service, which the program writes as an event.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Notice {
    /// The reason for the notice, as a word in CamelCase.
    pub reason: &'static str,
    /// The mistake of the owner, and how to correct it.
    pub message: String,
}

/// A Service that the balancer should serve, during the comparison.
struct Job<'a> {
    service: &'a Service,
    wanted: Wanted,
    grant: Grant,
    notices: Vec<Notice>,
    text: Option<ServiceText>,
}

impl Terms {
    /// Computes the wanted state from the observed state.
    #[must_use]
    pub fn round(&self, world: World<'_>) -> Round {
        let mut jobs = self.jobs(world);
        let mut draining = BTreeSet::new();
        for job in &mut jobs {
            self.work_out(job, world, &mut draining);
        }
        let texts = jobs.iter().filter_map(|job| job.text.clone()).collect();
        let (mut services, wrong) = fit::together(world.drop_in, texts);
        services.sort_by(|one, other| one.name.cmp(&other.name));
        for (name, error) in wrong {
            for job in jobs.iter_mut().filter(|job| job.wanted.name == name) {
                job.notices.push(Notice { reason: "Refused", message: error.clone() });
            }
        }
        let mut drop_in = DropIn { services, drained: BTreeSet::new() };
        drop_in.drained = changes::drained(&world.drop_in.drained, &draining, &drop_in, world.actual);
        let used = jobs.iter().flat_map(|job| job.grant.addresses.values().copied()).collect();
        let mut outcomes: Vec<Outcome> = jobs.into_iter().map(|job| outcome(job, &drop_in)).collect();
        outcomes.extend(world.services.iter().filter_map(|service| self.without(service)));
        Round { left: pools::left(&self.pools, &used), drop_in, draining, outcomes }
    }

    /// The Services that the balancer should serve, oldest first, each with its addresses.
    fn jobs<'a>(&self, world: World<'a>) -> Vec<Job<'a>> {
        let mut services: Vec<&Service> =
            world.services.iter().filter(|service| self.include(service) && is_finalized(service)).collect();
        services.sort_by_key(|service| {
            let time = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (time, wanted::key(service))
        });
        let mut wants: Vec<Wanted> = services.iter().map(|service| self.wanted(service)).collect();
        for wanted in wants.iter_mut().filter(|wanted| wanted.claim.held.is_empty()) {
            // The addresses in the drop-in are in use, but the status of the Service may not show them yet.
            wanted.claim.held = world.drop_in.service(&wanted.name).map(addresses).unwrap_or_default();
        }
        let claims: Vec<_> = wants.iter().map(|wanted| wanted.claim.clone()).collect();
        let grants = pools::allocate(&self.pools, &claims, &others::addresses(world.actual));
        let jobs = services.into_iter().zip(wants).zip(grants);
        jobs.map(|((service, wanted), grant)| Job {
            service,
            notices: notices(&wanted, &grant),
            wanted,
            grant,
            text: None,
        })
        .collect()
    }

    /// Computes the balancer's service for a Kubernetes Service.
    fn work_out(&self, job: &mut Job<'_>, world: World<'_>, draining: &mut BTreeSet<String>) {
        let Job { service, wanted, grant, notices, text } = job;
        if grant.addresses.is_empty() || wanted.ports.is_empty() {
            return;
        }
        let before = world.drop_in.service(&wanted.name);
        let families = grant.addresses.keys().copied().collect();
        let known = Before {
            backends: before.map(|before| before.backends.as_slice()).unwrap_or_default(),
            actual: world.actual.iter().find(|there| there.name == wanted.name),
        };
        let candidates = self.candidates(service, wanted, world);
        let members = members(&candidates, &families, self.forwarding(wanted), known);
        notices.extend(members.wrong.into_iter().map(|message| Notice { reason: "BackendLeftOut", message }));
        let mut service = self.text(service, wanted, grant);
        (service.backends, service.ports) = (members.backends, port_keys(&members.ports));
        let fitted = fit::alone(service, before, world.refused.get(&wanted.name));
        notices.extend(fitted.wrong.map(|message| Notice { reason: "Refused", message }));
        draining.extend(members.draining.iter().map(|backend| full(&wanted.name, backend)));
        *text = fitted.service;
    }

    fn candidates(&self, service: &Service, wanted: &Wanted, world: World<'_>) -> Candidates {
        let (namespace, name) = wanted::key(service);
        match self.target {
            Target::Pod => pods::candidates((&namespace, &name), &wanted.ports, world.slices),
            Target::Node => nodes::candidates(&wanted.ports, world.nodes),
        }
    }

    /// The consequences for a Service that the balancer does not serve.
    fn without(&self, service: &Service) -> Option<Outcome> {
        let step = match (self.include(service), is_finalized(service)) {
            (true, false) => Step::Finalize,
            (false, true) => Step::Release,
            (true, true) | (false, false) => return None,
        };
        Some(Outcome { object: object(service), step, notices: Vec::new() })
    }
}

fn is_finalized(service: &Service) -> bool {
    service.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

fn addresses(service: &ServiceText) -> Vec<IpAddr> {
    let address = |listen: &String| {
        let place = listen.strip_suffix("/udp").unwrap_or(listen);
        Some(place.parse::<std::net::SocketAddr>().ok()?.ip())
    };
    service.listen.iter().filter_map(address).collect::<BTreeSet<_>>().into_iter().collect()
}

fn notices(wanted: &Wanted, grant: &Grant) -> Vec<Notice> {
    let problems = grant.problems.iter().map(|problem| {
        let reason = match problem {
            Problem::Exhausted(..) => "NoAddressLeft",
            Problem::OfNoPool(..) | Problem::Taken(..) => "AddressRefused",
        };
        Notice { reason, message: problem.to_string() }
    });
    let wrong = wanted.wrong.iter().map(|message| Notice { reason: "Ignored", message: message.clone() });
    problems.chain(wrong).collect()
}

fn object(service: &Service) -> Object {
    let (namespace, name) = wanted::key(service);
    Object {
        namespace,
        name,
        uid: service.metadata.uid.clone().unwrap_or_default(),
        version: service.metadata.resource_version.clone().unwrap_or_default(),
        finalizers: service.metadata.finalizers.clone().unwrap_or_default(),
    }
}

fn outcome(job: Job<'_>, drop_in: &DropIn) -> Outcome {
    let is_served = drop_in.service(&job.wanted.name).is_some();
    let addresses: Vec<IpAddr> = job.grant.addresses.values().copied().collect();
    // A Service that the balancer refuses keeps the address that it has, so that no other Service gets the address.
    let is_refused = !is_served && !addresses.is_empty() && !job.wanted.ports.is_empty();
    let addresses = if is_served { addresses } else { Vec::new() };
    let is_due = wanted::held(job.service) != addresses && !is_refused;
    let step = if is_due { Step::Publish(addresses) } else { Step::Nothing };
    Outcome { object: object(job.service), step, notices: job.notices }
}

#[cfg(test)]
#[path = "round_test.rs"]
mod tests;
