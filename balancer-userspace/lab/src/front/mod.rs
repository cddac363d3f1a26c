//! The programs between clients and servers.

mod balancers;
mod proxies;

use anyhow::Result;

pub(crate) use self::{
    balancers::{Balancers, FrontOf},
    proxies::Proxy,
};
use crate::{
    event::Event,
    hosts::Hosts,
    row::{Front as Kind, Row},
};

/// The balancers or the proxy in front of the servers. Dropping the value ends them.
#[derive(Debug)]
pub(crate) enum Front {
    /// One or several balancers.
    Balancers(Box<Balancers>),
    /// nginx or HAProxy.
    Proxy(Proxy),
}

impl Front {
    /// Starts the front of a row as an event needs it.
    pub(crate) fn start(hosts: &Hosts, row: Row, event: Event) -> Result<Self> {
        let Some(rule) = row.front.rule() else {
            let balancers = Balancers::start(hosts, row, FrontOf::event(event))?;
            if row.front == Kind::Spread {
                balancers.cli(&["rule", "add", "web", "0.0.0.0/0", "spread"])?;
            }
            return Ok(Self::Balancers(Box::new(balancers)));
        };
        Ok(Self::Proxy(Proxy::start(hosts, rule, row.strategy.servers())?))
    }

    /// Whether the front fits an event, after it has forgotten its clients. Proxies cannot forget clients.
    pub(crate) fn suits(&self, event: Event) -> bool {
        match self {
            Self::Balancers(balancers) => balancers.suits(FrontOf::event(event)),
            Self::Proxy(_) => false,
        }
    }

    /// Forgets the clients of this number of servers, and of an added server.
    pub(crate) fn forget(&self, servers: u16) -> Result<()> {
        let Self::Balancers(balancers) = self else { return Ok(()) };
        (1..=servers).try_for_each(|number| {
            balancers.cli(&["client", "forget", "--backend", &format!("web/web{number}")]).map(drop)
        })
    }

    /// The number of moves that the front has counted; `None` if the front has no counter or does not answer.
    pub(crate) fn moves(&self, hosts: &Hosts) -> Option<u64> {
        match self {
            Self::Balancers(balancers) => balancers.moves(hosts),
            Self::Proxy(_) => None,
        }
    }

    /// Ends the front and cleans up.
    pub(crate) fn end(self, hosts: &Hosts) -> Result<()> {
        match self {
            Self::Balancers(balancers) => balancers.end(hosts),
            Self::Proxy(proxy) => proxy.end(hosts),
        }
    }
}
