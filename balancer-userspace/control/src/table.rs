//! Live tables, which determine the backends to which the balancer steers clients now.
//!
//! ```text
//! base = Maglev(configured backends, by name and weight)
//! live = base, where slots of backends that are not steered to belong to their successors
//! ```
//!
//! A backend in a slow start keeps only some of every [`STEPS`] of its slots; its other slots go to backends that are
//! not in a slow start. Each step of a slow start therefore moves slots only to the starting backend, and no slots
//! between other backends or away from the starting backend. A backend with too much load gives slots away in the same
//! way as a backend in a slow start.
//!
//! A live table depends only on (configured backends, backends that take clients, M, key), and not on any earlier
//! state. Two balancers with the same view of the backends have the same table. The failure or drain of a backend moves
//! only the slots of this backend, and its return restores the table exactly. Backup backends have a base table of
//! their own, which applies when no primary backend takes new clients.

use std::sync::Arc;

use balancer_common::{
    client::HashKey,
    map_types::{ALL_DOWN, NO_BACKEND},
};
use balancer_config::config::WhenAllDown;

use crate::{
    bits::{RUN, bits, set},
    by_id::ById,
    maglev::{self, Member},
    runners_up::RunnersUp,
    succession::Succession,
};

/// The number of steps of a slow start; the slow start ends with the last step.
pub const STEPS: u8 = 10;

/// The facts about a configured backend that determine the table.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// The id, name and weight of the backend.
    pub member: Member<'a>,
    pub backup: bool,
    /// Whether the backend is in maintenance.
    pub maint: bool,
    /// Whether the backend's state and health allow new clients (regardless of its weight).
    pub takes_new: bool,
    /// The step of the backend's slow start, counted from 1. After the end of a slow start, the value stays at
    /// [`STEPS`] until all slow starts of the service have ended.
    pub step: Option<u8>,
    /// The number of slots that the backend keeps because of its load, out of every [`STEPS`] of its slots; `None`: all
    /// slots.
    pub bound: Option<u8>,
}

/// The kind of backends to which a live table steers clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Primary backends take new clients.
    Primaries,
    /// Backup backends take new clients, because no primary backend takes them.
    Backups,
    /// No backend takes new clients, and the service steers clients as if every backend were up, except backends in
    /// maintenance.
    AsIfUp,
    /// No backend takes new clients, and the service drops the packets of clients.
    AllDown,
    /// The service has no backends.
    NoBackend,
}

/// The shares of the backends to which the balancer steers clients, by id: each share is the weight times the slow
/// start step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shares(Vec<(u16, u32)>);

impl Shares {
    /// An empty set of shares.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Whether the balancer steers clients to a backend.
    #[must_use]
    pub fn has(&self, id: u16) -> bool {
        self.0.binary_search_by_key(&id, |&(id, _)| id).is_ok()
    }

    /// The backends to which the balancer steers clients, in ascending order of ids.
    pub fn ids(&self) -> impl Iterator<Item = u16> + Clone {
        self.0.iter().map(|&(id, _)| id)
    }

    /// All shares in ascending order of ids.
    pub fn iter(&self) -> impl Iterator<Item = (u16, u32)> {
        self.0.iter().copied()
    }

    /// Whether all backends with a share are among `others`.
    fn are_among(&self, others: &[u16]) -> bool {
        let mut others = others.iter();
        self.ids().all(|id| others.any(|&other| other == id))
    }
}

impl FromIterator<(u16, u32)> for Shares {
    fn from_iter<I: IntoIterator<Item = (u16, u32)>>(shares: I) -> Self {
        let mut shares: Vec<(u16, u32)> = shares.into_iter().collect();
        shares.sort_unstable_by_key(|&(id, _)| id);
        Self(shares)
    }
}

/// A live table, and the inputs that determine it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    /// The kind of backends to which the table steers clients.
    pub tier: Tier,
    /// The backends to which the table steers clients; empty with [`Tier::AllDown`] and [`Tier::NoBackend`].
    pub shares: Shares,
    /// The M entries of the table: all are ids that occur in `shares`, or all are `ALL_DOWN`, or all are `NO_BACKEND`.
    pub slots: Arc<[u16]>,
    /// The base table of the primary backends; `None`: no primary backend takes clients.
    pub home: Option<Arc<[u16]>>,
}

/// Builds the live tables of one service, and caches base tables. The cache contains the base tables, which change only
/// with the configuration, and the last table used for slots without a successor. A slot keeps its owner as long as the
/// owner takes clients, so the builder continues from the last live table if backends have only been removed since.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    primaries: Base,
    backups: Base,
    remnant: Base,
    last: Option<Last>,
}

/// A live table without slow starts in which each slot has a successor.
#[derive(Clone, Debug)]
struct Last {
    base: Arc<[u16]>,
    /// The ids of the backends to which the balancer steers clients, in ascending order.
    steered: Vec<u16>,
    slots: Arc<[u16]>,
}

impl Builder {
    /// The live table of `candidates` with `table_size` slots under the service's table key. The function reuses base
    /// tables in `made`.
    pub fn live(
        &mut self,
        candidates: &[Candidate<'_>],
        when_all_down: WhenAllDown,
        (table_size, key): (u32, HashKey),
        made: &[Made],
    ) -> Live {
        let (tier, steered) = choose(candidates, when_all_down);
        let Some(first) = steered.first() else {
            let entry = if tier == Tier::NoBackend { NO_BACKEND } else { ALL_DOWN };
            return Live { tier, shares: Shares::new(), slots: vec![entry; table_size as usize].into(), home: None };
        };
        let configured =
            candidates.iter().filter(|candidate| candidate.backup == first.backup && candidate.has_weight());
        let configured: Vec<Member<'_>> = configured.map(|candidate| candidate.member).collect();
        let base = if first.backup { &mut self.backups } else { &mut self.primaries };
        base.update(&configured, (table_size, key), made);
        let home = (!first.backup).then(|| Arc::clone(&base.slots));

        // If no backend could take the slots that other backends give away because of their load, no backend gives
        // slots away.
        let some_are_free = steered.iter().any(|candidate| candidate.step.is_none() && candidate.bound.is_none());
        let given = |candidate: &Candidate<'_>| {
            let steps = [candidate.step, candidate.bound.filter(|_| some_are_free)];
            steps.into_iter().flatten().min()
        };
        let settled = steered.iter().any(|&candidate| given(candidate).is_none());
        // If every backend is in a slow start, every backend gets all of its slots.
        let step = |candidate: &Candidate<'_>| given(candidate).filter(|_| settled).unwrap_or(STEPS);
        let share = |candidate: &Candidate<'_>| u32::from(candidate.member.weight) * u32::from(step(candidate));
        let shares: Shares = steered.iter().map(|candidate| (candidate.member.id, share(candidate))).collect();
        let heirs: Vec<Member<'_>> = steered
            .iter()
            .filter(|&&candidate| given(candidate).is_none() || !settled)
            .map(|candidate| candidate.member)
            .collect();
        let nobody_is_slow = heirs.len() == steered.len();
        let last = self.last.take().filter(|last| nobody_is_slow && last.precedes(&base.slots, &shares));
        let (mut slots, had_slots): (_, Vec<u16>) = match last {
            Some(last) => (last.slots, last.steered),
            None => (Arc::clone(&base.slots), configured.iter().map(|member| member.id).collect()),
        };
        if heirs.len() < configured.len() {
            let mut all_have_successors = true;
            let steps = steered.iter().map(|candidate| (candidate.member.id, step(candidate)));
            let mut rows = Rows::new(&configured, &heirs, steps);
            let only_one = rows.only_one_gone(&had_slots).filter(|_| nobody_is_slow);
            let succession = Succession::new(&base.slots, &base.runners_up, key);
            for (run, first) in Arc::make_mut(&mut slots).chunks_mut(RUN).zip((0..).step_by(RUN)) {
                let lost = match only_one {
                    Some(gone) => bits(&*run, |&slot| slot == gone),
                    None => bits(&*run, |&slot| !rows.keeps(slot)),
                };
                for place in set(lost) {
                    let index = first + place;
                    let successor = succession.first(index, |id| rows.is_heir(id)).unwrap_or_else(|| {
                        all_have_successors = false;
                        self.remnant.update(&heirs, (table_size, key), made);
                        self.remnant.slots.get(index).copied().unwrap_or(NO_BACKEND)
                    });
                    if let Some(slot) = run.get_mut(place) {
                        *slot = successor;
                    }
                }
            }
            if all_have_successors && nobody_is_slow {
                let (base, steered) = (Arc::clone(&base.slots), shares.ids().collect());
                self.last = Some(Last { base, steered, slots: Arc::clone(&slots) });
            }
        }
        Live { tier, shares, slots, home }
    }

    /// Returns the base tables that this builder has made; another builder that needs the same tables can reuse them.
    #[must_use]
    pub fn made(&self) -> Vec<Made> {
        let made = [&self.primaries, &self.backups, &self.remnant].into_iter().filter(|base| base.of.is_some());
        made.map(|base| Made(base.clone())).collect()
    }
}

/// A precomputed Maglev table.
#[derive(Clone, Debug)]
pub struct Made(Base);

impl Made {
    /// Whether this table and another one share the same memory.
    #[cfg(test)]
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0.slots, &other.0.slots)
    }
}

/// A base table, with the inputs from which it was computed.
#[derive(Clone, Debug, Default)]
struct Base {
    of: Option<Arc<Ingredients>>,
    slots: Arc<[u16]>,
    runners_up: RunnersUp,
}

#[derive(Clone, Debug)]
struct Ingredients {
    /// The id, the weight and the name of each backend in the table.
    members: Vec<(u16, u16, String)>,
    table_size: u32,
    key: HashKey,
}

impl Base {
    fn update(&mut self, members: &[Member<'_>], (table_size, key): (u32, HashKey), made: &[Made]) {
        let is_so = |base: &Self| base.of.as_deref().is_some_and(|of| of.are(members, table_size, key));
        if is_so(self) {
            return;
        }
        *self = match made.iter().map(|Made(base)| base).find(|base| is_so(base)) {
            Some(base) => base.clone(),
            None => {
                let (slots, runners_up) = maglev::table(members, table_size, key)
                    .map_or_else(Default::default, |table| (table.slots.into(), RunnersUp::new(&table.runners_up)));
                Self { of: Some(Arc::new(Ingredients::new(members, table_size, key))), slots, runners_up }
            }
        };
    }
}

impl Ingredients {
    fn new(members: &[Member<'_>], table_size: u32, key: HashKey) -> Self {
        let members = members.iter().map(|member| (member.id, member.weight, member.name.to_owned()));
        Self { members: members.collect(), table_size, key }
    }

    fn are(&self, members: &[Member<'_>], table_size: u32, key: HashKey) -> bool {
        let own = self.members.iter().map(|(id, weight, name)| (*id, *weight, name.as_str()));
        let others = members.iter().map(|member| (member.id, member.weight, member.name));
        self.table_size == table_size && self.key == key && own.eq(others)
    }
}

impl Last {
    /// Whether the later set of backends lacks some of these backends and contains no others.
    fn precedes(&self, base: &Arc<[u16]>, shares: &Shares) -> bool {
        Arc::ptr_eq(&self.base, base) && shares.are_among(&self.steered)
    }
}

/// The data about each backend that the builder looks up for each slot.
struct Rows(ById<Row>);

#[derive(Clone, Copy, Default)]
struct Row {
    /// The number of slots that the backend keeps, out of every [`STEPS`] of its slots.
    steps: u8,
    /// The position of the backend's next slot in the current group of [`STEPS`] slots.
    place: u8,
    is_heir: bool,
}

impl Rows {
    fn new(configured: &[Member<'_>], heirs: &[Member<'_>], steps: impl Iterator<Item = (u16, u8)>) -> Self {
        let mut rows = ById::new(configured.iter().map(|member| member.id), Row::default());
        for (id, steps) in steps {
            rows.set(id, |row| row.steps = steps);
        }
        for heir in heirs {
            rows.set(heir.id, |row| row.is_heir = true);
        }
        Self(rows)
    }

    /// Whether a backend keeps its next slot.
    #[inline(always)]
    fn keeps(&mut self, id: u16) -> bool {
        let Some(row) = self.0.get_mut(id) else { return true };
        // Because of these conditions, most slots do not depend on earlier slots.
        if row.steps == 0 || row.steps == STEPS {
            return row.steps != 0;
        }
        let keeps = row.place < row.steps;
        row.place = (row.place + 1) % STEPS;
        keeps
    }

    /// The one backend among these ids that takes no clients, if there is exactly one such backend.
    fn only_one_gone(&self, ids: &[u16]) -> Option<u16> {
        let mut gone = ids.iter().copied().filter(|&id| !self.is_heir(id));
        gone.next().filter(|_| gone.next().is_none())
    }

    #[inline(always)]
    fn is_heir(&self, id: u16) -> bool {
        self.0.get(id).is_some_and(|row| row.is_heir)
    }
}

impl Candidate<'_> {
    const fn has_weight(&self) -> bool {
        self.member.weight > 0
    }
}

/// Chooses the backends to which the balancer steers clients: all primary backends or all backups, if their weight is
/// not 0.
fn choose<'a, 'b>(candidates: &'b [Candidate<'a>], when_all_down: WhenAllDown) -> (Tier, Vec<&'b Candidate<'a>>) {
    let of = |backup: bool, usable: fn(&Candidate<'_>) -> bool| -> Vec<&Candidate<'a>> {
        candidates
            .iter()
            .filter(|candidate| candidate.backup == backup && candidate.has_weight() && usable(candidate))
            .collect()
    };
    let mut grounds = vec![
        (Tier::Primaries, of(false, |candidate| candidate.takes_new)),
        (Tier::Backups, of(true, |candidate| candidate.takes_new)),
    ];
    if when_all_down == WhenAllDown::Open {
        grounds.push((Tier::AsIfUp, of(false, |candidate| !candidate.maint)));
        grounds.push((Tier::AsIfUp, of(true, |candidate| !candidate.maint)));
    }
    let nobody = if candidates.is_empty() { Tier::NoBackend } else { Tier::AllDown };
    grounds.into_iter().find(|(_, steered)| !steered.is_empty()).unwrap_or((nobody, Vec::new()))
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::Index};

    use std::collections::BTreeSet;

    use super::*;
    use crate::moves::Moves;

    const M: u32 = 4_093;

    fn candidates(names: &[String]) -> Vec<Candidate<'_>> {
        (1..)
            .zip(names)
            .map(|(id, name)| Candidate {
                member: Member { id, name, weight: 100 },
                backup: false,
                maint: false,
                takes_new: true,
                step: None,
                bound: None,
            })
            .collect()
    }

    fn names(count: usize) -> Vec<String> {
        (1..=count).map(|n| format!("web{n}")).collect()
    }

    fn live(candidates: &[Candidate<'_>], table_size: u32, key: HashKey) -> Live {
        Builder::default().live(candidates, WhenAllDown::Open, (table_size, key), &[])
    }

    const KEY: HashKey = HashKey { k0: 8, k1: 9 };

    #[test]
    fn when_a_backend_fails_then_its_slots_spread_evenly_and_no_other_moves() {
        let names = names(4);
        let mut four = candidates(&names);
        let before = live(&four, 65_537, KEY);
        four[1].takes_new = false;
        let after = live(&four, 65_537, KEY);
        let moves = Moves::between(&before.slots, &before.shares, &after.slots, &after.shares);
        assert_eq!(moves.from(2), (16_384, 3));
        assert_eq!((moves.total(), moves.needless()), (16_384, 0));
        for id in [1, 3, 4] {
            let (slots, _) = moves.to(id);
            assert!(slots.abs_diff(16_384 / 3) < 546, "backend {id} took over {slots} slots");
        }
    }

    #[test]
    fn when_a_backend_fails_then_its_clients_spread_evenly() {
        let names = names(4);
        let mut four = candidates(&names);
        let before = live(&four, 65_537, KEY);
        four[1].takes_new = false;
        let after = live(&four, 65_537, KEY);
        let mut taken_over = [0u32; 5];
        for n in 0..20_000u32 {
            let hash = balancer_common::client::hash_v4(HashKey { k0: 1, k1: 2 }, (0xc633_0000 + n).to_be());
            let slot = balancer_common::client::slot(hash, 65_537) as usize;
            if before.slots[slot] == 2 {
                taken_over[after.slots[slot] as usize] += 1;
            } else {
                assert_eq!(before.slots[slot], after.slots[slot]);
            }
        }
        let third = (taken_over.iter().sum::<u32>()) / 3;
        for id in [1, 3, 4] {
            assert!(taken_over[id].abs_diff(third) <= third / 10, "{taken_over:?}");
        }
    }

    #[test]
    fn when_a_table_was_precomputed_then_it_is_reused() {
        let names = names(3);
        let mut set = candidates(&names);
        let mut builder = Builder::default();
        builder.live(&set, WhenAllDown::Open, (M, KEY), &[]);
        set[0].member.weight = 1;
        let mut other = builder.clone();
        other.live(&set, WhenAllDown::Open, (M, KEY), &[]);
        builder.live(&set, WhenAllDown::Open, (M, KEY), &other.made());
        assert!(Arc::ptr_eq(&builder.primaries.slots, &other.primaries.slots));
        set[0].member.weight = 2;
        builder.live(&set, WhenAllDown::Open, (M, KEY), &other.made());
        assert!(!Arc::ptr_eq(&builder.primaries.slots, &other.primaries.slots));
    }

    #[test]
    fn when_one_backend_is_left_then_it_has_every_slot() {
        let names = names(200);
        let mut set = candidates(&names);
        for candidate in &mut set[1..] {
            candidate.takes_new = false;
        }
        assert_eq!(*live(&set, M, KEY).slots, vec![1; M as usize]);
        // This backend has no slot in the base table on which a draw could fall.
        set[0].member.weight = 1;
        set[1..].iter_mut().for_each(|candidate| candidate.member.weight = u16::MAX);
        assert_eq!(*live(&set, M, KEY).slots, vec![1; M as usize]);
    }

    #[test]
    fn when_few_backends_are_left_then_the_table_has_no_history() {
        let names = names(40);
        let mut set = candidates(&names);
        let mut builder = Builder::default();
        for left in [4, 2, 3, 1, 5, 4] {
            for (index, candidate) in set.iter_mut().enumerate() {
                candidate.takes_new = index < left;
            }
            assert_eq!(builder.live(&set, WhenAllDown::Open, (M, KEY), &[]), live(&set, M, KEY), "{left} left");
        }
    }

    #[test]
    fn when_an_absent_backend_is_removed_then_hardly_any_slot_moves() {
        for count in [3, 4, 10] {
            let names = names(count);
            let mut set = candidates(&names);
            set[1].takes_new = false;
            let away = live(&set, 65_537, KEY);
            set.remove(1);
            let gone = live(&set, 65_537, KEY);
            let moves = Moves::between(&away.slots, &away.shares, &gone.slots, &gone.shares);
            assert!(moves.total() < 65_537 / 100, "{} slots of {count} backends", moves.total());
        }
    }

    #[test]
    fn when_many_backends_fail_then_slots_go_to_others_by_weight() {
        let names = names(40);
        let mut set = candidates(&names);
        for (index, candidate) in set.iter_mut().enumerate() {
            candidate.member.weight = if index % 4 < 2 { 100 } else { 300 };
            candidate.takes_new = index % 2 == 0;
        }
        let live = live(&set, 65_537, KEY);
        for candidate in set.iter().filter(|candidate| candidate.takes_new) {
            let has = live.slots.iter().filter(|&&id| id == candidate.member.id).count() as f64;
            let due = 65_537.0 * f64::from(candidate.member.weight) / f64::from(10 * 100 + 10 * 300);
            assert!((has / due - 1.0).abs() < 0.1, "{has} slots, {due} would be in proportion");
        }
    }

    #[test]
    fn when_backends_fail_then_footings_come_in_order() {
        let names = names(3);
        let mut three = candidates(&names);
        three[2].backup = true;
        let mut step = |index: usize, takes_new: bool, maint: bool, when: WhenAllDown| {
            three[index].takes_new = takes_new;
            three[index].maint = maint;
            let live = Builder::default().live(&three, when, (M, KEY), &[]);
            let used: BTreeSet<u16> = live.slots.iter().copied().collect();
            (live.tier, used.into_iter().collect::<Vec<_>>())
        };
        use WhenAllDown::{Drop, Open};
        assert_eq!(step(0, true, false, Open), (Tier::Primaries, vec![1, 2]));
        assert_eq!(step(0, false, false, Open), (Tier::Primaries, vec![2]));
        assert_eq!(step(1, false, false, Open), (Tier::Backups, vec![3]));
        assert_eq!(step(2, false, false, Open), (Tier::AsIfUp, vec![1, 2]));
        assert_eq!(step(2, false, false, Drop), (Tier::AllDown, vec![ALL_DOWN]));
        assert_eq!(step(0, false, true, Open), (Tier::AsIfUp, vec![2]));
        assert_eq!(step(1, false, true, Open), (Tier::AsIfUp, vec![3]));
        assert_eq!(step(2, false, true, Open), (Tier::AllDown, vec![ALL_DOWN]));
        assert_eq!(*live(&[], M, KEY).slots, vec![NO_BACKEND; M as usize]);
    }

    #[test]
    fn when_a_weight_is_zero_then_the_backend_gets_no_clients() {
        let names = names(2);
        let mut two = candidates(&names);
        two[0].member.weight = 0;
        assert_eq!(*live(&two, M, KEY).slots, vec![2; M as usize]);
        two[1].takes_new = false;
        assert_eq!(*live(&two, M, KEY).slots, vec![2; M as usize]);
        two[1].member.weight = 0;
        assert_eq!(live(&two, M, KEY).tier, Tier::AllDown);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn when_backends_come_and_go_then_the_live_table_has_no_history(
            count in 2usize..9, changes in prop::collection::vec((any::<Index>(), any::<bool>()), 1..12)
        ) {
            let names = names(count);
            let mut set = candidates(&names);
            let all = live(&set, M, KEY);
            let mut builder = Builder::default();
            let mut made = Vec::new();
            for (index, takes_new) in changes {
                let index = index.index(count);
                made.extend(builder.made());
                let before = builder.live(&set, WhenAllDown::Open, (M, KEY), &[]);
                set[index].takes_new = takes_new;
                let after = builder.live(&set, WhenAllDown::Open, (M, KEY), &made);
                prop_assert_eq!(&after, &live(&set, M, KEY), "what is kept between two builds must not show");
                for ((home, old), new) in all.slots.iter().zip(&*before.slots).zip(&*after.slots) {
                    let steered = |shares: &Shares| shares.has(*home);
                    prop_assert!(!steered(&before.shares) || home == old);
                    prop_assert!(!steered(&after.shares) || home == new);
                }
            }
            for candidate in &mut set {
                candidate.takes_new = true;
            }
            prop_assert_eq!(builder.live(&set, WhenAllDown::Open, (M, KEY), &[]), all);
        }

        #[test]
        fn when_half_of_them_are_left_then_a_failure_and_a_return_move_no_slot_between_others(
            count in 2usize..40, away in prop::collection::vec(any::<Index>(), 0..20), which in any::<Index>()
        ) {
            let names = names(count);
            let mut set = candidates(&names);
            let which = which.index(count);
            for index in away.into_iter().take(count / 2 - 1).map(|index| index.index(count)) {
                set[index].takes_new = index == which;
            }
            let up = live(&set, M, KEY);
            set[which].takes_new = false;
            let down = live(&set, M, KEY);
            let failed = set[which].member.id;
            for (before, after) in up.slots.iter().zip(&*down.slots) {
                prop_assert!(before == after || *before == failed);
            }
        }

        #[test]
        fn when_a_backend_starts_slowly_then_slots_move_to_it_and_no_others(
            count in 2usize..9, which in any::<Index>(), down in prop::option::of(any::<Index>())
        ) {
            let names = names(count);
            let mut set = candidates(&names);
            let which = which.index(count);
            let newcomer = set[which].member.id;
            if let Some(down) = down.map(|down| down.index(count)).filter(|&down| down != which && count > 2) {
                set[down].takes_new = false;
            }
            set[which].takes_new = false;
            let mut before = live(&set, M, KEY);
            set[which].takes_new = true;
            let full = live(&set, M, KEY).slots.iter().filter(|&&id| id == newcomer).count();
            let own = live(&candidates(&names), M, KEY).slots.iter().filter(|&&id| id == newcomer).count();
            let mut builder = Builder::default();
            for step in 1..=STEPS {
                set[which].step = Some(step);
                let after = builder.live(&set, WhenAllDown::Open, (M, KEY), &[]);
                let moves = Moves::between(&before.slots, &before.shares, &after.slots, &after.shares);
                prop_assert_eq!((moves.needless(), moves.to(newcomer).0), (0, moves.total()), "step {}", step);
                let has = after.slots.iter().filter(|&&id| id == newcomer).count();
                prop_assert!((has * 10).abs_diff(own * usize::from(step)) < 100, "{} of {} in step {}", has, own, step);
                before = after;
            }
            set[which].step = None;
            let after = builder.live(&set, WhenAllDown::Open, (M, KEY), &[]);
            prop_assert_eq!(after.slots.iter().filter(|&&id| id == newcomer).count(), full);
            prop_assert_eq!(after, live(&set, M, KEY));
        }

        #[test]
        fn when_one_backend_fails_and_returns_then_no_slot_moves_needlessly(count in 2usize..9, which in any::<Index>()) {
            let names = names(count);
            let mut set = candidates(&names);
            let which = which.index(count);
            let up = live(&set, M, KEY);
            set[which].takes_new = false;
            let down = live(&set, M, KEY);
            let failure = Moves::between(&up.slots, &up.shares, &down.slots, &down.shares);
            let lost = up.slots.iter().filter(|&&id| id == set[which].member.id).count() as u32;
            prop_assert_eq!((failure.total(), failure.needless()), (lost, 0));
            let back = Moves::between(&down.slots, &down.shares, &up.slots, &up.shares);
            prop_assert_eq!((back.total(), back.needless()), (lost, 0));
        }
    }
}
