//! Answers calls to the task that owns the controller.

use std::{collections::VecDeque, sync::Arc};

use balancer_api::model::{Changed, ForgottenView};
use balancer_config::names::BackendName;
use balancer_control::{
    io::{Change, Refused},
    plan::Planned,
};
use balancer_dataplane::{KernelDataplane, Served};
use balancer_fleet::member::Input;
use tokio::{sync::oneshot, task::spawn_blocking, time::Instant};

use super::FIRST_NEXT_HOPS;
use balancer_checks::load_report::LoadReport;
use balancer_listeners::{
    call::{Call, ChangeRequest, Request},
    statistics::Statistics,
};
use balancer_sources::source_read::SourceRead;
use tracing::warn;

use crate::{
    fleet::Fleet,
    host::{Checker, Host, Prepared},
    owner::{Forgetting, Owner, Planning, not_worked_out},
    persistence::{Persistence, Ready},
    task_call::{TaskCall, TaskCalls},
};

/// Answers a call; if the caller no longer waits, drops the answer.
pub(super) fn answer(
    owner: &mut Owner<KernelDataplane>,
    persistence: &mut Persistence,
    fleet: Option<&mut Fleet>,
    host: &Host,
    passes: &mut VecDeque<ForgettingPass>,
    statistics: &Arc<Statistics>,
    call: Call,
) {
    match call {
        Call::Forget { query, uid, reply } => {
            let _ = reply.send(owner.forget(&query, uid));
        }
        Call::ForgetAll { backend, uid, reply } => match owner.forget_all(backend, uid) {
            Ok(forgetting) => passes.push_back(ForgettingPass { forgetting, reply }),
            Err(refused) => {
                let _ = reply.send(Err(refused));
            }
        },
        Call::ImportClients { service, clients, overwrite, uid, reply } => {
            let served = if overwrite { Served::Overwrite } else { Served::Stay };
            let _ = reply.send(owner.import_clients(&service, &clients, served, uid));
        }
        Call::ExportClients { service, within, reply } => match owner.export_clients(&service) {
            Ok(searching) => drop(spawn_blocking(move || {
                let _ = reply.send(searching.search(&within));
            })),
            Err(refused) => {
                let _ = reply.send(Err(refused));
            }
        },
        Call::Snapshot { reply } => match owner.snapshot() {
            Ok(counting) => {
                let counting = counting.with_fleet(fleet.map(|fleet| fleet.snapshot(owner)));
                let _ = reply.send(Ok(Arc::clone(statistics).complete(counting.finish())));
            }
            Err(error) => {
                let _ = reply.send(Err(error));
            }
        },
        Call::Ready { reply } => {
            let _ = reply.send(owner.readiness());
        }
        Call::Events { reply } => {
            let _ = reply.send(owner.events().clone());
        }
        Call::Clients { query, reply } => {
            let _ = reply.send(owner.locate(&query));
        }
        Call::Plan { change, reply } => {
            let planned = plan(owner.plan(change), host.checker());
            tokio::spawn(async {
                let _ = reply.send(planned.await);
            });
        }
        Call::DropIns { reply } => {
            let _ = reply.send(owner.drop_ins());
        }
        Call::Rules { service, reply } => {
            let _ = reply.send(owner.rules(service.as_deref()));
        }
        Call::Flows { service, reply } => {
            let _ = reply.send(owner.flows(service.as_deref()));
        }
        Call::Trace { wanted, uid, reply } => match owner.trace_filter(&wanted) {
            Ok(filter) => {
                let begun = host.trace(filter, owner.hops(), uid);
                tokio::spawn(async {
                    let _ = reply.send(begun.await.map_err(|error| Refused::Conflict(format!("{error:#}"))));
                });
            }
            Err(refused) => {
                let _ = reply.send(Err(refused));
            }
        },
        Call::Traced { trace, reply } => {
            let found = host.traced(trace).map(|trace| (trace, owner.hops()));
            let _ = reply.send(found.ok_or_else(|| Refused::NotFound(format!("trace {trace} has ended"))));
        }
        Call::Tallies { reply } => match fleet {
            Some(fleet) => fleet.ask_tallies(reply, owner),
            None => {
                let none = "this balancer is in no fleet: its configuration has no [fleet]";
                let _ = reply.send(Err(Refused::NotFound(none.to_owned())));
            }
        },
        Call::FileRead { config, modified, reply } => match fleet {
            Some(fleet) => fleet.file_was_read(config, modified, reply, owner),
            None => {
                let _ = reply.send(Ok(None));
            }
        },
        Call::FileApplied { path, services } => {
            if let Some(fleet) = fleet {
                fleet.file_was_applied(&path, services);
            }
        }
        Call::OldestFile { services, reset, reply } => {
            let _ = reply.send(fleet.and_then(|fleet| fleet.oldest_file(&services, reset, owner)));
        }
        Call::Change(request) => ask(request, owner, fleet, persistence),
    }
}

/// Takes a question or a report of one of the daemon's tasks.
pub(super) fn note(owner: &mut Owner<KernelDataplane>, fleet: Option<&mut Fleet>, call: TaskCall) {
    match call {
        TaskCall::NearBackends { reply } => {
            let _ = reply.send(owner.controller().near_backends().collect());
        }
        TaskCall::FlowsCounted(counts) => owner.count_flows(counts),
        TaskCall::Discovered { service, source, refused } => {
            owner.discovery_done(&service, &source, refused.as_ref());
        }
        TaskCall::Tell(tally) => {
            if let Some(fleet) = fleet {
                fleet.handle(Input::Tally(tally), owner);
            }
        }
    }
}

/// Takes what a task has read from a source.
pub(super) fn note_read(owner: &mut Owner<KernelDataplane>, read: SourceRead) {
    match read {
        SourceRead::List { source, read } => owner.list_was_read(source, read),
        SourceRead::DenyFile { file, read } => owner.deny_file_was_read(file, read),
    }
}

/// Takes a report about the load of a backend, and requests the resulting change.
pub(super) fn note_load(
    owner: &mut Owner<KernelDataplane>,
    persistence: &mut Persistence,
    fleet: Option<&mut Fleet>,
    report: LoadReport,
) {
    let change = match report {
        LoadReport::Agent { name, answer } => owner.agent_answered(name, answer),
        LoadReport::Header { name, words } => {
            // In a fleet, each member makes checks, but only the leader makes decisions.
            let decides = fleet.as_ref().is_none_or(|fleet| fleet.leads());
            owner.load_said(name, words.as_deref()).filter(|_| decides)
        }
    };
    if let Some(change) = change {
        lower(change, owner, fleet, persistence);
    }
}

/// Returns the effects that a change would have, or the reason why the controller would refuse the change. Other
/// threads build the tables and scan the client table, so that no other caller has to wait.
async fn plan(planning: Planning, checker: Checker) -> Result<Planned, Refused> {
    let (draft, wanted) = spawn_blocking(|| planning.draft()).await.map_err(not_worked_out)??;
    if let Some(wanted) = wanted {
        checker.check(wanted).await.map_err(|error| Refused::Conflict(format!("nothing was changed: {error:#}")))?;
    }
    spawn_blocking(|| draft.count()).await.map_err(not_worked_out)
}

/// Passes a request for a change to the fleet, if there is a fleet and the request concerns services, and otherwise to
/// the persistence.
fn ask(request: Request, owner: &mut Owner<KernelDataplane>, fleet: Option<&mut Fleet>, persistence: &mut Persistence) {
    match (fleet, &request.change_request) {
        (Some(fleet), ChangeRequest::Change(_)) => fleet.change_request(request, owner),
        (Some(_) | None, ChangeRequest::Change(_) | ChangeRequest::Reread(_) | ChangeRequest::Withdraw(_)) => {
            persistence.ask(request)
        }
    }
}

/// Requests the change that follows from an agent's answer or from a backend's load. If the change is refused, the next
/// answer requests it again.
fn lower(change: Change, owner: &mut Owner<KernelDataplane>, fleet: Option<&mut Fleet>, persistence: &mut Persistence) {
    let (reply, answer) = oneshot::channel();
    let request = Request { change_request: ChangeRequest::Change(change), uid: None, if_generation: None, reply };
    ask(request, owner, fleet, persistence);
    tokio::spawn(async {
        if let Ok(Err(refused)) = answer.await {
            warn!("a change that an agent or the load of backends requires was refused: {refused}");
        }
    });
}

/// Requests the changes that follow from the current loads of backends. If a change is refused, the next evaluation
/// requests it again.
pub(super) fn bound(owner: &mut Owner<KernelDataplane>, mut fleet: Option<&mut Fleet>, persistence: &mut Persistence) {
    let decides = fleet.as_ref().is_none_or(|fleet| fleet.leads());
    let mut changes = owner.look_at_loads(decides);
    if decides {
        changes.extend(owner.look_at_limits());
    }
    for change in changes {
        lower(change, owner, fleet.as_deref_mut(), persistence);
    }
}

/// Requests the changes that follow from the current lists of targets.
pub(super) fn discover(
    owner: &mut Owner<KernelDataplane>,
    mut fleet: Option<&mut Fleet>,
    persistence: &mut Persistence,
    calls: &TaskCalls,
) {
    for change in owner.discoveries() {
        let Change::Discover { service, source, .. } = &change else { continue };
        let (service, source) = (service.clone(), source.clone());
        let (reply, answer) = oneshot::channel();
        let request = Request { change_request: ChangeRequest::Change(change), uid: None, if_generation: None, reply };
        ask(request, owner, fleet.as_deref_mut(), persistence);
        let calls = calls.clone();
        tokio::spawn(async move {
            // A dropped channel means that the controller is about to end.
            let Ok(done) = answer.await else { return };
            let _ = calls.send(TaskCall::Discovered { service, source, refused: done.err() }).await;
        });
    }
}

/// Makes a change whose resulting state is already on disk.
pub(super) fn make(owner: &mut Owner<KernelDataplane>, joining: &mut Joining, ready: Ready) {
    let Ready { request, prepared, precomputed } = ready;
    let Request { change_request, uid, reply, .. } = request;
    let change = match change_request {
        ChangeRequest::Change(change) => change,
        ChangeRequest::Reread(config) => Change::Reload(config),
        ChangeRequest::Withdraw(withdrawn) => {
            let changed = owner.set_withdrawn(withdrawn, uid);
            prepared.into_iter().for_each(Prepared::made);
            let _ = reply.send(Ok(changed));
            return;
        }
    };
    let name = if let Change::Add { name, .. } = &change { Some(name.clone()) } else { None };
    let before = name.as_ref().map(|name| owner.slots_moved(&name.service));
    let changed = owner.change(change, uid, precomputed);
    if changed.is_ok() {
        prepared.into_iter().for_each(Prepared::made);
    }
    match (name, before) {
        (Some(name), Some(before)) if changed.is_ok() && owner.waits_for_next_hop(&name) => {
            joining.joins.push(Join { name, before, uid, until: Instant::now() + FIRST_NEXT_HOPS, reply });
        }
        _ => match changed.transpose() {
            Some(changed) => {
                let _ = reply.send(changed);
            }
            None => joining.forgetting.push_back(reply),
        },
    }
}

/// A scan that forgets the clients of a backend, and the channel for the answer.
pub(super) struct ForgettingPass {
    forgetting: Forgetting,
    reply: oneshot::Sender<Result<ForgottenView, Refused>>,
}

/// Continues the first of the scans for about a millisecond.
pub(super) fn forget_part(owner: &mut Owner<KernelDataplane>, passes: &mut VecDeque<ForgettingPass>) {
    let Some(mut pass) = passes.pop_front() else { return };
    match owner.forget_more(&mut pass.forgetting) {
        Some(view) => {
            let _ = pass.reply.send(Ok(view));
        }
        None => passes.push_front(pass),
    }
}

/// Completed changes whose answers have to wait until the consequences of the change are known.
#[derive(Default)]
pub(super) struct Joining {
    /// The added backends that wait for their next hops.
    joins: Vec<Join>,
    /// The channels for answers to changes that are still forgetting clients, in the order of the changes.
    forgetting: VecDeque<oneshot::Sender<Result<Changed, Refused>>>,
}

struct Join {
    name: BackendName,
    before: (u64, u64),
    uid: Option<u32>,
    until: Instant,
    reply: oneshot::Sender<Result<Changed, Refused>>,
}

impl Joining {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.joins.iter().map(|join| join.until).min()
    }

    /// Answers each request whose consequences have become known or that has waited too long.
    pub(super) fn answer(&mut self, owner: &mut Owner<KernelDataplane>) {
        while let Some(changed) = owner.take_told() {
            if let Some(reply) = self.forgetting.pop_front() {
                let _ = reply.send(Ok(changed));
            }
        }
        let now = Instant::now();
        for join in std::mem::take(&mut self.joins) {
            if owner.waits_for_next_hop(&join.name) && now < join.until {
                self.joins.push(join);
            } else {
                let _ = join.reply.send(Ok(owner.added(&join.name, join.before, join.uid)));
            }
        }
    }
}
