//! Tests that a plan is correct: for slots immediately, and for clients after every known client has returned.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use balancer_config::states::Admin;
use balancer_control::{
    io::{Change, CheckOutcome},
    plan::{PlannedMove, PlannedService},
};
use balancer_dataplane::Dataplane as _;
use balancer_packet_model::world::{World, client, named};
use balancer_testkit::frame::SYN;

const CLIENTS: u32 = 5_000;

fn admin(backend: &str, admin: Admin) -> Change {
    Change::SetAdmin { name: named(backend), admin, timeout: None }
}

fn plan(world: &mut World, change: Change) -> Result<PlannedService> {
    let plan = world.controller().plan(change, Instant::now())?;
    let planned = plan.counted(|count| {
        if let Some(clients) = world.dataplane_mut().known_clients() {
            clients.for_each_with_origin(count);
        }
    });
    planned.services.into_iter().find(|plan| plan.service == "web").context("no plan")
}

/// Connects every client once, and returns the clients' backends.
fn connect_all(world: &mut World) -> Result<Vec<Option<String>>> {
    (0..CLIENTS).map(|number| world.send(client(number), SYN)).collect()
}

/// The number of clients by old and new backend.
type Flow = BTreeMap<(Option<String>, Option<String>), u64>;

fn slots(world: &World) -> Result<Vec<Option<String>>> {
    let service = world.controller().service("web")?;
    let name = |id: u16| service.backends().iter().find(|b| b.id().0 == id).map(|b| b.name().to_owned());
    Ok(service.live_table().iter().map(|&id| name(id)).collect())
}

fn flow(before: &[Option<String>], after: &[Option<String>]) -> Flow {
    let mut flow = Flow::new();
    for (from, to) in before.iter().zip(after).filter(|(from, to)| from != to) {
        *flow.entry((from.clone(), to.clone())).or_default() += 1;
    }
    flow
}

/// Plans a change, makes the change, and compares the effect of the change with the plan.
#[track_caller]
fn holds(world: &mut World, change: Change) -> Result<PlannedService> {
    let homes = connect_all(world)?;
    let before = slots(world)?;
    let generation = world.controller().service("web")?.table_generation();
    let predicted = plan(world, change.clone())?;
    assert_eq!(world.controller().service("web")?.table_generation(), generation, "a plan changes nothing");
    assert_eq!(slots(world)?, before, "a plan changes nothing");
    let what = format!("{change:?}");
    world.change(change)?;
    let after = slots(world)?;
    let of = |count: fn(&PlannedMove) -> u64| -> Flow {
        let moves = predicted.moves.iter().filter(|moved| count(moved) > 0);
        moves.map(|moved| ((moved.from.clone(), moved.to.clone()), count(moved))).collect()
    };
    assert_eq!(of(|moved| moved.slots.into()), flow(&before, &after), "slots, {what}");
    assert_eq!(u64::from(predicted.slots_moved), flow(&before, &after).values().sum::<u64>());
    let moved = flow(&homes, &connect_all(world)?);
    assert_eq!(of(|moved| moved.clients), moved, "clients, {what}");
    assert_eq!(predicted.known_clients_moved, moved.values().sum::<u64>());
    Ok(predicted)
}

fn sequence(settings: &str) -> Result<()> {
    let mut world =
        World::new(&format!("remember = \"600s\"\ndrain = {{ timeout = \"60s\" }}\n{settings}"), 4, 65_536)?;
    let address = "10.0.0.15".parse()?;
    let added = holds(
        &mut world,
        Change::Add {
            name: named("web5"),
            address,
            address6: None,
            port: None,
            weight: None,
            backup: false,
            limits: Default::default(),
        },
    )?;
    assert!(added.slots_moved > 12_000, "{added:?}");
    assert_eq!(added.known_clients_moved, 0);
    holds(&mut world, Change::SetWeight { name: named("web1"), weight: 10 })?;
    world.pass(2)?;
    let drained = holds(&mut world, admin("web2", Admin::Drain))?;
    assert_eq!(drained.known_clients_moved, 0);
    assert_eq!(drained.known_clients_draining, world.shown("web2")?.1);
    assert!(drained.known_clients_draining > 500, "{drained:?}");
    let maint = holds(&mut world, admin("web3", Admin::Maint))?;
    assert!(maint.known_clients_moved > 500, "{maint:?}");
    assert!(maint.moves.iter().all(|moved| moved.clients == 0 || moved.from.as_deref() == Some("web3")));
    holds(&mut world, admin("web2", Admin::Ready))?;
    holds(&mut world, admin("web3", Admin::Ready))?;
    world.pass(2)?;
    let removed = holds(&mut world, Change::Remove { name: named("web4"), force: true })?;
    assert!(removed.known_clients_moved > 500, "{removed:?}");
    // The plan must not contain clients that move for reasons other than the planned change.
    connect_all(&mut world)?;
    world.checked("web1", &CheckOutcome::Hard("refused".to_owned()), 3)?;
    let planned = plan(&mut world, Change::SetWeight { name: named("web2"), weight: 200 })?;
    assert_eq!(planned.known_clients_moved, 0);
    // Once no backend is left, the service drops or keeps its clients, depending on a setting.
    for backend in ["web2", "web3"] {
        holds(&mut world, admin(backend, Admin::Maint))?;
    }
    holds(&mut world, admin("web5", Admin::Maint))?;
    world.pass(Duration::from_secs(2).as_secs())
}

#[test]
fn when_a_change_is_planned_then_the_plan_is_what_happens() -> Result<()> {
    sequence("")
}

#[test]
fn when_moved_clients_return_then_the_plan_is_what_happens() -> Result<()> {
    sequence("failback = \"return\"")
}

#[test]
fn when_clients_are_dropped_without_backends_then_the_plan_is_what_happens() -> Result<()> {
    sequence("when_all_down = \"drop\"")
}
