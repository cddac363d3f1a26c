//! The contenders: the balancer, and proxies that do the balancer's work.

use anyhow::Result;
use balancer_bench::classics::Rule;
use balancer_testkit::topology::Topology;

use crate::{
    balanced::Balanced,
    classic::{Classic, Hosts},
    step::Step,
};

/// A program that chooses servers, with the program's rule or memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Contender {
    /// A proxy with the given rule for choosing servers.
    Classic(Rule),
    /// The balancer with the given value of `remember`.
    Balancer(&'static str),
}

/// All contenders, in the order of the printed table.
pub(crate) const ALL: [Contender; 7] = [
    Contender::Classic(Rule::NginxIpHash),
    Contender::Classic(Rule::NginxHash),
    Contender::Classic(Rule::NginxConsistent),
    Contender::Classic(Rule::HaproxySource),
    Contender::Classic(Rule::HaproxyConsistent),
    Contender::Balancer("3h"),
    Contender::Balancer("0s"),
];

/// A running contender of the benchmark. Dropping the value ends the contender's programs.
pub(crate) trait Front {
    /// The hosts on which the contender runs.
    fn topology(&self) -> &Topology;
    /// Makes the change that a step describes, and waits until the change is in effect.
    fn perform(&mut self, step: Step) -> Result<()>;
}

impl Contender {
    pub(crate) fn title(self) -> String {
        match self {
            Self::Classic(rule) => rule.title().to_owned(),
            Self::Balancer(memory) => format!("balancer, `remember = \"{memory}\"`"),
        }
    }

    /// Returns the version of the contender's program, or `None` for the balancer, which is the program under test.
    pub(crate) fn version(self) -> Result<Option<String>> {
        match self {
            Self::Classic(rule) => rule.version().map(Some),
            Self::Balancer(_) => Ok(None),
        }
    }

    /// Returns an error if the contender's program is not installed.
    pub(crate) fn ensure_installed(self) -> Result<()> {
        match self {
            Self::Classic(rule) => rule.ensure_installed(),
            Self::Balancer(_) => Ok(()),
        }
    }

    /// Starts the contender without any known clients. If the contender is a proxy, it runs on `hosts`.
    pub(crate) fn start(self, hosts: &Hosts) -> Result<Box<dyn Front + '_>> {
        Ok(match self {
            Self::Classic(rule) => Box::new(Classic::start(hosts, rule)?),
            Self::Balancer(memory) => Box::new(Balanced::start(memory)?),
        })
    }
}
