//! A service's lookup tables.

use balancer_model::{renames::Named as _, states::Admin};

use super::Service;
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
                step: backend.slow_start.as_ref().map(|slow_start| slow_start.step),
            })
        });
        let candidates: Vec<Candidate<'_>> = candidates.collect();
        let slots = self.settings.table_size.slots(candidates.len());
        builder.live(&candidates, self.settings.when_all_down, (slots, self.table_key), made)
    }

    /// The tables that it has made.
    pub(crate) fn made(&self) -> Vec<Made> {
        self.builder.made()
    }
}
