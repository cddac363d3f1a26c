//! The settings of a rig.

use balancer_common::features::Features;
use balancer_config::snat::SnatConfig;
use balancer_dataplane::Budgets;

use super::POOL_PORTS;

/// The settings of a rig that few tests change.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Features of the program in addition to the features that the services need from the start. A test names the
    /// features of its later changes here, because the rig would otherwise load a second program for them.
    pub features: Features,
    /// Whether the program logs unexpected packets: see [`Rig::log`](super::Rig::log).
    pub tells: bool,
    /// The limits of each CPU.
    pub budgets: Budgets,
    /// The pool of `snat` services.
    pub snat: SnatConfig,
    /// The number of `snat` connections for which the table is sized.
    pub flows: u32,
}

impl Default for Setup {
    fn default() -> Self {
        let snat = SnatConfig { ports: Some(POOL_PORTS), ..SnatConfig::default() };
        Self { features: Features::NONE, tells: false, budgets: Budgets::here(), snat, flows: 1 << 10 }
    }
}
