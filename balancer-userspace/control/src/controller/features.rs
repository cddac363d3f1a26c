//! The features of the kernel program that a controller's services use.

use std::{collections::BTreeSet, net::IpAddr};

use balancer_common::features::Features;

use super::Controller;
use crate::{
    features::{of, of_gone, union},
    io::BackendSpec,
    service::Service,
};

impl Controller {
    /// The features that the kernel program needs for the services of this controller, and before
    /// [`start`](Self::start) also for those of its configuration file.
    #[must_use]
    pub fn features(&self) -> Features {
        self.features_with([])
    }

    /// The features that the kernel program needs once the addresses `more` belong to this machine, too.
    #[must_use]
    pub fn features_with(&self, more: impl IntoIterator<Item = IpAddr>) -> Features {
        let mut local = self.local_addresses();
        local.extend(more);
        let family = |row: &BackendSpec| self.services.with_id(row.service).map(Service::family);
        let gone = self.gone.iter().map(|gone| of_gone(&gone.row, family(&gone.row)));
        let first = self.first.iter().map(|service| of(service, &local));
        union(self.services.iter().map(|service| service.features(&local)).chain(gone).chain(first))
    }

    /// The addresses of backends that belong to this machine, as far as they are known.
    #[must_use]
    pub fn local_addresses(&self) -> BTreeSet<IpAddr> {
        self.hops.local().collect()
    }
}
