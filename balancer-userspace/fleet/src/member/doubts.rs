//! Backends that other members have doubts of: this one looks at once, so that all come to a verdict together.

use std::collections::{BTreeMap, HashSet};

use balancer_core::io::BackendId;

use super::{Member, Output};

/// The backends that other members doubted when their cards were last looked at, by member name.
#[derive(Debug, Default)]
pub(super) struct Doubts(BTreeMap<String, HashSet<BackendId>>);

impl Member {
    /// Has those checked that another member has begun to doubt.
    pub(super) fn see_to_doubts(&mut self, outputs: &mut Vec<Output>) {
        let new = self.new_doubts();
        #[cfg(test)]
        if self.makes(super::Mutation::KeepsDoubtsToItself) {
            return;
        }
        if !new.is_empty() {
            outputs.push(Output::Check(new));
        }
    }

    pub(super) fn new_doubts(&mut self) -> Vec<BackendId> {
        // Ids mean the same in all epochs of a lineage.
        let lineage = self.epoch().map(|epoch| epoch.lineage);
        let cards = self.cards();
        let others = cards.iter().filter(|(name, card)| {
            **name != self.settings.name && lineage.is_some() && card.epoch.map(|epoch| epoch.lineage) == lineage
        });
        let now: BTreeMap<String, HashSet<BackendId>> =
            others.map(|(name, card)| (name.clone(), card.ballot.doubted().collect())).collect();
        let mut new: Vec<BackendId> = Vec::new();
        for (name, doubted) in &now {
            let before = self.doubts.0.get(name);
            new.extend(doubted.iter().filter(|id| before.is_none_or(|before| !before.contains(id))));
        }
        self.doubts = Doubts(now);
        new.sort_unstable();
        new.dedup();
        new
    }
}
