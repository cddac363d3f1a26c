//! Tests of sending and importing records, and of the choice between two places (backends) of a client.

use std::{cell::Cell, sync::LazyLock};

use balancer_common::client_table::bucket;

use super::*;

mod counts;

struct Cells(Vec<Cell<u64>>);

impl Cells {
    fn new(buckets: usize) -> Self {
        Self(vec![Cell::new(0); buckets * BUCKET_ENTRIES])
    }

    fn put(&self, index: usize, entry: Entry) {
        self.0[index].set(entry.0);
    }
}

impl Table for Cells {
    fn entries(&self) -> usize {
        self.0.len()
    }

    fn load(&self, index: usize) -> Entry {
        Entry(self.0.get(index).map_or(0, Cell::get))
    }

    fn exchange(&self, index: usize, old: Entry, new: Entry) -> bool {
        let is = self.0[index].get() == old.0;
        if is {
            self.0[index].set(new.0);
        }
        is
    }
}

const NOW: u16 = 1000;

/// The backends 1 to 19 belong to one service.
fn backends(id: u16) -> Option<Facts> {
    (1..20).contains(&id).then_some(Facts { service: 0, tick: NOW, remember: 400, keeps: true })
}

fn established(tag: u32, backend: u16, age: u16) -> Entry {
    Entry::heard_of(tag, backend, false, age, NOW)
}

fn all(sharing: &mut Sharing, table: &Cells, epoch: u32) -> Vec<Record> {
    sharing.collect(table, &backends, epoch, |_| false)
}

fn heard(epoch: u32) -> Heard<'static> {
    static NONE: LazyLock<Emptied> = LazyLock::new(Emptied::default);
    Heard { precedes: false, epoch, emptied: &NONE }
}

fn record(tag: u32, backend: u16, epoch: u32) -> Record {
    Record { bucket: 0, tag, backend, away: false, moved: false, age: 0, epoch }
}

#[test]
fn when_a_client_is_known_then_it_is_told_once_and_again_when_it_moves_or_a_quarter_has_passed() {
    let (table, mut sharing) = (Cells::new(2), Sharing::new(16));
    sharing.has_told(0);
    table.put(9, established(7, 3, 200));
    let told = all(&mut sharing, &table, 5);
    assert_eq!(told, [Record { bucket: 1, age: 200, ..record(7, 3, 5) }]);
    assert_eq!(all(&mut sharing, &table, 6), []);
    table.put(9, established(7, 3, 101));
    assert_eq!(all(&mut sharing, &table, 6), []);
    table.put(9, established(7, 3, 100));
    assert_eq!(all(&mut sharing, &table, 6), [Record { bucket: 1, age: 100, ..record(7, 3, 5) }]);
    table.put(9, established(7, 4, 0));
    assert_eq!(all(&mut sharing, &table, 7), [Record { bucket: 1, moved: true, ..record(7, 4, 7) }]);
}

#[test]
fn when_a_client_is_new_then_it_is_told_only_where_that_is_asked_for() {
    let (table, mut sharing) = (Cells::new(1), Sharing::new(8));
    sharing.has_told(0);
    table.put(0, Entry::new(7, 3, NOW));
    assert_eq!(all(&mut sharing, &table, 1), []);
    assert_eq!(sharing.collect(&table, &backends, 1, |_| true), [record(7, 3, 1)]);
    assert_eq!(sharing.collect(&table, &backends, 2, |_| true), []);
}

#[test]
fn when_a_record_was_heard_then_it_is_not_told_again() {
    let (table, mut sharing) = (Cells::new(1), Sharing::new(8));
    let mut flagged = Vec::new();
    let flag = |service, tag, backend| flagged.push((service, tag, backend));
    assert_eq!(sharing.import(&table, &record(7, 3, 1), heard(9), &backends, flag), Imported::New);
    assert_eq!(flagged, [(0, 7, 3)]);
    assert_eq!(all(&mut sharing, &table, 2), []);
    assert_eq!(sharing.import(&table, &record(7, 3, 1), heard(9), &backends, |_, _, _| {}), Imported::Known);
    assert_eq!(sharing.dump(&table, &backends, 9), [record(7, 3, 1)]);
}

#[test]
fn when_two_members_know_a_client_at_two_backends_then_the_older_place_wins_for_both() {
    for (left, right, winner) in
        [((3, 1), (4, 2), 3), ((3, 2), (4, 1), 4), ((4, 1), (3, 1), 3), ((12, 1), (4, 9), 12), ((12, 3), (13, 2), 13)]
    {
        let end = |(own, own_epoch): (u16, u32), (other, epoch): (u16, u32)| {
            let (table, mut sharing) = (Cells::new(1), Sharing::new(8));
            sharing.has_told(0);
            table.put(0, established(7, own, 0));
            all(&mut sharing, &table, own_epoch);
            sharing.import(&table, &record(7, other, epoch), heard(9), &backends, |_, _, _| {});
            table.load(0).backend()
        };
        assert_eq!((end(left, right), end(right, left)), (winner, winner), "{left:?} {right:?}");
    }
}

#[test]
fn when_a_move_meets_an_older_place_then_the_move_wins_on_both_sides() {
    let (table, mut sharing) = (Cells::new(1), Sharing::new(8));
    table.put(0, established(7, 3, 0));
    all(&mut sharing, &table, 1);
    let moved = Record { moved: true, ..record(7, 4, 9) };
    assert_eq!(sharing.import(&table, &moved, heard(9), &backends, |_, _, _| {}), Imported::Moved);
    assert_eq!(table.load(0).backend(), 4);
    assert_eq!(sharing.import(&table, &record(7, 3, 1), heard(9), &backends, |_, _, _| {}), Imported::Stale);
    assert_eq!(table.load(0).backend(), 4);
}

#[test]
fn when_others_do_not_know_an_entry_then_it_is_told_even_if_they_tell_the_same_place() {
    let (table, mut sharing) = (Cells::new(1), Sharing::new(8));
    // A new process has found the entry in the table, so the epoch of the entry is unknown.
    table.put(0, established(7, 9, 0));
    let import = |sharing: &mut Sharing, record| sharing.import(&table, &record, heard(9), &backends, |_, _, _| {});
    assert_eq!(import(&mut sharing, record(7, 9, 8)), Imported::Known);
    assert_eq!(import(&mut sharing, record(7, 6, 4)), Imported::Stale);
    assert_eq!(import(&mut sharing, record(7, 9, 8)), Imported::Known);
    assert_eq!(all(&mut sharing, &table, 9), [record(7, 9, 0)]);
    // After this import, the other members know the client, even if the report arrives late.
    assert_eq!(import(&mut sharing, record(7, 9, 8)), Imported::Known);
    assert_eq!(all(&mut sharing, &table, 9), []);
    // From now on, the other members may have forgotten the client.
    sharing.doubt();
    assert_eq!(import(&mut sharing, record(7, 9, 8)), Imported::Known);
    assert_eq!(all(&mut sharing, &table, 9), [record(7, 9, 0)]);
}

#[test]
fn when_a_place_from_before_keeps_no_client_then_it_does_not_count() {
    let (table, mut sharing) = (Cells::new(1), Sharing::new(8));
    let drained = |id| backends(id).map(|facts| Facts { keeps: id != 3, ..facts });
    table.put(0, established(7, 3, 0));
    table.put(1, established(8, 3, 0));
    // In the meantime, a member that did not know the client has passed the record on.
    let sent = sharing.import(&table, &record(7, 2, 5), heard(5), &drained, |_, _, _| {});
    assert_eq!((sent, table.load(0).backend()), (Imported::Conflict, 2));
    assert_eq!(sharing.collect(&table, &drained, 5, |_| true), []);
    sharing.has_told(5);
    table.put(1, established(8, 4, 0));
    assert_eq!(sharing.collect(&table, &drained, 5, |_| true), [record(8, 4, 5)]);
}

#[test]
fn when_two_members_move_a_client_and_one_reports_it_home_then_both_know() {
    let (table, mut sharing) = (Cells::new(1), Sharing::new(8));
    sharing.has_told(2);
    table.put(0, established(7, 3, 0));
    all(&mut sharing, &table, 2);
    table.put(0, established(7, 4, 0));
    let away = Record { moved: true, away: true, ..record(7, 4, 5) };
    assert_eq!(sharing.import(&table, &away, heard(5), &backends, |_, _, _| {}), Imported::Known);
    let told = all(&mut sharing, &table, 5);
    assert_eq!(told, [Record { away: false, ..away }]);
    let (other, mut others) = (Cells::new(1), Sharing::new(8));
    assert_eq!(others.import(&other, &away, heard(5), &backends, |_, _, _| {}), Imported::New);
    assert_eq!(others.import(&other, &told[0], heard(5), &backends, |_, _, _| {}), Imported::Known);
    assert!(!other.load(0).away() && !table.load(0).away());
}

#[test]
fn when_a_client_leaves_a_failed_backend_then_that_move_is_later_than_its_arrival() {
    let (table, mut sharing) = (Cells::new(1), Sharing::new(8));
    let failed = |id| backends(id).map(|facts| Facts { keeps: id != 6, ..facts });
    table.put(0, established(7, 2, 0));
    all(&mut sharing, &table, 7);
    sharing.has_told(7);
    // The client came to backend 6 in epoch 7, and backend 6 failed in epoch 8, before any member sent records.
    table.put(0, established(7, 6, 0));
    let came = sharing.collect(&table, &failed, 8, |_| false);
    assert_eq!(came, [Record { moved: true, ..record(7, 6, 7) }]);
    sharing.has_told(8);
    table.put(0, established(7, 3, 0));
    let left = sharing.collect(&table, &failed, 8, |_| false);
    assert_eq!(left, [Record { moved: true, ..record(7, 3, 8) }]);
    let (other, mut others) = (Cells::new(1), Sharing::new(8));
    let mut import = |record| others.import(&other, record, heard(8), &failed, |_, _, _| {});
    assert_eq!((import(&left[0]), import(&came[0])), (Imported::New, Imported::Stale));
}

#[test]
fn when_an_earlier_version_tells_the_bucket_by_the_hash_alone_then_packets_find_the_client() {
    const BUCKETS: u32 = 4096;
    let (table, mut sharing) = (Cells::new(BUCKETS as usize), Sharing::new(BUCKETS as usize * BUCKET_ENTRIES));
    let hash: u64 = 0x0123_4567_89ab_cdef;
    let tag = (hash >> 32) as u32;
    let told = Record { bucket: hash as u32 & (BUCKETS - 1), ..record(tag, 3, 1) };
    assert_eq!(sharing.import(&table, &told, heard(9), &backends, |_, _, _| {}), Imported::New);
    let found = find(&Bucket::of(&table, bucket(hash, BUCKETS - 1) as usize), tag);
    assert_eq!(found.map(|(_, entry)| entry.backend()), Some(3));
}

#[test]
fn when_a_record_is_impossible_then_it_is_dropped() {
    let (table, mut sharing) = (Cells::new(1), Sharing::new(8));
    let mut import = |record: Record| sharing.import(&table, &record, heard(9), &backends, |_, _, _| {});
    assert_eq!(import(Record { bucket: 1, ..record(7, 3, 1) }), Imported::Outside);
    assert_eq!(import(Record { bucket: u32::MAX, ..record(7, 3, 1) }), Imported::Outside);
    assert_eq!(import(record(7, 44, 1)), Imported::Stranger);
    assert_eq!(import(Record { age: 401, ..record(7, 3, 1) }), Imported::Expired);
    for tag in 0..8 {
        assert_eq!(import(record(tag, 3, 1)), Imported::New);
    }
    assert_eq!(import(record(8, 3, 1)), Imported::Full);
    assert_eq!(import(record(5, 12, 9)), Imported::Stale);
}
