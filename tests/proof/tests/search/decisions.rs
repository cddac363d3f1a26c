//! The controller's decisions.

use std::sync::Arc;

use balancer_common::verdict::MoveCause;
use balancer_control::io::{BackendId, BackendSpec, Command};
use balancer_proof::decisions::{Decisions, Event, Real, Rule};

use crate::{finds, holds};

const fn of(events: &'static [Event]) -> Decisions<Real> {
    Decisions { rule: Real, events, periods: 3 }
}

/// Checks fail, and an operator drains.
const FAILURES: Decisions<Real> = of(&[
    Event::Passes(0),
    Event::FailsSoftly(0),
    Event::FailsHard(0),
    Event::FailsHard(1),
    Event::Passes(1),
    Event::Drain(0),
    Event::Ready(0),
    Event::Sweep,
    Event::Wait,
]);

/// Backends come and go.
const MEMBERS: Decisions<Real> = of(&[
    Event::Add(2),
    Event::Remove(0, false),
    Event::Remove(2, true),
    Event::Add(0),
    Event::Weight(0, 0),
    Event::Weight(0, 100),
    Event::Sweep,
    Event::Wait,
    Event::Restart,
]);

/// Rules and the share of steered clients change, and other programs report clients.
const RULES: Decisions<Real> = of(&[
    Event::Pin(0, 1),
    Event::Unpin(0),
    Event::Steer(0),
    Event::Steer(40),
    Event::Steer(100),
    Event::FailsHard(1),
    Event::Passes(1),
    Event::Import(1, 0),
    Event::Restart,
]);

const LANDING: usize = 20_000;

#[test]
fn when_backends_fail_and_drain_then_a_known_client_stays() {
    holds("FAILURES", &FAILURES, LANDING);
}

#[test]
fn when_backends_come_and_go_then_a_known_client_stays() {
    holds("MEMBERS", &MEMBERS, LANDING);
}

#[test]
fn when_rules_and_the_share_change_then_a_known_client_stays() {
    holds("RULES", &RULES, LANDING);
}

/// A wrong rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    /// The table is written before the rows that it names.
    TableFirst,
    /// A backend that drains gives up its clients.
    RowForgetsFlag,
    /// Sweeps do not see the clients of backends.
    SweepIsBlind,
}

impl Rule for Wrong {
    fn order(&self, mut commands: Vec<Command>) -> Vec<Command> {
        if *self == Self::TableFirst {
            commands.sort_by_key(|command| !matches!(command, Command::SwapTable { .. }));
        }
        commands
    }

    fn row(&self, row: Arc<BackendSpec>) -> Arc<BackendSpec> {
        let keeps_known = row.keeps_known && (*self != Self::RowForgetsFlag || row.cause != MoveCause::Drain);
        Arc::new(BackendSpec { keeps_known, ..BackendSpec::clone(&row) })
    }

    fn sweep(&self, known: Vec<(BackendId, u64)>) -> Vec<(BackendId, u64)> {
        if *self == Self::SweepIsBlind { Vec::new() } else { known }
    }
}

const fn wrong(world: Decisions<Real>, rule: Wrong) -> Decisions<Wrong> {
    let Decisions { events, periods, rule: Real } = world;
    Decisions { rule, events, periods }
}

#[test]
fn when_the_rule_is_wrong_then_the_search_finds_it() {
    const FOUND: usize = 100_000;
    for (expression, world, rule) in [
        ("wrong(MEMBERS, Wrong::TableFirst)", MEMBERS, Wrong::TableFirst),
        ("wrong(FAILURES, Wrong::RowForgetsFlag)", FAILURES, Wrong::RowForgetsFlag),
        ("wrong(FAILURES, Wrong::SweepIsBlind)", FAILURES, Wrong::SweepIsBlind),
    ] {
        finds(expression, &wrong(world, rule), FOUND);
    }
}

mod release {
    use super::*;

    const RELEASE: usize = 100_000;

    #[test]
    fn when_more_states_are_visited_then_a_known_client_stays() {
        holds("FAILURES", &FAILURES, RELEASE);
        holds("MEMBERS", &MEMBERS, RELEASE);
        holds("RULES", &RULES, RELEASE);
    }
}
