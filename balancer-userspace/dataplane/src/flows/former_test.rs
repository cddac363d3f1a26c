use std::sync::RwLock;

use balancer_common::flows::{FLOW_DATAGRAMS, FLOW_RESET, held};
use bytemuck::Zeroable as _;
use proptest::prelude::*;

use super::*;

const OPEN: u8 = FLOW_TAKEN | FLOW_ANSWERED | FLOW_ESTABLISHED;
const ENDED: u8 = OPEN | FLOW_CLIENT_ENDS | FLOW_BACKEND_ENDS;
const HALF_OPEN: u8 = FLOW_TAKEN;

/// Two mappings of one table: the program's mapping and the controller's mapping.
fn table(lines: usize) -> (FlowTable, Source) {
    let [lines, same_lines] = MappedArray::<FlowLine>::twice(lines).unwrap();
    let [rows, same_rows] = MappedArray::twice(lines.len() * PER_LINE).unwrap();
    let [returns, _] = MappedArray::twice(lines.len() * Capacity::RETURNS_PER_LINE as usize).unwrap();
    let [held, _] = MappedArray::twice(held::LINES_PER_BLOCK as usize).unwrap();
    let capacity = lines.len() as u32 * 5;
    (
        FlowTable { lines, rows, returns, held, capacity, times: RwLock::default() },
        Source { lines: same_lines, rows: same_rows },
    )
}

fn former(table: Source) -> FormerFlows {
    FormerFlows { table, pins: Vec::new(), copied: Vec::new(), is_blocked: false, is_replaced: false }
}

/// The connection with this number: its client port and its backend port differ from those of all other connections.
fn flow(number: u64) -> FlowRow {
    let ends = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    FlowRow {
        client: [number as u32, 0, 0, 0],
        pool: [7, 0, 0, 0],
        backend: [(number >> 16) as u32, 0, 0, 0],
        pool_port: number as u16,
        bytes_there: number,
        ends,
        ..FlowRow::zeroed()
    }
}

fn word(row: &FlowRow, state: u8, seen: u32) -> FlowWord {
    FlowWord::new((row.ends >> 32) as u32, state, seen)
}

fn open_one(table: &FlowTable, number: u64, state: u8) -> bool {
    let row = flow(number);
    table.put(&row, word(&row, state, 1)).is_some()
}

fn row_of(table: &FlowTable, number: u64) -> Option<usize> {
    let row = flow(number);
    let count = table.lines.len() as u32;
    [first_bucket(row.ends, count), second_bucket(row.ends, count)]
        .into_iter()
        .flat_map(|bucket| (0..PER_LINE).map(move |place| bucket as usize * PER_LINE + place))
        .find(|&index| FlowWord(table.word(index).load(Ordering::Relaxed)).is_found_by((row.ends >> 32) as u32))
}

/// The state of a connection that packets of both directions find; `None`: they find no connection.
fn state(table: &FlowTable, number: u64) -> Option<u8> {
    let wanted = flow(number);
    let index = row_of(table, number)?;
    let row = table.rows.load(index);
    let entry = ReturnWord(table.returns.words()[row.returns as usize].load(Ordering::Relaxed));
    let ends = u32::from(row.backend_port) | u32::from(row.pool_port) << 16;
    let hash = return_hash(&row.pool, &row.backend, ends, row.protocol);
    let bucket = first_bucket(hash, table.returns.len() as u32);
    let is_right = row == FlowRow { returns: row.returns, ..wanted }
        && entry == ReturnWord::new((hash >> 32) as u32, index as u32)
        && row.returns / FLOWS_PER_LINE == bucket;
    assert!(is_right, "{row:?} {entry:?}");
    Some(FlowWord(table.word(index).load(Ordering::Relaxed)).state())
}

fn set_state(table: &FlowTable, number: u64, state: u8) {
    let index = row_of(table, number).unwrap();
    table.word(index).store(word(&flow(number), state, 2).0, Ordering::Relaxed);
}

fn remove(table: &FlowTable, number: u64) {
    let index = row_of(table, number).unwrap();
    let there = FlowWord(table.word(index).load(Ordering::Relaxed));
    assert!(table.give_up(index, there, 3));
}

fn entries(words: &[AtomicU64]) -> usize {
    words.iter().filter(|word| word.load(Ordering::Relaxed) != 0).count()
}

proptest! {
    #[test]
    fn when_a_table_becomes_larger_then_packets_of_both_directions_find_all_connections(
        from in 1usize..100, more in 1usize..100, seed: u64,
    ) {
        let ((old, source), (new, _)) = (table(from), table(from + more));
        let known: Vec<u64> = (0..from as u64 * 3).map(|number| number ^ seed & 0xffff_ffff).collect();
        let known: Vec<u64> = known.into_iter().filter(|&number| open_one(&old, number, OPEN)).collect();
        former(source).copy_to(&new);
        for number in &known {
            prop_assert_eq!(state(&new, *number), Some(OPEN));
        }
        prop_assert_eq!(entries(new.lines.words()), known.len());
        prop_assert_eq!(entries(new.returns.words()), known.len());
    }
}

#[test]
fn when_a_table_becomes_too_small_then_connections_that_carry_data_come_first() {
    let ((old, source), (new, _)) = (table(64), table(20));
    assert!((0..80).all(|number| open_one(&old, number, OPEN)));
    assert!((80..300).all(|number| open_one(&old, number, HALF_OPEN)));
    former(source).copy_to(&new);
    assert!((0..80).all(|number| state(&new, number) == Some(OPEN)));
    let rest = (80..300).filter(|&number| state(&new, number).is_some()).count();
    assert!((60..=80).contains(&rest), "{rest}");
    assert_eq!(entries(new.lines.words()), entries(new.returns.words()));
}

#[test]
fn when_a_table_is_full_of_ended_connections_then_those_that_carry_data_and_then_ports_that_rest_come_first() {
    let ((old, source), (new, _)) = (table(64), table(20));
    let all = |numbers: std::ops::Range<u64>, state| numbers.into_iter().all(|number| open_one(&old, number, state));
    assert!(all(0..80, HALF_OPEN) && all(80..230, ENDED) && all(230..290, OPEN));
    former(source).copy_to(&new);
    let of = |wanted: u8| (0..290).filter(|&number| state(&new, number) == Some(wanted)).count();
    let counts = [OPEN, ENDED, HALF_OPEN].map(of);
    assert_eq!(counts[0], 60, "{counts:?}");
    assert!((80..=100).contains(&counts[1]) && counts[2] <= 20, "{counts:?}");
}

/// The copy reaches the new connection first, because its row comes before the row of the ended one.
#[test]
fn when_a_new_connection_takes_the_port_of_an_ended_one_during_the_copy_then_it_is_carried_over() {
    let ((old, source), (new, _)) = (table(16), table(32));
    assert!((0..20).all(|number| open_one(&old, number, OPEN)));
    let last = (0..20).max_by_key(|&number| row_of(&old, number)).unwrap();
    let mut former = former(source);
    former.copy_to(&new);
    let ended = row_of(&old, last).unwrap();
    remove(&old, last);
    let next = FlowRow { client: [99, 0, 0, 0], ends: 1, ..flow(last) };
    assert!(old.put(&next, word(&next, HALF_OPEN, 3)).is_some_and(|row| (row as usize) < ended));
    former.block(&new);
    former.replace(&new).unwrap();
    let copied: Vec<FlowRow> = (0..new.rows.len()).map(|index| new.rows.load(index)).collect();
    assert!(copied.iter().any(|row| row.client == next.client && row.pool_port == next.pool_port));
    assert_eq!(entries(new.lines.words()), 20);
}

#[test]
fn when_connections_change_before_the_program_is_replaced_then_the_new_table_follows() {
    let ((old, source), (new, _)) = (table(16), table(32));
    assert!((0..5).all(|number| open_one(&old, number, HALF_OPEN)));
    let mut former = former(source);
    former.copy_to(&new);
    set_state(&old, 1, OPEN);
    remove(&old, 2);
    assert!(open_one(&old, 7, FLOW_TAKEN | FLOW_DATAGRAMS));
    former.block(&new);
    let states = [0, 1, 2, 7].map(|number| state(&new, number));
    assert_eq!(states, [Some(HALF_OPEN), Some(OPEN), None, Some(FLOW_TAKEN | FLOW_DATAGRAMS)]);
    assert!(!open_one(&old, 8, OPEN), "its empty rows are blocked");

    // The old and the new program continue to receive packets.
    set_state(&old, 0, FLOW_TAKEN | FLOW_ANSWERED);
    set_state(&new, 3, FLOW_TAKEN | FLOW_ANSWERED);
    set_state(&old, 3, FLOW_TAKEN | FLOW_CLIENT_ENDS | FLOW_RESET);
    set_state(&new, 4, OPEN);
    remove(&old, 4);
    remove(&old, 1);
    former.replace(&new).unwrap();
    let states = [0, 1, 3, 4].map(|number| state(&new, number));
    let both = FLOW_TAKEN | FLOW_ANSWERED | FLOW_CLIENT_ENDS;
    assert_eq!(states, [Some(FLOW_TAKEN | FLOW_ANSWERED), None, Some(both), Some(OPEN)]);
    assert_eq!(entries(new.lines.words()), entries(new.returns.words()));
}

#[test]
fn when_a_start_fails_after_the_rows_were_blocked_then_the_former_table_opens_connections_again() {
    let ((old, source), (new, _)) = (table(4), table(8));
    assert!(open_one(&old, 1, OPEN));
    let mut former = former(source);
    former.copy_to(&new);
    former.block(&new);
    drop(former);
    assert!(open_one(&old, 2, OPEN) && state(&old, 1) == Some(OPEN));
    assert_eq!(entries(old.lines.words()), 2);
}

#[test]
fn when_the_program_is_writing_a_row_then_it_is_copied_once_it_is_written() {
    let ((old, source), (new, _)) = (table(4), table(8));
    assert!(open_one(&old, 1, OPEN));
    let index = row_of(&old, 1).unwrap();
    let row = flow(1);
    let opening = FlowWord::new(!word(&row, OPEN, 1).tag(), FLOW_TAKEN | FLOW_RESTS, 1);
    old.word(index).store(opening.0, Ordering::Relaxed);
    let mut former = former(source);
    former.copy_to(&new);
    assert_eq!(state(&new, 1), None);
    old.word(index).store(word(&row, OPEN, 1).0, Ordering::Relaxed);
    former.replace(&new).unwrap();
    assert_eq!(state(&new, 1), Some(OPEN));
}

#[test]
fn when_a_connection_rests_then_its_port_stays_taken_in_the_new_table() {
    let ((old, source), (new, _)) = (table(4), table(8));
    assert!(open_one(&old, 1, OPEN | FLOW_RESTS));
    former(source).copy_to(&new);
    assert_eq!((entries(new.lines.words()), entries(new.returns.words())), (1, 1));
    assert!(!open_one(&new, 1, OPEN), "another connection of this address and port");
}

#[test]
fn when_maps_are_of_one_table_then_their_sizes_say_so() {
    assert!(is_whole([Some(2), Some(16), Some(8)]));
    assert!(!is_whole([Some(2), Some(8), Some(8)]));
    assert!(!is_whole([Some(2), None, Some(8)]));
}
