//! Backends that other members doubt: this member checks them at once, so that all members reach a verdict together.

use std::collections::{BTreeMap, HashSet};

use balancer_control::io::BackendId;

use super::{Member, Output};

/// The backends that other members doubted when their cards were last read, by member name.
#[derive(Debug, Default)]
pub(super) struct Doubts(BTreeMap<String, HashSet<BackendId>>);

impl Member {
    /// Requests checks of backends that another member has begun to doubt.
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
        // Ids have the same meaning in all epochs of a lineage.
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
