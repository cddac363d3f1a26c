//! A service's lookup tables: those that it has, and those that it would have.

use balancer_model::{renames::Named as _, states::Admin};

use super::{Backend, Service};
use crate::{
    maglev::Member,
    next_hops::NextHops,
    table::{Builder, Candidate, Live, Made},
};

impl Service {
    /// Of every backend what `takes_new` says. `None`: it does not count yet, as if it were not configured, so that it moves
    /// slots once, when it can serve them.
    pub(super) fn counted(&self, takes_new: impl Iterator<Item = bool>, hops: &NextHops) -> Vec<Option<bool>> {
        let all_wait = self.backends.iter().all(|backend| backend.waits_for_next_hop(hops));
        let counts = self.backends.iter().map(|backend| all_wait || !backend.waits_for_next_hop(hops));
        counts.zip(takes_new).map(|(counts, takes_new)| counts.then_some(takes_new)).collect()
    }

    /// The live table, where `takes_new` says of every backend whether it takes new clients; `None`: it does not count yet.
    pub(super) fn build(&self, builder: &mut Builder, takes_new: &[Option<bool>], made: &[Made]) -> Live {
        let candidates = self.backends.iter().zip(takes_new).filter_map(|(backend, takes_new)| {
            Some(Candidate {
                member: Member { id: backend.id.0, name: backend.config.identity(), weight: backend.config.weight },
                backup: backend.config.backup,
                maint: backend.admin == Admin::Maint,
                takes_new: (*takes_new)?,
                step: backend.slow_start.map(|slow_start| slow_start.step),
            })
        });
        let candidates: Vec<Candidate<'_>> = candidates.collect();
        let slots = self.settings.table_size.slots(candidates.len());
        builder.live(&candidates, self.settings.when_all_down, (slots, self.table_key), made)
    }

    /// Whether a backend that takes new clients has begun to fail.
    pub(crate) fn has_doubts(&self) -> bool {
        self.backends.iter().any(Backend::is_doubtful)
    }

    /// Of every backend whether it takes new clients, for [`Self::made_for`]: if one backend that has begun to fail does not,
    /// for the first `alone` of them in the order of their next checks; and if none of them does.
    pub(crate) fn takes_new_without_doubtful(&self, alone: usize, hops: &NextHops) -> Vec<Vec<Option<bool>>> {
        let mut doubtful: Vec<&Backend> = self.backends.iter().filter(|backend| backend.is_doubtful()).collect();
        doubtful.sort_by_key(|backend| backend.last_check().map(|check| check.ended));
        let without = |fails: &dyn Fn(&Backend) -> bool| {
            self.counted(self.backends.iter().map(|backend| backend.takes_pinned() && !fails(backend)), hops)
        };
        let alone = if doubtful.len() > 1 { alone } else { 0 };
        let next = doubtful.iter().take(alone).map(|next| without(&|backend| backend.id == next.id));
        next.chain([without(&Backend::is_doubtful)]).collect()
    }

    /// The tables that it would have in each of these cases, of which some may be `made` already.
    pub(crate) fn made_for(&self, cases: &[Vec<Option<bool>>], made: &[Made]) -> Vec<Made> {
        let mut builder = self.builder.clone();
        let mut all: Vec<Made> = Vec::new();
        for takes_new in cases {
            let _ = self.build(&mut builder, takes_new, made);
            for new in builder.made() {
                if !all.iter().any(|known| known.is(&new)) {
                    all.push(new);
                }
            }
        }
        all
    }

    /// The tables that it has made.
    pub(crate) fn made(&self) -> Vec<Made> {
        self.builder.made()
    }
}
