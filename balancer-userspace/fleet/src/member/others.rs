//! Compares how other members and this member steer clients.

use std::collections::BTreeSet;

use super::{Member, Output};

impl Member {
    /// Compares the cards of all members, and logs the members that have begun or ceased to steer in a different way.
    pub(super) fn compare(&mut self, outputs: &mut Vec<Output>) {
        let cards = self.cards();
        let others = cards.iter().filter(|(_, card)| card.steering != self.settings.steering);
        let others: BTreeSet<String> = others.map(|(name, _)| name.clone()).collect();
        if others == self.others {
            return;
        }
        for name in others.difference(&self.others) {
            outputs.push(Output::Log { warning: true, message: steers_otherwise(name) });
        }
        if others.is_empty() {
            outputs.push(Output::Log { warning: false, message: "all members steer alike".to_owned() });
        }
        self.others = others;
    }
}

pub(super) fn steers_otherwise(name: &str) -> String {
    format!(
        "{name} computes other lookup tables than this balancer: until all members have the same version, unknown \
         clients may reach other backends there"
    )
}
