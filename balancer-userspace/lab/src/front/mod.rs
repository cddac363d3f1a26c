//! The programs (fronts) between clients and servers.

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

/// The front: the balancers or the proxy between clients and servers. Dropping the value ends the programs of the
/// front.
#[derive(Debug)]
pub(crate) enum Front {
    /// The front consists of one or several balancers.
    Balancers(Box<Balancers>),
    /// The front is nginx or HAProxy.
    Proxy(Proxy),
}

impl Front {
    /// Starts the front of a row, in the arrangement that an event needs.
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

    /// Whether this front, after forgetting its clients, can be used again for the event. A proxy cannot forget
    /// clients, so it is never used again.
    pub(crate) fn suits(&self, event: Event) -> bool {
        match self {
            Self::Balancers(balancers) => balancers.suits(FrontOf::event(event)),
            Self::Proxy(_) => false,
        }
    }

    /// Makes the front forget the clients of this number of servers, and of a server that was added.
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

    /// Ends the front and undoes its changes to the hosts.
    pub(crate) fn end(self, hosts: &Hosts) -> Result<()> {
        match self {
            Self::Balancers(balancers) => balancers.end(hosts),
            Self::Proxy(proxy) => proxy.end(hosts),
        }
    }
}
