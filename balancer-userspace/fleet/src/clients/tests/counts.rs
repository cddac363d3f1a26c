//! If several members move a client before they have informed each other, they count only one move.

use proptest::{collection, prelude::*};

use super::*;

const CLIENT: u32 = 7;
const FAILED: u16 = 3;
const NEXT: u16 = 5;
const EPOCH: u32 = 4;

fn facts(id: u16) -> Option<Facts> {
    backends(id).map(|facts| Facts { keeps: id != FAILED, ..facts })
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A packet of the client reaches the member with this index.
    Packet(usize),
    /// The member with this index sends all records that the other members do not know.
    Tell(usize),
    /// The member with this index does not know whether its last batch was written, and writes the batch again.
    TellAgain(usize),
    /// The member with this index receives the next pending batch.
    Hear(usize),
}

/// Returns the client's entry and its index in the table.
fn entry(table: &Cells) -> (usize, Entry) {
    find(&Bucket::of(table, 0), CLIENT).expect("everybody knows the client")
}

struct Member {
    table: Cells,
    sharing: Sharing,
    heard: usize,
    counted: i32,
}

/// The members in the order of their names, with all batches that were sent. At first, all members know the client at
/// its old backend.
struct Group {
    members: Vec<Member>,
    told: Vec<(usize, Record)>,
}

impl Group {
    fn new(members: usize) -> Self {
        let member = |_| {
            let (table, mut sharing) = (Cells::new(1), Sharing::new(BUCKET_ENTRIES));
            sharing.has_told(0);
            sharing.import(&table, &record(CLIENT, FAILED, 1), heard(1), &backends, |_, _, _| {});
            Member { table, sharing, heard: 0, counted: 0 }
        };
        Self { members: (0..members).map(member).collect(), told: Vec::new() }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Packet(at) => {
                let Member { table, counted, .. } = &mut self.members[at];
                let (index, entry) = entry(table);
                if entry.backend() == FAILED {
                    table.put(index, established(CLIENT, NEXT, 0));
                    *counted += 1;
                }
            }
            Step::Tell(at) => {
                let Member { table, sharing, .. } = &mut self.members[at];
                let records = sharing.collect(table, &facts, EPOCH, |_| true);
                sharing.has_told(EPOCH);
                self.told.extend(records.into_iter().map(|record| (at, record)));
            }
            Step::TellAgain(at) => {
                let last = self.told.iter().rev().find(|(teller, _)| *teller == at).copied();
                self.told.extend(last);
            }
            Step::Hear(at) => {
                let Member { table, sharing, heard: next, counted } = &mut self.members[at];
                let Some(&(teller, record)) = self.told.get(*next) else { return };
                *next += 1;
                if teller != at {
                    let heard = Heard { precedes: teller < at, ..heard(EPOCH) };
                    let imported = sharing.import(table, &record, heard, &facts, |_, _, _| {});
                    *counted -= i32::from(matches!(imported, Imported::Repeated(FAILED)));
                }
            }
        }
    }

    /// Makes every member send and receive all pending batches.
    fn settle(&mut self) {
        for _ in 0..3 {
            (0..self.members.len()).for_each(|at| self.take(Step::Tell(at)));
            for at in 0..self.members.len() {
                (0..self.told.len()).for_each(|_| self.take(Step::Hear(at)));
            }
        }
    }
}

fn steps(members: usize) -> impl Strategy<Value = Vec<Step>> {
    let at = 0..members;
    let step = prop_oneof![
        2 => at.clone().prop_map(Step::Packet),
        1 => at.clone().prop_map(Step::Tell),
        1 => at.clone().prop_map(Step::TellAgain),
        4 => at.prop_map(Step::Hear),
    ];
    collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn when_members_hear_of_a_move_late_then_it_is_counted_once(
        (members, steps) in (2..=4_usize).prop_flat_map(|members| (Just(members), steps(members)))
    ) {
        let mut group = Group::new(members);
        steps.into_iter().for_each(|step| group.take(step));
        group.settle();
        let counted: Vec<i32> = group.members.iter().map(|member| member.counted).collect();
        let places: Vec<u16> = group.members.iter().map(|member| entry(&member.table).1.backend()).collect();
        prop_assert!(counted.iter().all(|&count| count >= 0), "{counted:?}");
        prop_assert!(places.iter().all(|place| *place == places[0]), "{places:?}");
        prop_assert_eq!(counted.iter().sum::<i32>(), i32::from(places[0] == NEXT), "{:?}", counted);
    }
}
