//! Deny lists: the prefixes of the lists in the trie of rules, and the changes still to be written to the trie.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use balancer_common::map_types::{RULE_DENY, RuleRow};
use balancer_config::{deny::DenyList, listeners::Family};
use balancer_control::io::ServiceId;
use ipnet::IpNet;

/// The value of `RuleRow::backend` in a row that belongs to a deny list. The kernel program reads this field only in
/// rules that pin clients.
const OF_A_LIST: u16 = u16::MAX;

/// The row that every prefix of a list has in the trie.
pub(super) const fn row(counters: u32) -> RuleRow {
    RuleRow { action: RULE_DENY, backend: OF_A_LIST, counters }
}

/// Whether a row belongs to a deny list rather than to a rule.
pub(super) const fn is_of_a_list(row: &RuleRow) -> bool {
    row.action == RULE_DENY && row.backend == OF_A_LIST
}

/// A change of one prefix that must be written to the trie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Add(IpNet),
    Remove(IpNet),
}

/// The deny list of one service.
pub(super) struct Listed {
    /// The counter row that all prefixes of the list share.
    pub(super) counters: u32,
    /// The prefixes of the list that the trie contains, or would contain if no rule had the same prefix.
    there: BTreeSet<IpNet>,
    steps: VecDeque<Step>,
}

impl Listed {
    pub(super) const fn new(counters: u32) -> Self {
        Self { counters, there: BTreeSet::new(), steps: VecDeque::new() }
    }

    pub(super) fn has(&self, prefix: IpNet) -> bool {
        self.there.contains(&prefix)
    }

    pub(super) fn len(&self) -> usize {
        self.there.len()
    }

    /// Sets the target: the trie is to contain the prefixes of `list` in place of an earlier target.
    pub(super) fn become_list(&mut self, list: &DenyList, family: Family) {
        let stays = |prefix: &IpNet| Family::of(prefix.addr()) == family && list.contains(*prefix);
        let gone = self.there.iter().filter(|prefix| !stays(prefix)).map(|prefix| Step::Remove(*prefix));
        let new = list.of(family).filter(|prefix| !self.there.contains(prefix)).map(Step::Add);
        self.steps = new.chain(gone).collect();
    }

    pub(super) fn next(&self) -> Option<Step> {
        self.steps.front().copied()
    }

    /// Records that the next change has been written.
    pub(super) fn done(&mut self) {
        match self.steps.pop_front() {
            Some(Step::Add(prefix)) => drop(self.there.insert(prefix)),
            Some(Step::Remove(prefix)) => drop(self.there.remove(&prefix)),
            None => {}
        }
    }

    /// Records that the trie already contains this prefix.
    pub(super) fn adopt(&mut self, prefix: IpNet) {
        self.there.insert(prefix);
    }
}

/// The deny list that a service should have, and the address family of the service's clients.
#[derive(Clone, Debug)]
pub struct DeniedBy {
    pub service: ServiceId,
    /// The family of the service's clients.
    pub family: Family,
    /// The list that the service should have.
    pub list: Arc<DenyList>,
}

/// The services that have deny lists.
pub(super) type Lists = HashMap<ServiceId, Listed>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_list_is_replaced_half_way_then_what_is_left_leads_to_the_last_one() {
        let list = |text: &str| DenyList::parse(text.as_bytes()).unwrap();
        let mut listed = Listed::new(0);
        listed.become_list(&list("10.0.0.0/8\n11.0.0.0/8\n2001:db8::/32\n"), Family::V4);
        listed.done();
        listed.become_list(&list("11.0.0.0/8\n12.0.0.0/8\n"), Family::V4);
        let mut steps = Vec::new();
        while let Some(step) = listed.next() {
            steps.push(step);
            listed.done();
        }
        let net = |text: &str| text.parse().unwrap();
        assert_eq!(
            steps,
            [Step::Add(net("11.0.0.0/8")), Step::Add(net("12.0.0.0/8")), Step::Remove(net("10.0.0.0/8"))]
        );
        assert_eq!((listed.len(), listed.has(net("12.0.0.0/8"))), (2, true));
    }
}
