//! The contenders: the balancer, and proxies instead of it.

use anyhow::Result;
use balancer_bench::classics::Rule;
use balancer_testkit::topology::Topology;

use crate::{
    balanced::Balanced,
    classic::{Classic, Hosts},
    step::Step,
};

/// A program that chooses servers, with its rule or its memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Contender {
    /// A proxy.
    Classic(Rule),
    /// The balancer, with this memory time.
    Balancer(&'static str),
}

/// All contenders, in the order of the table.
pub(crate) const ALL: [Contender; 7] = [
    Contender::Classic(Rule::NginxIpHash),
    Contender::Classic(Rule::NginxHash),
    Contender::Classic(Rule::NginxConsistent),
    Contender::Classic(Rule::HaproxySource),
    Contender::Classic(Rule::HaproxyConsistent),
    Contender::Balancer("3h"),
    Contender::Balancer("0s"),
];

/// A running contender. Dropping the value ends it.
pub(crate) trait Front {
    /// The hosts on which the contender runs.
    fn topology(&self) -> &Topology;
    /// Makes a step's change, and waits for its effect.
    fn perform(&mut self, step: Step) -> Result<()>;
}

impl Contender {
    pub(crate) fn title(self) -> String {
        match self {
            Self::Classic(rule) => rule.title().to_owned(),
            Self::Balancer(memory) => format!("balancer, `remember = \"{memory}\"`"),
        }
    }

    /// Returns the program's version; `None` for the balancer, which is the one under test.
    pub(crate) fn version(self) -> Result<Option<String>> {
        match self {
            Self::Classic(rule) => rule.version().map(Some),
            Self::Balancer(_) => Ok(None),
        }
    }

    /// Returns an error if the program is not installed.
    pub(crate) fn ensure_installed(self) -> Result<()> {
        match self {
            Self::Classic(rule) => rule.ensure_installed(),
            Self::Balancer(_) => Ok(()),
        }
    }

    /// Starts the contender without earlier clients; proxies run on `hosts`.
    pub(crate) fn start(self, hosts: &Hosts) -> Result<Box<dyn Front + '_>> {
        Ok(match self {
            Self::Classic(rule) => Box::new(Classic::start(hosts, rule)?),
            Self::Balancer(memory) => Box::new(Balanced::start(memory)?),
        })
    }
}
