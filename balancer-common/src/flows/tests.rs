use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

const IDLE: IdleTicks = IdleTicks { tcp: 900, udp: 60, half_open: 30, closing: 10 };
const NONE: Said = Said { by_client: true, datagram: false, syn: false, fin: false, rst: false, ack: false };

fn client(said: Said) -> Said {
    Said { by_client: true, ..said }
}

fn backend(said: Said) -> Said {
    Said { by_client: false, ..said }
}

fn after(packets: &[Said]) -> FlowWord {
    FlowWord::new(7, packets.iter().fold(FLOW_TAKEN, |state, said| next(state, *said)), 100)
}

const SYN: Said = Said { syn: true, ..NONE };
const SYN_ACK: Said = Said { syn: true, ack: true, by_client: false, ..NONE };
const ACK: Said = Said { ack: true, ..NONE };
const FIN: Said = Said { ack: true, fin: true, ..NONE };
const RST: Said = Said { rst: true, ..NONE };

#[test]
fn when_a_handshake_is_complete_then_a_flow_is_open() {
    assert_eq!(after(&[SYN]).phase(), Phase::HalfOpen);
    assert_eq!(after(&[SYN, SYN]).phase(), Phase::HalfOpen);
    assert_eq!(after(&[SYN, SYN_ACK]).phase(), Phase::HalfOpen);
    assert_eq!(after(&[SYN, ACK]).phase(), Phase::HalfOpen);
    assert_eq!(after(&[SYN, SYN_ACK, ACK]).phase(), Phase::Open);
}

#[test]
fn when_both_ends_close_then_a_flow_is_closing() {
    let open = [SYN, SYN_ACK, ACK];
    let with = |more: &[Said]| after(&[&open, more].concat()).phase();
    assert_eq!(with(&[client(FIN)]), Phase::Open);
    assert_eq!(with(&[backend(FIN)]), Phase::Open);
    assert_eq!(with(&[client(FIN), backend(FIN), client(ACK)]), Phase::Closing);
    assert_eq!(with(&[backend(FIN), client(FIN), backend(ACK)]), Phase::Closing);
}

/// The last age at which an ended flow's address and port are not free.
fn rests(word: FlowWord) -> Option<u32> {
    (0..=REST_TICKS).rev().find(|age| !word.may_go(100 + age, &IDLE))
}

#[test]
fn when_the_backend_closes_first_then_the_port_rests_and_otherwise_it_does_not() {
    let open = [SYN, SYN_ACK, ACK];
    let with = |more: &[Said]| after(&[&open, more].concat());
    let closing = Some(IDLE.closing);
    for (segments, expected) in [
        (vec![backend(FIN), client(FIN)], Some(REST_TICKS)),
        (vec![backend(FIN), client(ACK), client(FIN), backend(ACK)], Some(REST_TICKS)),
        (vec![client(FIN), backend(ACK), backend(FIN), client(ACK)], closing),
        (vec![client(FIN), backend(FIN), backend(FIN), client(FIN), client(ACK)], closing),
        (vec![client(RST)], closing),
        (vec![backend(RST)], closing),
        (vec![backend(FIN), client(FIN), client(RST)], closing),
    ] {
        let word = with(&segments);
        assert_eq!(rests(word), expected, "{segments:?}");
        // A new connection from the same client port hides the flow.
        let hidden = word.with(word.state() | FLOW_RESTS, 100);
        assert_eq!(rests(hidden), expected.filter(|&rest| rest == REST_TICKS), "{segments:?}");
    }
    let patient = IdleTicks { closing: 3 * REST_TICKS, ..IDLE };
    assert!(with(&[client(RST)]).may_go(101 + REST_TICKS, &patient));
}

#[test]
fn when_a_flow_is_reset_before_it_carries_data_then_the_next_attempt_continues_it() {
    for segments in [vec![SYN, backend(RST)], vec![SYN, SYN_ACK, client(RST)], vec![SYN, SYN, backend(RST)]] {
        let refused = after(&segments);
        assert_eq!(refused.phase(), Phase::Refused, "{segments:?}");
        assert!(!refused.has_ended(100, &IDLE) && refused.gives_way(100, &IDLE) && !refused.counts(100, &IDLE));
        assert_eq!(rests(refused), Some(IDLE.closing));
        assert_eq!(after(&[&segments[..], &[SYN]].concat()).phase(), Phase::HalfOpen);
    }
}

#[test]
fn when_a_segment_comes_after_a_reset_then_the_flow_goes_on() {
    let open = [SYN, SYN_ACK, ACK];
    let with = |more: &[Said]| after(&[&open, more].concat()).phase();
    assert_eq!(with(&[client(RST)]), Phase::Closing);
    assert_eq!(with(&[client(RST), backend(ACK)]), Phase::Open);
}

#[test]
fn when_a_client_asks_again_after_an_answer_then_its_flow_is_open() {
    let datagram = Said { datagram: true, ..NONE };
    let [ask, answer] = [client(datagram), backend(datagram)];
    assert_eq!(after(&[ask]).phase(), Phase::HalfOpen);
    assert_eq!(after(&[ask, ask, answer, answer]).phase(), Phase::HalfOpen);
    assert_eq!(after(&[ask, answer, ask]).phase(), Phase::Open);
}

#[test]
fn when_a_flow_is_idle_for_its_time_then_it_ends_and_its_port_rests() {
    for (state, lives, gone) in [
        (FLOW_TAKEN, 30, 30),
        (FLOW_TAKEN | FLOW_ANSWERED | FLOW_ESTABLISHED, 900, 900),
        (FLOW_TAKEN | FLOW_DATAGRAMS, 30, 30),
        (FLOW_TAKEN | FLOW_ANSWERED | FLOW_DATAGRAMS, 60, 60),
        (FLOW_TAKEN | FLOW_ANSWERED | FLOW_ESTABLISHED | FLOW_DATAGRAMS, 60, 60),
        (FLOW_TAKEN | FLOW_RESET, 10, 10),
        (FLOW_TAKEN | FLOW_ANSWERED | FLOW_ESTABLISHED | FLOW_RESET, 10, 10),
        (FLOW_TAKEN | FLOW_CLIENT_ENDS | FLOW_BACKEND_ENDS, 10, 10),
        (FLOW_TAKEN | FLOW_ESTABLISHED | FLOW_CLIENT_ENDS | FLOW_BACKEND_ENDS, 10, REST_TICKS),
    ] {
        // The second start lies just before the tick counter wraps around.
        for begin in [100, TICK_MASK - 20] {
            let word = FlowWord::new(7, state, begin);
            let at = |age: u32| begin.wrapping_add(age);
            assert!(word.lives(at(lives), &IDLE) && !word.lives(at(lives + 1), &IDLE), "{state}");
            assert!(!word.may_go(at(gone), &IDLE) && word.may_go(at(gone + 1), &IDLE), "{state}");
        }
    }
    let rests = FlowWord::new(7, FLOW_TAKEN | FLOW_RESTS, 100);
    assert!(!rests.lives(100, &IDLE) && !rests.may_go(100 + REST_TICKS, &IDLE) && !rests.is_found_by(7));
}

#[test]
fn when_another_cpu_saw_a_flow_later_then_it_is_not_old() {
    assert_eq!(FlowWord::new(7, FLOW_TAKEN, 101).age(100), 0);
}

#[test]
fn when_a_pool_is_small_then_all_of_it_is_tried() {
    for (addresses, first, last) in [(1, 20_000, 20_009), (3, 20_000, 20_007), (8, 5, 5), (1, 1, 256)] {
        for start in [0, 7, u32::MAX / 3, u32::MAX] {
            let tried: HashSet<_> =
                (0..PORT_TRIES).map(|attempt| candidate(start, attempt, addresses, first, last)).collect();
            assert_eq!(tried.len(), (addresses * u32::from(last - first + 1)) as usize, "{start}");
        }
    }
}

#[test]
fn when_a_place_is_wanted_then_what_has_not_carried_data_and_what_has_ended_gives_way() {
    let at = |state, seen| FlowWord::new(7, state, seen);
    let open = FLOW_TAKEN | FLOW_ANSWERED | FLOW_ESTABLISHED;
    let closed = open | FLOW_CLIENT_ENDS | FLOW_BACKEND_ENDS;
    let order = [
        FlowWord::EMPTY,
        at(open, 99),
        at(closed, 1000 - REST_TICKS - 1),
        at(FLOW_TAKEN | FLOW_ANSWERED | FLOW_RESET, 997),
        at(FLOW_TAKEN, 980),
        at(FLOW_TAKEN, 998),
        at(FLOW_TAKEN | FLOW_ANSWERED, 980),
        at(FLOW_TAKEN | FLOW_ANSWERED | FLOW_DATAGRAMS, 981),
        at(closed & !FLOW_ESTABLISHED, 999),
        at(closed, 950),
        at(closed | FLOW_RESTS, 999),
        at(FLOW_TAKEN | FLOW_ANSWERED | FLOW_RESET, 998),
        at(FLOW_TAKEN, 999),
        at(FLOW_TAKEN | FLOW_ANSWERED, 999),
    ];
    let scores = order.map(|word| expendable(word, 3, 1000, &IDLE));
    assert!(scores.is_sorted_by(|one, other| one > other), "{scores:?}");
    assert!(scores.iter().all(|score| score & 15 == 3));
    assert_eq!(scores.map(is_gone).iter().filter(|&&gone| gone).count(), 3);
    // A row that another CPU is writing stays.
    let writing = at(FLOW_TAKEN | FLOW_RESTS, 1000);
    for stays in [at(open, 100), at(open, 1000), at(open | FLOW_RESET, 990), at(open | FLOW_BACKEND_ENDS, 999), writing]
    {
        assert_eq!(expendable(stays, 3, 1000, &IDLE), 0);
        assert!(!stays.gives_way(1000, &IDLE));
    }
}

/// All segments that either end may send.
const SEGMENTS: [Said; 9] = [
    SYN,
    ACK,
    FIN,
    RST,
    Said { by_client: false, ..SYN },
    SYN_ACK,
    Said { by_client: false, ..ACK },
    Said { by_client: false, ..FIN },
    Said { by_client: false, ..RST },
];

/// Calls `look` with each sequence of up to `length` segments.
fn each_sequence(length: usize, sequence: &mut Vec<Said>, look: &mut impl FnMut(&[Said])) {
    look(sequence);
    if length > 0 {
        for segment in SEGMENTS {
            sequence.push(segment);
            each_sequence(length - 1, sequence, look);
            sequence.pop();
        }
    }
}

#[test]
fn when_any_segments_come_then_a_flow_that_carries_data_stays_and_only_a_backend_that_closed_first_makes_a_port_rest() {
    let length = if cfg!(miri) { 2 } else { 5 };
    each_sequence(length, &mut vec![SYN], &mut |segments| {
        let word = after(segments);
        let spoke = |said: &Said| said.by_client && said.ack && !said.syn;
        let answer = segments.iter().position(|said| !said.by_client && !said.rst);
        let carries_data = answer.is_some_and(|at| segments[at..].iter().any(spoke));
        let fin = |by_client| segments.iter().position(|said| said.fin && said.by_client == by_client);
        let is_reset = segments.last().is_some_and(|said| said.rst);
        match (fin(true), fin(false)) {
            (Some(client), Some(backend)) => {
                let waits = backend < client && !is_reset;
                assert_eq!(rests(word), Some(if waits { REST_TICKS } else { IDLE.closing }), "{segments:?}");
                assert!(word.gives_way(100, &IDLE), "{segments:?}");
            }
            _ => assert_eq!(word.gives_way(100, &IDLE), !carries_data, "{segments:?}"),
        }
    });
}

proptest! {
    #[test]
    fn when_a_candidate_is_chosen_then_it_is_in_the_pool(start: u32, attempt in 0..PORT_TRIES, addresses in 1u32..=8, first in 1u16.., length: u16) {
        let last = first.saturating_add(length);
        let (index, port) = candidate(start, attempt, addresses, first, last);
        prop_assert!(index < addresses && (first..=last).contains(&port));
    }

    #[test]
    fn when_a_flow_is_hashed_then_both_buckets_are_in_the_table(hash: u64, count in 1u32..) {
        prop_assert!(first_bucket(hash, count) < count && second_bucket(hash, count) < count);
    }

    #[test]
    fn when_a_word_is_packed_then_its_fields_can_be_read_back(tag: u32, state: u8, now: u32) {
        let word = FlowWord::new(tag, state, now);
        prop_assert_eq!((word.tag(), word.state(), word.age(now)), (tag, state, 0));
    }
}

proptest! {
    #[test]
    fn when_positions_are_ranked_then_the_home_is_first_and_ranks_lead_back(tag: u32, place in 0..FLOWS_PER_LINE) {
        let home = home(tag);
        prop_assert_eq!(rank(home, home), FLOWS_PER_LINE - 1);
        prop_assert!(rank(home, place) < FLOWS_PER_LINE);
        prop_assert_eq!(rank(home, rank(home, place)), place);
    }
}
