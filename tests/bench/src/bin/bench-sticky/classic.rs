//! A proxy as a contender: like an operator, the benchmark edits the proxy's list of servers and restarts the proxy.

use anyhow::Result;
use balancer_bench::classics::{Proxy, Rule, Server, server, start};
use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    backend::Backend,
    site::start_backend,
    topology::{Shape, Topology},
};
use tempfile::TempDir;

use crate::{
    clients,
    contender::Front,
    step::{SERVERS, SPARE, Step, TARGET},
};

/// The hosts on which the proxies run, one proxy after the other. Rust drops the fields in the order of their
/// declarations, which ends the programs.
pub(crate) struct Hosts {
    _backends: Vec<Backend>,
    topology: Topology,
    files: TempDir,
}

impl Hosts {
    pub(crate) fn new() -> Result<Self> {
        let topology = Topology::new(Shape::OneLegged, Forwarding::Nat, usize::from(SPARE))?;
        clients::connect(&topology)?;
        let files = tempfile::tempdir()?;
        let backend = |number| start_backend(&topology, Forwarding::Nat, number, files.path());
        let backends = (1..=SPARE).map(backend).collect::<Result<_>>()?;
        Ok(Self { _backends: backends, topology, files })
    }
}

pub(crate) struct Classic<'a> {
    proxy: Proxy,
    rule: Rule,
    hosts: &'a Hosts,
}

impl<'a> Classic<'a> {
    pub(crate) fn start(hosts: &'a Hosts, rule: Rule) -> Result<Self> {
        Ok(Self { proxy: start(&hosts.topology, rule, SERVERS, hosts.files.path())?, rule, hosts })
    }

    fn edit(&mut self, edit: impl FnOnce(&mut Vec<Server>)) -> Result<()> {
        edit(self.proxy.servers());
        self.proxy.restart(self.hosts.topology.balancer())
    }

    fn edit_target(&mut self, edit: impl FnOnce(&mut Server)) -> Result<()> {
        edit(self.proxy.server(&target())?);
        self.proxy.restart(self.hosts.topology.balancer())
    }

    fn drain(&mut self, drained: bool) -> Result<()> {
        if self.rule.is_nginx() {
            return self.edit_target(|server| server.drained = drained);
        }
        self.proxy.drain(&target(), drained)
    }
}

impl Front for Classic<'_> {
    fn topology(&self) -> &Topology {
        &self.hosts.topology
    }

    fn perform(&mut self, step: Step) -> Result<()> {
        let spare = server(&self.hosts.topology, SPARE);
        match step {
            Step::Delete => self.edit(|servers| servers.retain(|server| server.name != target())),
            Step::Reorder => self.edit(|servers| servers.reverse()),
            Step::Add => self.edit(|servers| servers.push(spare)),
            Step::Weigh => self.edit_target(|server| server.weight /= 2),
            Step::Drain => self.drain(true),
            Step::Return => self.drain(false),
        }
    }
}

fn target() -> String {
    format!("web{TARGET}")
}
