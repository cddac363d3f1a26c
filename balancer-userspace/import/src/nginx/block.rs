//! Finds the listeners that services may have: those whose `server` blocks all pass to the same servers.

use std::collections::{BTreeMap, BTreeSet};

use super::listen::Listen;
use crate::{notes::Conversion, place::Place, service::Listener, tree::Directive};

const KEEP: &str = "the choice between them by the content of requests is layer 7, which this balancer does not do: keep nginx as the backend, or remove one of the two and import again";

/// A `server` block and what it listens on.
pub(super) struct Block<'a> {
    pub(super) server: &'a Directive,
    pub(super) listens: Vec<Listen>,
    /// The only target of the block; `None` if the block cannot be converted.
    pub(super) target: Option<Target<'a>>,
}

/// The host or upstream to which a block passes connections, and the directive that says so.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) name: &'a str,
    pub(super) pass: &'a Directive,
}

/// The blocks that share each listener, as positions among all blocks; and whether the listener of a block has options
/// that the balancer cannot serve.
pub(super) struct Listeners(BTreeMap<Listener, Vec<(usize, bool)>>);

impl Listeners {
    pub(super) fn of(blocks: &[Block<'_>]) -> Self {
        let mut all: BTreeMap<Listener, Vec<(usize, bool)>> = BTreeMap::new();
        for (index, block) in blocks.iter().enumerate() {
            for listen in &block.listens {
                all.entry(listen.listener).or_default().push((index, listen.refused.is_some()));
            }
        }
        Self(all)
    }

    /// The listeners of the block at `index` that its service gets. nginx chooses among the blocks of a listener by the
    /// content of requests, so a listener belongs to a service only if all its blocks pass to the same servers; the
    /// first of these blocks gets the listener.
    pub(super) fn kept(&self, conversion: &mut Conversion, blocks: &[Block<'_>], index: usize) -> Vec<Listener> {
        let Some(block) = blocks.get(index) else { return Vec::new() };
        let mut kept = Vec::new();
        let mut is_served_elsewhere = false;
        for listen in block.listens.iter().filter(|listen| listen.refused.is_none()) {
            if let Some((place, why)) = self.in_the_way(blocks, index, &listen.listener) {
                let why = format!("the server of {place} has this address as well and {why}; {KEEP}");
                conversion.needs_you(&listen.place, &listen.text, why);
            } else if let Some(first) =
                self.first(blocks, &listen.listener).filter(|first| !std::ptr::eq(*first, block))
            {
                is_served_elsewhere = true;
                let why = format!(
                    "the server of {} has this address as well and passes to the same servers; nothing to do",
                    first.server.place
                );
                conversion.not_needed(&listen.place, &listen.text, why);
            } else {
                kept.extend(self.addresses(conversion, listen));
            }
        }
        if kept.is_empty() && !is_served_elsewhere {
            let why = "none of its listeners could be converted; see its `listen`";
            conversion.not_needed(&block.server.place, "server", why);
        }
        kept
    }

    fn sharers(&self, listener: &Listener) -> &[(usize, bool)] {
        self.0.get(listener).map_or(&[], Vec::as_slice)
    }

    fn first<'a, 'b>(&self, blocks: &'a [Block<'b>], listener: &Listener) -> Option<&'a Block<'b>> {
        let (first, _) = self.sharers(listener).first()?;
        blocks.get(*first)
    }

    /// Another block with this listener that passes elsewhere or could not be converted, and why it is in the way.
    fn in_the_way<'a>(
        &self,
        blocks: &'a [Block<'_>],
        index: usize,
        listener: &Listener,
    ) -> Option<(&'a Place, &'static str)> {
        let own = blocks.get(index)?.target?.name;
        self.sharers(listener).iter().filter(|(other, _)| *other != index).find_map(|(other, refused)| {
            let other = blocks.get(*other)?;
            let why = match other.target {
                Some(target) if target.name == own && !refused => return None,
                Some(target) if target.name != own => "passes to other servers",
                Some(_) | None => "could not be converted",
            };
            Some((&other.server.place, why))
        })
    }

    /// The addresses of a listener. As in nginx, a listener on every address does not get the addresses that other
    /// listeners with the same port name.
    fn addresses(&self, conversion: &mut Conversion, listen: &Listen) -> Vec<Listener> {
        if !listen.listener.address.is_unspecified() {
            return vec![listen.listener];
        }
        let named = conversion.named_addresses(&listen.place, &listen.text, listen.listener);
        let (others, own): (Vec<_>, Vec<_>) =
            named.into_iter().partition(|one| one != &listen.listener && self.0.contains_key(one));
        let others: BTreeSet<_> = others.iter().map(|other| other.address.to_string()).collect();
        if !others.is_empty() {
            let others: Vec<_> = others.into_iter().collect();
            let why = format!("another `listen` names {} with this port; nothing to do", others.join(", "));
            conversion.not_needed(&listen.place, &listen.text, why);
        }
        own
    }
}
