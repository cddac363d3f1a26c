//! The features of the kernel program that a service uses.

use std::{collections::BTreeSet, net::IpAddr};

use balancer_common::features::Features;

use super::Service;
use crate::features::{of_leg, of_rules};

impl Service {
    /// The features that the service uses, or may use without a change of its configuration, on a machine with the
    /// addresses `local`.
    pub(crate) fn features(&self, local: &BTreeSet<IpAddr>) -> Features {
        let backends = self.backends.iter().map(|backend| &backend.config);
        let rules = !self.rules.is_empty() || !self.told_rules.is_empty();
        let shares = if self.share().is_all() { Features::NONE } else { Features::SHARE };
        of_leg(&self.settings, self.family, backends, local) | of_rules(rules) | shares
    }
}
