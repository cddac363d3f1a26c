//! The main loop of the controller: compares cluster and balancer after each change, and at least once a minute.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use balancer_api::{client::ClientError, model::ServiceView};
use k8s_openapi::api::core::v1::{Node, Service};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    args::{Run, Target},
    balancer::Balancer,
    changes,
    cluster::{Answer, Cluster, Failure, mirror::Mirror},
    drop_in::{self, DropIn, ServiceText},
    fit::Refusal,
    lease::Candidacy,
    metrics::Metrics,
    round::{Notice, Outcome, Round, Step, World},
    slices::EndpointSlice,
    wanted::Terms,
};

/// The maximum time from one comparison to the next.
const MINUTE: Duration = Duration::from_secs(60);

/// The time until the next comparison after a failure or while a backend is draining.
const SOON: Duration = Duration::from_secs(3);

/// The time for which the controller collects further changes before a comparison.
const COLLECT: Duration = Duration::from_millis(100);

/// The time after which the controller requests refused services again.
const FORGIVE: Duration = Duration::from_secs(600);

/// The state that the controller keeps between comparisons.
struct Controller {
    terms: Terms,
    cluster: Cluster,
    balancer: Balancer,
    metrics: Arc<Metrics>,
    services: Arc<Mirror<Service>>,
    slices: Arc<Mirror<EndpointSlice>>,
    nodes: Arc<Mirror<Node>>,
    /// The time until which this controller may act; `None` if the controller must not act.
    until: watch::Receiver<Option<Instant>>,
    /// The services that the balancer has refused, by name.
    refused: BTreeMap<String, Refusal>,
    /// The time from which on the balancer may accept services that it has refused, because an operator may have changed
    /// the balancer.
    forgive: Instant,
    /// The notices that the program has already written, with the Service.
    told: BTreeSet<(String, Notice)>,
}

/// The reason why a comparison did not finish, and the component that failed.
#[derive(Debug)]
struct Stopped {
    part: &'static str,
    why: String,
}

impl Stopped {
    fn balancer(why: impl ToString) -> Self {
        Self { part: "balancer", why: why.to_string() }
    }

    fn cluster(failure: &Failure) -> Self {
        let part = if matches!(failure, Failure::Conflict(_)) { "conflict" } else { "cluster" };
        Self { part, why: failure.to_string() }
    }
}

/// Follows the cluster until a signal ends the program.
///
/// # Errors
/// Fails if the program cannot read the files or connect to the cluster.
pub async fn run(args: Run) -> anyhow::Result<()> {
    let cluster = Cluster::new(args.kubeconfig.as_deref()).await?;
    let metrics = Arc::new(Metrics::default());
    Arc::clone(&metrics).serve(args.metrics).await?;
    let candidacy = candidacy(&args)?;
    let wake = Arc::new(Notify::new());
    let mut tasks = JoinSet::new();
    let (sender, until) = watch::channel(None);
    match candidacy.clone() {
        Some(candidacy) => drop(tasks.spawn(candidacy.run(cluster.clone(), sender))),
        None => drop(sender.send_replace(Some(Instant::now() + Duration::from_secs(365 * 24 * 3600)))),
    }
    let servers = args.servers()?;
    let mut controller = Controller {
        terms: Terms {
            class: args.class,
            default: args.default,
            target: args.target,
            assign_vip: args.assign_vip,
            pools: args.pools.iter().map(ipnet::IpNet::trunc).collect(),
        },
        balancer: Balancer::new(&args.socket, servers),
        services: Arc::default(),
        slices: Arc::default(),
        nodes: Arc::default(),
        cluster: cluster.clone(),
        metrics,
        until,
        refused: BTreeMap::new(),
        forgive: Instant::now(),
        told: BTreeSet::new(),
    };
    controller.follow(&mut tasks, &wake);
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tracing::info!("following Services of class {}", controller.terms.class);
    tokio::select! {
        () = controller.act(&wake) => {}
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tasks.shutdown().await;
    if let Some(Err(failure)) = resign(candidacy, &cluster).await {
        tracing::warn!("the Lease is not given up: {failure}");
    }
    Ok(())
}

async fn resign(candidacy: Option<Candidacy>, cluster: &Cluster) -> Option<Answer<()>> {
    Some(candidacy?.resign(cluster).await)
}

fn candidacy(args: &Run) -> anyhow::Result<Option<Candidacy>> {
    if args.lease == "none" {
        return Ok(None);
    }
    let Some((namespace, name)) = args.lease.split_once('/') else {
        anyhow::bail!("--lease {}: give NAMESPACE/NAME, or none", args.lease);
    };
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let own = || format!("{}-{}", host.trim(), std::process::id());
    let identity = args.identity.clone().unwrap_or_else(own);
    Ok(Some(Candidacy { namespace: namespace.to_owned(), name: name.to_owned(), identity }))
}

impl Controller {
    fn follow(&self, tasks: &mut JoinSet<()>, wake: &Arc<Notify>) {
        let (cluster, metrics) = (|| self.cluster.clone(), || Arc::clone(&self.metrics));
        tasks.spawn(Arc::clone(&self.services).follow(cluster(), Arc::clone(wake), metrics()));
        match self.terms.target {
            Target::Pod => tasks.spawn(Arc::clone(&self.slices).follow(cluster(), Arc::clone(wake), metrics())),
            Target::Node => tasks.spawn(Arc::clone(&self.nodes).follow(cluster(), Arc::clone(wake), metrics())),
        };
    }

    /// Compares the cluster with the balancer repeatedly, without end.
    async fn act(&mut self, wake: &Notify) {
        let mut next = Instant::now();
        let mut until = self.until.clone();
        let mut trouble = String::new();
        loop {
            tokio::select! {
                () = wake.notified() => sleep(COLLECT).await,
                _ = until.changed() => {}
                () = sleep_until(next) => {}
            }
            let leads = self.leads();
            self.metrics.leads(leads);
            if !leads {
                next = Instant::now() + SOON;
                continue;
            }
            let pause = match self.compare().await {
                Ok(settled) => {
                    trouble.clear();
                    if settled { MINUTE } else { SOON }
                }
                Err(Stopped { part, why }) => {
                    self.metrics.failed(part);
                    // The program logs a repeated failure only once, although it repeats the comparison.
                    if why != trouble {
                        tracing::warn!("{why}");
                    }
                    trouble = why;
                    SOON
                }
            };
            next = Instant::now() + pause;
        }
    }

    fn leads(&self) -> bool {
        self.until.borrow().is_some_and(|until| Instant::now() < until)
    }

    fn still_leads(&self) -> Result<(), Stopped> {
        let gone =
            || Stopped { part: "cluster", why: "the Lease may be another's: nothing more is changed".to_owned() };
        if self.leads() { Ok(()) } else { Err(gone()) }
    }

    /// Compares cluster and balancer once, and makes the resulting changes. The function returns whether no work is
    /// left.
    async fn compare(&mut self) -> Result<bool, Stopped> {
        let Some(services) = self.services.objects() else { return Ok(false) };
        let (slices, nodes) = (self.slices.objects(), self.nodes.objects());
        let (slices, nodes) = match self.terms.target {
            Target::Pod => (slices, Some(Vec::new())),
            Target::Node => (Some(Vec::new()), nodes),
        };
        let (Some(slices), Some(nodes)) = (slices, nodes) else { return Ok(false) };
        if Instant::now() >= self.forgive {
            self.refused.clear();
            self.forgive = Instant::now() + FORGIVE;
        }
        let text = self.balancer.read().await.map_err(|error| self.failed(error))?;
        let before = DropIn::read(&text).map_err(|error| {
            Stopped::balancer(format!("drop-in {} is not this program's: {error}; remove it", drop_in::NAME))
        })?;
        let actual = self.balancer.services().await.map_err(|error| self.failed(error))?;
        let world = World {
            services: &services,
            slices: &slices,
            nodes: &nodes,
            drop_in: &before,
            actual: &actual,
            refused: &self.refused,
        };
        let round = self.terms.round(world);
        self.count(&round);
        let troubles = self.finalize(&round.outcomes).await;
        self.still_leads()?;
        self.apply(&round.drop_in, &text, &before, &actual).await?;
        let there = self.change(&round).await?;
        self.still_leads()?;
        let late = self.publish(&round.outcomes, &there).await;
        if let Some(failure) = troubles.or(late) {
            return Err(Stopped::cluster(&failure));
        }
        self.metrics.compared();
        Ok(round.drop_in.drained.is_empty())
    }

    /// Notes a failed request to the balancer.
    fn failed(&mut self, error: ClientError) -> Stopped {
        if error.is_absence() {
            self.balancer.use_next();
            // After a restart, the balancer may accept services that it has refused before.
            self.refused.clear();
        }
        Stopped::balancer(error)
    }

    fn count(&self, round: &Round) {
        let backends = round.drop_in.services.iter().map(|service| service.backends.len()).sum();
        self.metrics.counted(round.drop_in.services.len(), backends, round.draining.len(), &round.left);
    }

    /// Adds finalizers to Services, and informs owners about mistakes. The function returns the last failure, if there
    /// was one.
    async fn finalize(&mut self, outcomes: &[Outcome]) -> Option<Failure> {
        let mut failure = None;
        for outcome in outcomes {
            if outcome.step == Step::Finalize {
                failure = self.cluster.finalize(&outcome.object).await.err().or(failure);
            }
            for notice in &outcome.notices {
                let key = (outcome.object.uid.clone(), notice.clone());
                if self.told.contains(&key) {
                    continue;
                }
                let Outcome { object, .. } = outcome;
                tracing::warn!("Service {}/{}: {}", object.namespace, object.name, notice.message);
                match self.cluster.tell(object, notice).await {
                    Ok(()) => drop(self.told.insert(key)),
                    Err(error) => failure = Some(error),
                }
            }
        }
        let current: BTreeSet<_> = outcomes
            .iter()
            .flat_map(|outcome| outcome.notices.iter().map(|notice| (outcome.object.uid.clone(), notice.clone())))
            .collect();
        self.told.retain(|told| current.contains(told));
        failure
    }

    /// Makes the balancer apply the `wanted` drop-in, unless the balancer has all of it. The drop-in so far has the text
    /// `text` and the contents `before`.
    async fn apply(
        &mut self,
        wanted: &DropIn,
        text: &str,
        before: &DropIn,
        actual: &[ServiceView],
    ) -> Result<(), Stopped> {
        let own = actual.iter().filter(|service| drop_in::has(service));
        let there: BTreeSet<&str> = own.map(|service| service.name.as_str()).collect();
        let is_there = wanted.services.iter().all(|service| there.contains(service.name.as_str()));
        if wanted.text() == text && is_there {
            return Ok(());
        }
        let said = match self.balancer.apply(wanted.text(), false).await {
            Ok(said) => said,
            Err(error) => {
                if !error.is_absence() && !self.find_refused(wanted, before, &there).await {
                    // No single service is to blame. A member of a fleet may have lost the fleet's etcd.
                    self.balancer.use_next();
                }
                return Err(self.failed(error));
            }
        };
        self.metrics.changed();
        tracing::info!("{said}");
        Ok(())
    }

    /// Finds the services that made the balancer refuse the drop-in, so that the balancer can serve all other services.
    /// If no service is refused in a dry run, the function really applies the services one by one, because only then
    /// the data path can refuse a service. The function returns whether it has found a refused service.
    async fn find_refused(&mut self, wanted: &DropIn, before: &DropIn, there: &BTreeSet<&str>) -> bool {
        let is_there = |service: &ServiceText| there.contains(service.name.as_str());
        let stays = |service: &ServiceText| is_there(service) && before.service(&service.name) == Some(service);
        let kept = |service: &&ServiceText| is_there(service) && wanted.service(&service.name).is_some();
        let accepted: Vec<ServiceText> = before.services.iter().filter(kept).cloned().collect();
        for dry_run in [true, false] {
            let (mut services, mut found) = (accepted.clone(), false);
            for service in wanted.services.iter().filter(|service| !stays(service)) {
                let mut next = services.clone();
                next.retain(|other| other.name != service.name);
                next.push(service.clone());
                let text = DropIn { services: next.clone(), drained: wanted.drained.clone() }.text();
                match self.balancer.apply(text, dry_run).await {
                    Ok(_) => services = next,
                    Err(error) if error.is_absence() => return true,
                    Err(error) => {
                        let refusal = Refusal { service: service.clone(), why: error.to_string() };
                        self.refused.insert(service.name.clone(), refusal);
                        found = true;
                    }
                }
            }
            if found || self.still_leads().is_err() {
                return found;
            }
        }
        false
    }

    /// Drains backends, and makes drained backends ready again. The function returns the names of the services in the
    /// drop-in.
    async fn change(&mut self, round: &Round) -> Result<BTreeSet<String>, Stopped> {
        let actual = self.balancer.services().await.map_err(|error| self.failed(error))?;
        for change in changes::changes(&round.drop_in, &round.draining, &actual) {
            self.still_leads()?;
            let said = self.balancer.change(&change).await.map_err(|error| self.failed(error))?;
            self.metrics.changed();
            tracing::info!("{said}");
        }
        Ok(actual.into_iter().filter(drop_in::has).map(|service| service.name).collect())
    }

    /// Writes the addresses of served Services to their status, and releases those Services that are no longer served.
    /// The function returns the last failure, if there was one.
    async fn publish(&self, outcomes: &[Outcome], there: &BTreeSet<String>) -> Option<Failure> {
        let mut failure = None;
        for Outcome { object, step, .. } in outcomes {
            let is_served = there.contains(&crate::names::service(&object.namespace, &object.name));
            let answer = match step {
                Step::Publish(addresses) if is_served || addresses.is_empty() => {
                    self.cluster.publish(object, addresses).await
                }
                Step::Release if !is_served => self.cluster.release(object).await,
                Step::Publish(_) | Step::Release | Step::Finalize | Step::Nothing => continue,
            };
            failure = answer.err().or(failure);
        }
        failure
    }
}
