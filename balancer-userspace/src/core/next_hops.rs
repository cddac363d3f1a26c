//! The next hops of the backends' addresses. Backends that share an address share one watch.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::core::io::NextHop;

/// What is known of the way to an address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hop {
    /// Nothing yet. The backend may be steered to, but has no row that forwards.
    #[default]
    Pending,
    /// There it is.
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
pub(crate) struct NextHops {
    watches: BTreeMap<IpAddr, Watch>,
    /// What was known before a restart, until somebody watches.
    before: BTreeMap<IpAddr, Hop>,
}

impl NextHops {
    /// Nothing watched yet; what is watched begins with what was known `before`.
    pub(crate) fn restored(before: impl IntoIterator<Item = (IpAddr, Hop)>) -> Self {
        Self { before: before.into_iter().collect(), ..Self::default() }
    }

    /// What is known.
    pub(crate) fn all(&self) -> impl Iterator<Item = (IpAddr, &Hop)> {
        self.watches.iter().map(|(&address, watch)| (address, &watch.hop))
    }

    /// Counts one more user of `address`; true if it is the first.
    pub(crate) fn watch(&mut self, address: IpAddr) -> bool {
        let before = &mut self.before;
        let watch = self
            .watches
            .entry(address)
            .or_insert_with(|| Watch { hop: before.remove(&address).unwrap_or_default(), users: 0 });
        watch.users += 1;
        watch.users == 1
    }

    /// Counts one user of `address` less; true if it was the last.
    pub(crate) fn release(&mut self, address: IpAddr) -> bool {
        let Some(watch) = self.watches.get_mut(&address) else { return false };
        watch.users -= 1;
        if watch.users > 0 {
            return false;
        }
        self.watches.remove(&address);
        true
    }

    /// Takes over what was found out; false if it is known already, or nobody asked.
    pub(crate) fn set(&mut self, address: IpAddr, next_hop: Result<NextHop, String>) -> bool {
        let Some(watch) = self.watches.get_mut(&address) else { return false };
        let hop = next_hop.map_or_else(Hop::Failed, Hop::Resolved);
        let news = watch.hop != hop;
        watch.hop = hop;
        news
    }

    pub(crate) fn get(&self, address: IpAddr) -> Hop {
        let known = self.watches.get(&address).map(|watch| &watch.hop).or_else(|| self.before.get(&address));
        known.cloned().unwrap_or_default()
    }
}
