//! The balancer as a contender: like an operator, the benchmark applies an edited configuration file, or runs a
//! command.

use anyhow::Result;
use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::Site,
    topology::{Shape, Topology},
};

use crate::{
    clients,
    contender::Front,
    step::{SPARE, Step, TARGET},
};

/// The weight of each server in the configuration.
const WEIGHT: u16 = 100;

pub(crate) struct Balanced(Site);

impl Balanced {
    pub(crate) fn start(memory: &'static str) -> Result<Self> {
        let site = Site::start(Shape::OneLegged, Forwarding::Nat, SPARE, |settings, topology| {
            settings.backends.retain(|&(number, _)| number != SPARE);
            settings.remember = memory;
            settings.on_exit = "keep";
            clients::connect(topology)
        })?;
        Ok(Self(site))
    }
}

impl Front for Balanced {
    fn topology(&self) -> &Topology {
        self.0.topology()
    }

    fn perform(&mut self, step: Step) -> Result<()> {
        let (site, name) = (&mut self.0, format!("web/web{TARGET}"));
        match step {
            Step::Delete => site.apply(|all| all.backends.retain(|&(number, _)| number != TARGET)).map(drop),
            Step::Reorder => site.restart(|all| all.backends.reverse()),
            Step::Add => {
                site.apply(|all| all.backends.push((SPARE, WEIGHT)))?;
                site.wait_state(SPARE, &["up"])
            }
            Step::Weigh => site.cli(&["backend", "weight", &name, &(WEIGHT / 2).to_string()]).map(drop),
            Step::Drain => site.cli(&["backend", "drain", &name]).map(drop),
            Step::Return => site.cli(&["backend", "ready", &name]).map(drop),
        }
    }
}
