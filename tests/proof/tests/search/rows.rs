//! The rows of `snat` connections.

use balancer_common::flows::{FLOW_ESTABLISHED, FlowWord, IdleTicks, Life, Segment, expendable};
use balancer_proof::rows::{Back, From, Packet, Real, Rows, Rule};

use crate::{finds, holds};

/// Three clients, two rows and two ports; packets follow each other.
const ONE: Rows<Real> = Rows {
    rule: Real,
    packets: 0,
    clients: 3,
    there: &[
        From::Syn(0),
        From::Syn(1),
        From::Ack,
        From::Fin,
        From::Reset,
        From::ForgedReset,
        From::ForgedFin,
        From::ForgedSyn,
    ],
    back: &[Back::Answer, Back::Data, Back::Fin, Back::Reset],
    begun: &[],
    arrivals: 0,
};

/// Two of three clients open connections at once.
const OPENING: Rows<Real> = Rows { packets: 2, there: &[From::Syn(0), From::Syn(1)], back: &[], arrivals: 2, ..ONE };

/// A client's packet meets the packet of another client that needs a row, while both rows are half open.
const CONFIRMING: Rows<Real> = Rows {
    there: &[From::Syn(0), From::Ack],
    back: &[Back::Answer, Back::Data],
    begun: &[
        Packet::There(0, From::Syn(0)),
        Packet::There(1, From::Syn(0)),
        Packet::Reply(100, Back::Answer),
        Packet::Reply(101, Back::Answer),
    ],
    ..OPENING
};

/// Two clients open connections at once, while both rows are half open.
const CROWDED: Rows<Real> = Rows { there: &[From::Syn(0)], back: &[], ..CONFIRMING };

const LANDING: usize = 20_000;
const MANY: usize = 400_000;

#[test]
fn when_packets_follow_each_other_then_no_row_with_data_is_given_away() {
    holds("ONE", &ONE, LANDING);
}

#[test]
fn when_connections_are_opened_at_once_then_they_share_no_row_and_no_port() {
    holds("OPENING", &OPENING, 200_000);
}

#[test]
fn when_a_connection_is_confirmed_while_its_row_is_wanted_then_it_stays() {
    holds("CONFIRMING", &CONFIRMING, MANY);
}

/// A wrong rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    /// A connection that carries data gives way.
    OpenGivesWay,
    /// A row is taken by a store instead of a comparison.
    Store,
    /// A row is published before its port is known.
    PublishedEarly,
    /// The sequence number of a reset is not compared.
    NumberIgnored,
}

const IDLE: IdleTicks = IdleTicks { tcp: 3, udp: 3, udp_once: 1, half_open: 1, closing: 1 };

impl Rule for Wrong {
    fn expendable(&self, word: FlowWord, rank: u32, now: u32) -> u32 {
        let state = if *self == Self::OpenGivesWay { word.state() & !FLOW_ESTABLISHED } else { word.state() };
        let seen = if word == FlowWord::EMPTY { word } else { word.with(state, word.seen()) };
        expendable(seen, rank, now, &IDLE)
    }

    fn after(&self, life: Life, segment: Segment) -> Life {
        let is_guessed = *self == Self::NumberIgnored && segment.rst && segment.by_client;
        life.after(if is_guessed { Segment { sequence: life.numbers.next, ..segment } } else { segment })
    }

    fn compares(&self) -> bool {
        *self != Self::Store
    }

    fn publishes_last(&self) -> bool {
        *self != Self::PublishedEarly
    }
}

const fn wrong(world: Rows<Real>, rule: Wrong) -> Rows<Wrong> {
    let Rows { packets, clients, there, back, begun, arrivals, rule: Real } = world;
    Rows { rule, packets, clients, there, back, begun, arrivals }
}

#[test]
fn when_the_rule_is_wrong_then_the_search_finds_it() {
    const FOUND: usize = 2_000_000;
    for (expression, world, rule) in [
        ("wrong(ONE, Wrong::OpenGivesWay)", ONE, Wrong::OpenGivesWay),
        ("wrong(ONE, Wrong::NumberIgnored)", ONE, Wrong::NumberIgnored),
        ("wrong(CONFIRMING, Wrong::Store)", CONFIRMING, Wrong::Store),
        ("wrong(OPENING, Wrong::PublishedEarly)", OPENING, Wrong::PublishedEarly),
    ] {
        finds(expression, &wrong(world, rule), FOUND);
    }
}

mod release {
    use super::*;

    #[test]
    fn when_more_states_are_visited_then_no_row_with_data_is_given_away() {
        holds("ONE", &ONE, 150_000);
    }

    #[test]
    fn when_connections_are_opened_at_once_in_full_rows_then_each_packet_goes_its_own_way() {
        holds("CROWDED", &CROWDED, 3_000_000);
    }
}
