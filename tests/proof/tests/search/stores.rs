//! Packets and the controller at the same memory.

use balancer_common::{
    client_table::{Entries, Entry},
    map_types::SLOT_EXCEPTIONS,
    memory::{Answer, BackendFacts, consult},
    query::Query,
};
use balancer_proof::{
    machine::Mutant,
    stores::{Kind, Real, Rule, Stores, Task},
};

use crate::{finds, holds};

/// Tables are swapped and swept while packets of one client are on their way.
const SWAPS: Stores<Real> = Stores {
    rule: Real,
    clients: 1,
    packets: 2,
    kinds: &[Kind::Opens, Kind::Data],
    tasks: &[Task::Swap(0), Task::Swap(1), Task::Period, Task::Sweep],
    lines: 3,
};

/// The map of slots has no line to spare.
const REUSE: Stores<Real> = Stores { lines: 2, tasks: &[Task::Swap(0), Task::Swap(1), Task::Swap(2)], ..SWAPS };

/// A backend gives up its clients and returns.
const FAILURES: Stores<Real> =
    Stores { tasks: &[Task::Swap(0), Task::Swap(1), Task::Fail(1), Task::Return(1), Task::Sweep], ..SWAPS };

/// QUIC connections bring a client to another backend.
const MIGRATIONS: Stores<Real> = Stores {
    kinds: &[Kind::Data, Kind::Brings(2)],
    tasks: &[Task::Swap(0), Task::Swap(1), Task::Period, Task::Sweep],
    ..SWAPS
};

/// Two clients are recorded in the same bucket.
const STRANGERS: Stores<Real> =
    Stores { clients: 2, kinds: &[Kind::Opens, Kind::Data], tasks: &[Task::Swap(0), Task::Swap(1)], ..SWAPS };

/// One packet at a time, at any point of the controller's tasks.
const ALONE: Stores<Real> = Stores { packets: 1, kinds: &[Kind::Data], ..SWAPS };

const LANDING: usize = 60_000;

#[test]
fn when_one_packet_at_a_time_meets_swaps_and_sweeps_then_a_known_client_stays() {
    holds("ALONE", &ALONE, LANDING);
}

#[test]
fn when_tables_are_swapped_and_swept_then_a_known_client_stays() {
    holds("SWAPS", &SWAPS, LANDING);
}

#[test]
fn when_lines_are_reused_then_no_packet_reads_a_line_that_is_being_written() {
    holds("REUSE", &REUSE, LANDING);
}

#[test]
fn when_a_backend_fails_and_returns_then_its_clients_leave_and_all_others_stay() {
    holds("FAILURES", &FAILURES, LANDING);
}

#[test]
fn when_connections_bring_a_client_elsewhere_then_it_stays_there() {
    holds("MIGRATIONS", &MIGRATIONS, LANDING);
}

#[test]
fn when_a_stranger_shares_the_bucket_then_a_known_client_stays() {
    holds("STRANGERS", &STRANGERS, LANDING);
}

/// A wrong rule.
#[derive(Clone, Copy, Debug)]
enum Wrong {
    /// Packets ignore the flag of a slot.
    FlagIgnored,
    /// The lines of a new table lack the flags.
    FlagForgotten,
    /// The controller does not wait for packets on their way.
    NoGrace,
    /// The tag of an entry is not compared.
    TagIgnored,
    /// A client stays at a backend that gives up its clients.
    StandingIgnored,
}

/// A bucket in which each entry seems to belong to the client.
struct Tagless<'a, B>(&'a B, u32);

impl<B: Entries> Entries for Tagless<'_, B> {
    fn load(&self, index: usize) -> Entry {
        let entry = self.0.load(index);
        if entry.is_empty() { entry } else { Entry(entry.0 & 0xffff_ffff | u64::from(self.1) << 32) }
    }

    fn store(&self, index: usize, entry: Entry) {
        self.0.store(index, entry);
    }
}

impl Rule for Wrong {
    fn consult(&self, bucket: &impl Entries, query: &Query, facts: impl Fn(u16) -> Option<BackendFacts>) -> Answer {
        let all_keep = |of| BackendFacts { keeps_known: true, ..of };
        match self {
            Self::TagIgnored => consult(&Tagless(bucket, query.tag()), query, facts, || true),
            Self::StandingIgnored => consult(bucket, query, |id| facts(id).map(all_keep), || true),
            _ => consult(bucket, query, facts, || true),
        }
    }

    fn reads_entry(&self, flags: u64) -> bool {
        flags & SLOT_EXCEPTIONS != 0 && !matches!(self, Self::FlagIgnored)
    }

    fn mutant(&self) -> Mutant {
        match self {
            Self::FlagForgotten => Mutant { flags: |flags| flags & !0xffff_ffff, ..Mutant::NONE },
            Self::NoGrace => Mutant { is_over: |_| true, ..Mutant::NONE },
            _ => Mutant::NONE,
        }
    }
}

const fn wrong(world: Stores<Real>, rule: Wrong) -> Stores<Wrong> {
    let Stores { clients, packets, kinds, tasks, lines, rule: Real } = world;
    Stores { rule, clients, packets, kinds, tasks, lines }
}

#[test]
fn when_the_rule_is_wrong_then_the_search_finds_it() {
    const FOUND: usize = 400_000;
    for (expression, world, rule) in [
        ("wrong(SWAPS, Wrong::FlagIgnored)", SWAPS, Wrong::FlagIgnored),
        ("wrong(SWAPS, Wrong::FlagForgotten)", SWAPS, Wrong::FlagForgotten),
        ("wrong(REUSE, Wrong::NoGrace)", REUSE, Wrong::NoGrace),
        ("wrong(STRANGERS, Wrong::TagIgnored)", STRANGERS, Wrong::TagIgnored),
        ("wrong(FAILURES, Wrong::StandingIgnored)", FAILURES, Wrong::StandingIgnored),
    ] {
        finds(expression, &wrong(world, rule), FOUND);
    }
}

mod release {
    use super::*;

    const RELEASE: usize = 300_000;

    #[test]
    fn when_more_states_are_visited_then_a_known_client_stays() {
        for (expression, world) in [("ALONE", ALONE), ("SWAPS", SWAPS), ("MIGRATIONS", MIGRATIONS)] {
            holds(expression, &world, RELEASE);
        }
    }
}
