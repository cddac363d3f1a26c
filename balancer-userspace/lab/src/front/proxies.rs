//! nginx and HAProxy as fronts, at the service's address on the first balancer's host.

use std::net::SocketAddr;

use anyhow::Result;
use balancer_demo::topology::{Family, Topology};

use crate::{
    hosts::Hosts,
    proxy::{self, Rule, Server},
    servers::{HEALTH, PORT},
};

const FAMILY: Family = Family::V4;

/// A proxy that runs on the first balancer's host.
#[derive(Debug)]
pub(crate) struct Proxy(proxy::Proxy);

impl Proxy {
    pub(crate) fn start(hosts: &Hosts, rule: Rule, servers: u16) -> Result<Self> {
        let servers = (1..=servers).map(|number| server(&hosts.topology, number)).collect();
        let (vip, host) = (hosts.topology.vip(FAMILY), hosts.topology.balancer());
        host.ip(&format!("addr add {vip}/32 dev lo"))?;
        let (first, _) = Topology::balancer_address(FAMILY);
        hosts.topology.router().ip(&format!("-4 route replace {vip} via {first}"))?;
        let (target, files) = (SocketAddr::new(vip, PORT), hosts.directory("proxy")?);
        Ok(Self(proxy::Proxy::start(host, rule, servers, target, HEALTH, &files)?))
    }

    /// Adds a server to the proxy's configuration.
    pub(crate) fn add(&mut self, hosts: &Hosts, number: u16) -> Result<()> {
        self.0.add(server(&hosts.topology, number))
    }

    /// Changes the weight of a server; at first, all servers have the weight 10.
    pub(crate) fn weigh(&mut self, number: u16, weight: u16) -> Result<()> {
        self.0.weigh(&name(number), weight)
    }

    /// Drains a server, or makes it ready again.
    pub(crate) fn drain(&mut self, number: u16, drained: bool) -> Result<()> {
        self.0.drain(&name(number), drained)
    }

    pub(crate) fn restart(&mut self, hosts: &Hosts) -> Result<()> {
        self.0.restart(hosts.topology.balancer())
    }

    pub(crate) fn end(mut self, hosts: &Hosts) -> Result<()> {
        self.0.kill()?;
        let vip = hosts.topology.vip(FAMILY);
        hosts.topology.balancer().ip(&format!("addr del {vip}/32 dev lo"))?;
        hosts.topology.router().ip(&format!("-4 route flush {vip}")).map(drop)
    }
}

fn name(number: u16) -> String {
    format!("web{number}")
}

fn server(topology: &Topology, number: u16) -> Server {
    Server::new(name(number), SocketAddr::new(topology.backend_address(FAMILY, number - 1), PORT))
}
