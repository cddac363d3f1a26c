//! The main loop of the controller: compares cluster and balancer after each change, and at least once a minute.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

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
    block::{Block, File},
    changes,
    cluster::{Answer, Cluster, Failure, mirror::Mirror},
    fit::Refusal,
    lease::Candidacy,
    metrics::Metrics,
    others::Others,
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
    /// The contents of this program's section that the balancer has applied last.
    applied: Option<Block>,
    /// The services that the balancer has refused, by name.
    refused: BTreeMap<String, Refusal>,
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
    fn file(why: String) -> Self {
        Self { part: "file", why }
    }

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
    let mut controller = Controller {
        terms: Terms {
            class: args.class,
            default: args.default,
            target: args.target,
            assign_vip: args.assign_vip,
            pools: args.pools.iter().map(ipnet::IpNet::trunc).collect(),
        },
        balancer: Balancer::new(&args.socket, &args.configuration),
        services: Arc::default(),
        slices: Arc::default(),
        nodes: Arc::default(),
        cluster: cluster.clone(),
        metrics,
        until,
        applied: None,
        refused: BTreeMap::new(),
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
                // Another controller acts now, so this controller does not know the state of the balancer.
                self.applied = None;
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
        let text = self.balancer.read().map_err(Stopped::file)?;
        let path = self.balancer.path().to_owned();
        let file = File::read(&text).map_err(|error| Stopped::file(format!("{}: {error}", path.display())))?;
        let others = Others::of(&path, &file).map_err(Stopped::file)?;
        let actual = self.balancer.status().await;
        let nobody = BTreeSet::new();
        let world = World {
            services: &services,
            slices: &slices,
            nodes: &nodes,
            path: &path,
            file: &file,
            others: &others,
            actual: actual.as_ref().ok().map(|(services, _)| services.as_slice()),
            added: actual.as_ref().map_or(&nobody, |(_, added)| added),
            refused: &self.refused,
        };
        let round = self.terms.round(world);
        self.count(&round);
        let troubles = self.finalize(&round.outcomes).await;
        self.still_leads()?;
        let written = file.with(&round.block, others.is_none());
        let actual = match actual {
            Ok((actual, _)) => actual,
            Err(error) => {
                // After a restart, the balancer has read the file, and may accept services that it has refused before.
                self.refused.clear();
                self.write(&text, &written)?;
                return Err(Stopped::balancer(error));
            }
        };
        if let Some(why) = others.missing(actual.iter().map(|service| service.name.as_str())) {
            self.write(&text, &written)?;
            return Err(Stopped::balancer(why));
        }
        let there: BTreeSet<String> = actual.into_iter().map(|service| service.name).collect();
        self.apply(&round.block, &file, others.is_none(), &there).await?;
        // The program writes drains to the file before it begins them.
        self.write(&text, &written)?;
        let there = self.change(&round).await?;
        self.still_leads()?;
        let late = self.publish(&round.outcomes, &there).await;
        if let Some(failure) = troubles.or(late) {
            return Err(Stopped::cluster(&failure));
        }
        self.metrics.compared();
        Ok(round.block.drained.is_empty())
    }

    fn count(&self, round: &Round) {
        let backends = round.block.services.iter().map(|service| service.backends.len()).sum();
        self.metrics.counted(round.block.services.len(), backends, round.draining.len(), &round.left);
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

    fn write(&self, text: &str, written: &str) -> Result<(), Stopped> {
        if text == written { Ok(()) } else { self.balancer.write(text, written).map_err(Stopped::file) }
    }

    /// Makes the balancer apply this program's services, unless it has already applied them; `there` contains the
    /// services that the balancer has now.
    async fn apply(
        &mut self,
        block: &Block,
        file: &File,
        alone: bool,
        there: &BTreeSet<String>,
    ) -> Result<(), Stopped> {
        let wanted: BTreeSet<&String> = block.services.iter().map(|service| &service.name).collect();
        let ours: BTreeSet<&String> = there.iter().filter(|name| changes::is_ours(name)).collect();
        let is_applied = self.applied.as_ref().is_some_and(|applied| applied.services == block.services);
        if is_applied && ours == wanted {
            return Ok(());
        }
        self.applied = None;
        let said = match self.balancer.apply(file.with(block, alone), false).await {
            Ok(said) => said,
            Err(error) => {
                if !error.is_absence() {
                    self.find_refused(block, file, alone).await;
                }
                return Err(Stopped::balancer(error));
            }
        };
        self.metrics.changed();
        tracing::info!("{said}");
        self.applied = Some(block.clone());
        Ok(())
    }

    /// Finds the services that made the balancer refuse the file, so that the balancer can serve all other services.
    async fn find_refused(&mut self, block: &Block, file: &File, alone: bool) {
        for service in block.services.iter().filter(|service| file.block.service(&service.name) != Some(service)) {
            let mut only = file.block.clone();
            only.services.retain(|other| other.name != service.name);
            only.services.push(service.clone());
            let answer = self.balancer.apply(file.with(&only, alone), true).await;
            if let Err(error) = answer.map(drop).or_else(|error| if error.is_absence() { Ok(()) } else { Err(error) }) {
                let refusal = Refusal { service: service.clone(), why: error.to_string() };
                self.refused.insert(service.name.clone(), refusal);
            }
        }
    }

    /// Drains backends, and makes drained backends ready again. The function returns the names of the balancer's
    /// services.
    async fn change(&self, round: &Round) -> Result<BTreeSet<String>, Stopped> {
        let actual = self.balancer.services().await.map_err(Stopped::balancer)?;
        for change in changes::changes(&round.block, &round.draining, &actual) {
            self.still_leads()?;
            let said = self.balancer.change(&change).await.map_err(Stopped::balancer)?;
            self.metrics.changed();
            tracing::info!("{said}");
        }
        Ok(actual.into_iter().map(|service| service.name).collect())
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
