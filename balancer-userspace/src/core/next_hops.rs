//! The next hops of the backends' addresses. Backends that share an address share one watch.

use std::{collections::BTreeMap, net::IpAddr};

use crate::core::io::NextHop;

/// What is known of the way to an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Hop {
    /// Nothing yet. The backend may be steered to, but has no row that forwards.
    #[default]
    Pending,
    Resolved(NextHop),
    /// Why there is none.
    Failed(String),
}

#[derive(Clone, Debug, Default)]
struct Watch {
    hop: Hop,
    users: usize,
}

/// Every watched address.
#[derive(Clone, Debug, Default)]
pub(crate) struct NextHops(BTreeMap<IpAddr, Watch>);

impl NextHops {
    /// Counts one more user of `address`; true if it is the first.
    pub(crate) fn watch(&mut self, address: IpAddr) -> bool {
        let watch = self.0.entry(address).or_default();
        watch.users += 1;
        watch.users == 1
    }

    /// Counts one user of `address` less; true if it was the last.
    pub(crate) fn release(&mut self, address: IpAddr) -> bool {
        let Some(watch) = self.0.get_mut(&address) else { return false };
        watch.users -= 1;
        if watch.users > 0 {
            return false;
        }
        self.0.remove(&address);
        true
    }

    /// Takes over what was found out; false if it is known already, or nobody asked.
    pub(crate) fn set(&mut self, address: IpAddr, next_hop: Result<NextHop, String>) -> bool {
        let Some(watch) = self.0.get_mut(&address) else { return false };
        let hop = next_hop.map_or_else(Hop::Failed, Hop::Resolved);
        let news = watch.hop != hop;
        watch.hop = hop;
        news
    }

    pub(crate) fn get(&self, address: IpAddr) -> Hop {
        self.0.get(&address).map_or(Hop::Pending, |watch| watch.hop.clone())
    }
}
