//! Backends that other members doubt: this member checks such backends at once, so that all members reach a verdict at
//! the same time.

use std::collections::{BTreeMap, HashSet};

use balancer_control::io::BackendId;

use super::{Member, Output};

/// By member name, the backends that the other members doubted when this member last read their cards.
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
        // Backend ids have the same meaning in all epochs of a lineage.
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
