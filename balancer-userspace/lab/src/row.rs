//! The rows of the results: a strategy, and the program in front of its servers.

use balancer_common::map_types::Forwarding;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::{
    event::Event,
    proxy::Rule,
    strategy::{Home, Strategy},
};

/// The program that chooses a server for each connection, with its rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Front {
    /// The balancer, which remembers clients.
    Sticky,
    /// The balancer with `nat`, where replies also pass through the balancer.
    Nat,
    /// The balancer with `snat`, where servers see the balancer's address.
    Snat,
    /// The balancer with a rule `spread` for all clients.
    Spread,
    /// In nginx, the directive `ip_hash`.
    NginxIpHash,
    /// In nginx, the directive `hash $remote_addr consistent`.
    NginxConsistent,
    /// A cookie that names the server, in nginx, similar to `sticky` in nginx's commercial edition.
    NginxCookie,
    /// In `HAProxy`, the directive `balance source` with `hash-type consistent`.
    HaproxySource,
    /// A stick table in `HAProxy` that contains source addresses.
    HaproxyTable,
    /// In `HAProxy`, the directive `cookie insert`.
    HaproxyCookie,
}

impl Front {
    /// The rule by which nginx or HAProxy chooses a server; `None` for the balancer.
    pub(crate) const fn rule(self) -> Option<Rule> {
        match self {
            Self::Sticky | Self::Nat | Self::Snat | Self::Spread => None,
            Self::NginxIpHash => Some(Rule::NginxIpHash),
            Self::NginxConsistent => Some(Rule::NginxConsistent),
            Self::NginxCookie => Some(Rule::NginxCookie),
            Self::HaproxySource => Some(Rule::HaproxyConsistent),
            Self::HaproxyTable => Some(Rule::HaproxyTable),
            Self::HaproxyCookie => Some(Rule::HaproxyCookie),
        }
    }

    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Sticky => "balancer",
            Self::Nat => "balancer, nat",
            Self::Snat => "balancer, snat",
            Self::Spread => "balancer, spread",
            Self::NginxIpHash => "nginx ip_hash",
            Self::NginxConsistent => "nginx hash consistent",
            Self::NginxCookie => "nginx cookie map",
            Self::HaproxySource => "HAProxy source",
            Self::HaproxyTable => "HAProxy stick table",
            Self::HaproxyCookie => "HAProxy cookie",
        }
    }

    #[must_use]
    pub const fn is_balancer(self) -> bool {
        matches!(self, Self::Sticky | Self::Nat | Self::Snat | Self::Spread)
    }

    /// Whether the program remembers clients by their addresses and counts their moves.
    pub(crate) const fn remembers(self) -> bool {
        matches!(self, Self::Sticky | Self::Nat | Self::Snat)
    }

    /// The forwarding mode of the balancer; the default mode for other programs.
    pub(crate) const fn forwarding(self) -> Forwarding {
        match self {
            Self::Nat => Forwarding::Nat,
            Self::Snat => Forwarding::Snat,
            _ => Forwarding::Dsr,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Row {
    /// The strategy of the servers, which tells where sessions are stored.
    pub strategy: Strategy,
    /// The program in front of the servers.
    pub front: Front,
}

impl Row {
    /// Returns every row, in the order of the results.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let sticky = |&strategy: &Strategy| Self { strategy, front: Front::Sticky };
        let spread = |&strategy: &Strategy| Self { strategy, front: Front::Spread };
        let strategies = Strategy::value_variants();
        let classics = Front::value_variants().iter().filter(|front| !front.is_balancer());
        let mut rows: Vec<Self> = strategies.iter().map(sticky).collect();
        rows.extend(strategies.iter().filter(|strategy| !strategy.is_growth()).map(spread));
        let node = |front| Self { strategy: Strategy::NodeMemory, front };
        rows.extend([Front::Nat, Front::Snat].map(node));
        rows.extend(classics.map(|&front| node(front)));
        rows
    }

    /// The name of the row in file names, such as `node-memory` or `node-memory.spread`.
    #[must_use]
    pub fn id(self) -> String {
        let name =
            |value: Option<clap::builder::PossibleValue>| value.map_or_else(String::new, |v| v.get_name().to_owned());
        let strategy = name(self.strategy.to_possible_value());
        if self.front == Front::Sticky {
            return strategy;
        }
        format!("{strategy}.{}", name(self.front.to_possible_value()))
    }

    /// The name of the row for human readers.
    #[must_use]
    pub fn title(self) -> String {
        let strategy = self.strategy.title();
        match self.front {
            Front::Sticky => strategy.to_owned(),
            Front::Nat => format!("{strategy}, nat"),
            Front::Snat => format!("{strategy}, snat"),
            Front::Spread => format!("{strategy}, not sticky"),
            _ => format!("{} · {strategy}", self.front.title()),
        }
    }

    /// Whether the lab causes this event for this row.
    #[must_use]
    pub fn has(self, event: Event) -> bool {
        if self.strategy.is_growth() {
            return event == Event::Nothing;
        }
        match (self.front, event) {
            (Front::Sticky, Event::StoreRestart | Event::StorePartition) => self.strategy.has_store(),
            (Front::Sticky, Event::StoreFull) => self.strategy.store_can_be_full(),
            (Front::Sticky, Event::StoreFailover) => self.strategy.home() == Home::Stores,
            (Front::Sticky, Event::Standby | Event::Member | Event::Upgrade | Event::Flap) => {
                self.strategy.stands_for_its_kind()
            }
            (Front::Sticky, _) if self.strategy.is_variation() => matches!(
                event,
                Event::Nothing | Event::Add | Event::Drain | Event::Kill | Event::Deploy | Event::Restart
            ),
            (Front::Sticky, _) => true,
            (Front::Nat | Front::Snat, _) => {
                matches!(event, Event::Nothing | Event::Kill | Event::Return | Event::Hang)
            }
            (Front::Spread, _) => matches!(event, Event::Nothing | Event::Kill),
            _ => matches!(
                event,
                Event::Nothing
                    | Event::Add
                    | Event::Weight
                    | Event::Drain
                    | Event::Kill
                    | Event::Return
                    | Event::Restart
            ),
        }
    }

    /// Returns the events for this row, in the order in which the lab causes them.
    pub fn events(self) -> impl Iterator<Item = Event> {
        Event::ALL.into_iter().filter(move |&event| self.has(event))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Front, Row, Strategy};
    use crate::event::Event;

    #[test]
    fn when_rows_are_listed_then_their_names_differ() {
        let rows = Row::all();
        let names: BTreeSet<String> = rows.iter().map(|row| row.id()).collect();
        assert_eq!(names.len(), rows.len());
        assert!(names.contains("node-memory") && names.contains("node-memory.nginx-ip-hash"), "{names:?}");
        assert!(!names.contains("tomcat-delta9.spread"));
    }

    #[test]
    fn when_a_strategy_has_no_store_then_no_event_breaks_one() {
        let has = |strategy, event| Row { strategy, front: Front::Sticky }.has(event);
        assert!(!has(Strategy::NodeMemory, Event::StoreRestart));
        assert!(!has(Strategy::TomcatFile, Event::StorePartition));
        assert!(has(Strategy::NodeRedis, Event::StoreRestart) && !has(Strategy::NodeRedis, Event::StoreFailover));
        assert!(has(Strategy::NodeRedisSentinel, Event::StoreFailover));
        assert!(!has(Strategy::TomcatDelta6, Event::Kill));
    }
}
