//! The web servers with sessions, each on its own host.

mod node;
mod php;
mod tomcat;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use balancer_demo::{http_client::Request, topology::Family};
use nix::sys::signal::Signal;

use crate::{
    hosts::Hosts,
    part::Part,
    software,
    strategy::{Home, Strategy},
};

/// The port of the web servers.
pub(crate) const PORT: u16 = 80;
/// The path and query that a server answers without using a session.
pub(crate) const HEALTH: &str = "/?health=1";
/// The time limit for a check of a web server.
const GLANCE: Duration = Duration::from_secs(1);

/// The settings for starting a web server.
#[derive(Debug)]
pub(crate) struct Setting<'a> {
    hosts: &'a Hosts,
    strategy: Strategy,
    /// The addresses of the stores that the server uses.
    endpoints: &'a [String],
    /// The total number of web servers.
    servers: u16,
}

/// The running programs of each server, beginning with server 1.
#[derive(Debug)]
pub(crate) struct Servers {
    strategy: Strategy,
    endpoints: Vec<String>,
    servers: Vec<Vec<Part>>,
}

impl Servers {
    /// Starts all web servers, and waits until they answer.
    pub(crate) fn start(strategy: Strategy, endpoints: Vec<String>, hosts: &Hosts) -> Result<Self> {
        let count = strategy.servers() + strategy.spares();
        let mut this = Self { strategy, endpoints, servers: (0..count).map(|_| Vec::new()).collect() };
        for number in 1..=count {
            this.spawn(hosts, number)?;
            if strategy.home() == Home::Servers {
                // The servers start one by one, because a starting server requests the sessions of all other servers,
                // even of those that are still starting.
                this.wait(hosts, number)?;
            }
        }
        for number in 1..=count {
            this.wait(hosts, number)?;
        }
        Ok(this)
    }

    /// Starts a server again, and waits until it answers.
    pub(crate) fn start_one(&mut self, hosts: &Hosts, number: u16) -> Result<()> {
        self.spawn(hosts, number)?;
        self.wait(hosts, number)
    }

    pub(crate) fn stop(&mut self, number: u16) -> Result<()> {
        self.parts(number)?.iter_mut().try_for_each(Part::stop)?;
        self.parts(number)?.clear();
        Ok(())
    }

    /// Kills all processes of a server at the same time.
    pub(crate) fn kill(&mut self, number: u16) -> Result<()> {
        self.parts(number)?.iter_mut().try_for_each(Part::kill)?;
        self.parts(number)?.clear();
        Ok(())
    }

    /// Freezes a server without closing its connections, or makes a frozen server continue.
    pub(crate) fn freeze(&mut self, number: u16, frozen: bool) -> Result<()> {
        let signal = if frozen { Signal::SIGSTOP } else { Signal::SIGCONT };
        self.parts(number)?.iter().try_for_each(|part| part.signal(signal))
    }

    fn parts(&mut self, number: u16) -> Result<&mut Vec<Part>> {
        self.servers.get_mut(usize::from(number) - 1).with_context(|| format!("there is no web{number}"))
    }

    fn spawn(&mut self, hosts: &Hosts, number: u16) -> Result<()> {
        let servers = u16::try_from(self.servers.len())?;
        let setting = Setting { hosts, strategy: self.strategy, endpoints: &self.endpoints, servers };
        let parts = if software::is_node(self.strategy) {
            node::start(&setting, number)
        } else if software::is_php(self.strategy) {
            php::start(&setting, number)
        } else {
            tomcat::start(&setting, number)
        };
        *self.parts(number)? = parts?;
        Ok(())
    }

    fn wait(&mut self, hosts: &Hosts, number: u16) -> Result<()> {
        let host = &hosts.topology.backends()[usize::from(number) - 1];
        let any = SocketAddr::new(IpAddr::from([0, 0, 0, 0]), 0);
        let target = SocketAddr::new(hosts.topology.backend_address(Family::V4, number - 1), PORT);
        let request = Request { timeout: GLANCE, ..Request::new(any, target).path(HEALTH) };
        let well =
            || host.run_in_thread(|| request.send()).is_ok_and(|reply| reply.is_ok_and(|reply| reply.status == 200));
        let parts = self.parts(number)?;
        ensure!(!parts.is_empty(), "web{number} has no programs");
        for part in parts {
            part.wait("answering", well)?;
        }
        Ok(())
    }
}
