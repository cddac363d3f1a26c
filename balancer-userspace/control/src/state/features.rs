//! The features of the kernel program that the services of a state use.

use std::{collections::BTreeSet, net::IpAddr};

use balancer_common::features::Features;
use balancer_config::listeners::Family;

use super::{SavedService, SavedState};
use crate::{
    features::{of_gone, of_leg, of_rules, union},
    io::BackendSpec,
};

impl SavedState {
    /// The features that the kernel program needs for the services of this state, on a machine with the addresses
    /// `local`.
    #[must_use]
    pub fn features(&self, local: &BTreeSet<IpAddr>) -> Features {
        let service = |row: &BackendSpec| self.services.iter().find(|service| service.id == row.service);
        let gone = self.gone.iter().map(|gone| of_gone(&gone.row, service(&gone.row).and_then(SavedService::leg)));
        union(self.services.iter().map(|service| service.features(local)).chain(gone))
    }
}

impl SavedService {
    fn leg(&self) -> Option<Family> {
        self.family.or_else(|| self.settings.listen.first().map(|listener| listener.family()))
    }

    fn features(&self, local: &BTreeSet<IpAddr>) -> Features {
        let backends = self.backends.iter().map(|backend| &backend.config);
        let of = |family| of_leg(&self.settings, family, backends, local);
        let shares = if self.share.is_some() { Features::SHARE } else { Features::NONE };
        self.leg().map_or(Features::NONE, of) | of_rules(!self.rules.is_empty()) | shares
    }
}
