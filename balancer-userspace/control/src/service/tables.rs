//! The live table and the base tables of a service.

use std::mem;

use balancer_config::{
    config::{WhenAllDown, WhenFull},
    renames::Named as _,
    states::Admin,
};

use super::{Backend, Service, bounded::PERCENT_IN_A_STEP};
use crate::{
    by_id::ById,
    io::BackendId,
    maglev::Member,
    moves::Moves,
    next_hops::NextHops,
    table::{Builder, Candidate, Live, Made, Shares},
};

impl Service {
    /// Returns `takes_new` for every backend that the table includes, and `None` for a backend that the table treats as
    /// not configured. Slots for a backend that the table does not include yet move only once, when the backend can
    /// serve clients.
    pub(super) fn counted(&self, takes_new: impl Iterator<Item = bool>, hops: &NextHops) -> Vec<Option<bool>> {
        let all_wait = self.backends.iter().all(|backend| backend.waits_for_next_hop(hops));
        let counts = self.backends.iter().map(|backend| all_wait || !backend.waits_for_next_hop(hops));
        counts.zip(takes_new).map(|(counts, takes_new)| counts.then_some(takes_new)).collect()
    }

    /// The live table for the present state of the backends. `takes_new` says for each backend whether it takes new
    /// clients; `None`: the table does not include the backend yet.
    pub(super) fn build(&self, builder: &mut Builder, takes_new: &[Option<bool>], made: &[Made]) -> Live {
        let all_full = self.are_all_full(takes_new);
        let is_open = self.settings.when_full == WhenFull::Open;
        let has_room = |backend: &Backend| backend.full.is_none() || all_full && is_open;
        // Doubts about all backends alike spare none of them.
        let stands =
            |backend: &Backend| has_room(backend) && backend.effective_weight() > 0 && !self.is_doubted(backend);
        let others_stand = [false, true].map(|backup| {
            let mut all = self.backends.iter().zip(takes_new);
            all.any(|(of, takes_new)| of.config.backup == backup && *takes_new == Some(true) && stands(of))
        });
        let is_avoided =
            |backend: &Backend| self.is_doubted(backend) && others_stand[usize::from(backend.config.backup)];
        let candidates = self.backends.iter().zip(takes_new).filter_map(|(backend, takes_new)| {
            Some(Candidate {
                member: Member {
                    id: backend.id.0,
                    name: backend.config.identity(),
                    weight: backend.effective_weight(),
                },
                backup: backend.config.backup,
                maint: backend.effective_admin() == Admin::Maint,
                takes_new: (*takes_new)? && has_room(backend) && !is_avoided(backend),
                step: backend.slow_start_step(),
                bound: backend.bound.map(|bound| bound.keeps / PERCENT_IN_A_STEP),
            })
        });
        let candidates: Vec<Candidate<'_>> = candidates.collect();
        let slots = self.settings.table_size.slots(candidates.len());
        let when_nobody = if all_full && !is_open { WhenAllDown::Drop } else { self.settings.when_all_down };
        builder.live(&candidates, when_nobody, (slots, self.table_key), made)
    }

    /// Whether checks doubt a backend, so that unknown clients should go to other backends. Without client memory, a
    /// doubt would move known clients as well, so it has no effect.
    pub(super) fn is_doubted(&self, backend: &Backend) -> bool {
        self.remembers() && self.sources(backend).is_doubted()
    }

    /// The precomputed base tables of the service.
    pub(crate) fn made(&self) -> Vec<Made> {
        self.builder.made()
    }

    /// Records that the balancer steers clients to exactly these backends. Writes the rows that have changed or, if
    /// backends may be new, all rows.
    pub(super) fn steer(&mut self, shares: Shares, all: bool) {
        let before = mem::replace(&mut self.shares, shares);
        if all {
            self.backends.iter_mut().for_each(|backend| backend.steered = self.shares.has(backend.id.0));
            return;
        }
        for id in before.ids().chain(self.shares.ids()).filter(|&id| before.has(id) != self.shares.has(id)) {
            if let Some(place) = self.position(BackendId(id))
                && let Some(backend) = self.backends.get_mut(place)
            {
                backend.steered = self.shares.has(id);
            }
        }
    }

    /// Counts the slots of each backend: from the moves if the table's length stays the same, otherwise from the whole
    /// table.
    pub(super) fn count_slots(&mut self, moves: Option<&Moves>) {
        let counts = match moves {
            Some(moves) => {
                let mut counts = ById::new(self.backends.iter().map(|backend| backend.id.0), 0u32);
                self.backends.iter().for_each(|backend| counts.set(backend.id.0, |count| *count = backend.slots));
                for &(from, to) in moves.pairs() {
                    counts.set(from, |count| *count = count.wrapping_sub(1));
                    counts.set(to, |count| *count = count.wrapping_add(1));
                }
                counts
            }
            None => counts(&self.live, &self.backends),
        };
        for backend in &mut self.backends {
            backend.slots = counts.get(backend.id.0).copied().unwrap_or(0);
        }
    }

    pub(super) fn slots_are_counted(&self) -> bool {
        let counts = counts(&self.live, &self.backends);
        self.backends.iter().all(|backend| counts.get(backend.id.0).copied().unwrap_or(0) == backend.slots)
    }
}

/// The number of slots that each backend has in `table`. The controller may have thousands of tables, each of which
/// contains few of the ids.
fn counts(table: &[u16], backends: &[Backend]) -> ById<u32> {
    let mut counts = ById::new(backends.iter().map(|backend| backend.id.0), 0);
    for &entry in table {
        counts.set(entry, |count| *count += 1);
    }
    counts
}
