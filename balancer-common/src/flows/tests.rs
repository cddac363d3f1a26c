use proptest::prelude::*;

use super::*;

const IDLE: IdleTicks = IdleTicks { tcp: 900, udp: 60, udp_once: 5, half_open: 30, closing: 10 };
#[test]
fn when_a_flow_is_idle_for_its_time_then_it_ends_and_its_port_rests() {
    for (state, lives, gone) in [
        (FLOW_TAKEN, 30, 30),
        (FLOW_TAKEN | FLOW_ANSWERED | FLOW_ESTABLISHED, 900, 900),
        (FLOW_TAKEN | FLOW_DATAGRAMS, 30, 30),
        (FLOW_TAKEN | FLOW_ANSWERED | FLOW_DATAGRAMS, 5, 5),
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
        at(FLOW_TAKEN | FLOW_ANSWERED | FLOW_DATAGRAMS, 996),
        at(open | FLOW_RESET, 991),
        at(open | FLOW_RESET, 999),
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
    for stays in [at(open, 100), at(open, 1000), at(open | FLOW_BACKEND_ENDS, 999), writing] {
        assert_eq!(expendable(stays, 3, 1000, &IDLE), 0);
        assert!(!stays.gives_way(1000, &IDLE));
    }
}

proptest! {
    #[test]
    fn when_a_candidate_is_chosen_then_it_is_in_the_pool(random: u32, addresses in 1u32..=8, first in 1u16.., length: u16) {
        let last = first.saturating_add(length);
        let (index, port) = candidate(random, addresses, first, last);
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

#[test]
fn when_a_port_is_wanted_then_one_where_the_backend_lets_in_the_new_connection_comes_before_one_where_it_waits() {
    let open = FLOW_TAKEN | FLOW_ANSWERED | FLOW_ESTABLISHED;
    let waits = open | FLOW_CLIENT_ENDS | FLOW_BACKEND_ENDS;
    let order = [
        (FLOW_TAKEN | FLOW_ANSWERED | FLOW_RESET, 990, false, true),
        (FLOW_TAKEN, 990, false, true),
        (FLOW_TAKEN | FLOW_ANSWERED | FLOW_DATAGRAMS, 996, false, true),
        (open | FLOW_RESET, 995, false, true),
        (waits, 995, true, true),
        (waits & !FLOW_ESTABLISHED, 996, false, true),
        (waits, 997, true, true),
        (waits, 970, false, false),
        (FLOW_TAKEN | FLOW_ANSWERED | FLOW_RESET, 999, false, false),
        (FLOW_TAKEN, 1000, false, false),
        (FLOW_TAKEN | FLOW_ANSWERED, 980, false, false),
        (FLOW_TAKEN | FLOW_ANSWERED, 1000, false, false),
    ];
    let score = |(state, seen, lets_in, _): (u8, u32, bool, bool)| {
        let word = FlowWord::new(7, state, seen);
        of_port(word, expendable(word, 0, 1000, &IDLE), lets_in)
    };
    let scores = order.map(score);
    assert!(scores.is_sorted_by(|one, other| one > other), "{scores:?}");
    assert_eq!(scores.map(is_good), order.map(|(_, _, _, good)| good));
    assert_eq!(score((open, 1000, true, false)), 0);
}

#[test]
fn when_both_ends_have_closed_some_time_ago_then_the_port_is_left_unless_the_backend_waits() {
    let open = FLOW_TAKEN | FLOW_ANSWERED | FLOW_ESTABLISHED;
    let waits = open | FLOW_CLIENT_ENDS | FLOW_BACKEND_ENDS;
    for (state, seen, lets_in, leaves) in [
        (waits, 998, true, true),
        (waits, 998, false, false),
        (waits, 999, true, false),
        (waits & !FLOW_ESTABLISHED, 998, false, true),
        (open, 900, true, false),
        (open | FLOW_RESET, 900, true, false),
    ] {
        assert_eq!(FlowWord::new(7, state, seen).leaves(1000, lets_in), leaves, "{state} {seen}");
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
