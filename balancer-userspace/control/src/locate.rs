//! Finds the backend to which the balancer steers a client.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    time::Duration,
};

use balancer_common::{
    client::{hash_v4, hash_v6, mask_v4, mask_v6, slot},
    map_types::ALL_DOWN,
};
use balancer_config::listeners::Family;
use ipnet::IpNet;

use crate::{
    controller::Controller,
    io::Refused,
    rules::{Action, Rule},
    service::Service,
    table::Tier,
};

/// The backend of a client in a service, and the reason for this backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    pub service: String,
    /// The client's address masked to the service's prefix.
    pub client: IpNet,
    /// The client's slot in the lookup table.
    pub slot: u32,
    /// The backend; `None`: the balancer drops the client's packets, or a rule spreads the client's connections.
    pub backend: Option<String>,
    /// The reason why the client is steered to this backend.
    pub why: Why,
    /// The rule that decides about the client; `None`: no rule decides.
    pub rule: Option<Rule>,
    /// The time since the client's last recorded packet; `None`: the client table does not contain the client, or the
    /// balancer did not read it.
    pub last_seen: Option<Duration>,
}

/// The reason why a client is steered to its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The client is known at its backend, and the backend keeps known clients.
    Known,
    /// The client's slot in the lookup table decides.
    Table,
    /// A rule whose prefix contains the client decides.
    Rule,
    /// The lookup table decides, but it treats all backends as if they were up.
    Open,
}

impl Why {
    /// The name of the reason that users see.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::Table => "table",
            Self::Rule => "rule",
            Self::Open => "open",
        }
    }
}

impl Controller {
    /// The backend of the client at `address`, for each service of its family (or for the requested service).
    ///
    /// # Errors
    /// Returns [`Refused::NotFound`] if there is no such service, or no service of that family; [`Refused::Invalid`] if
    /// the requested service is of the other family.
    pub fn locate(&self, address: IpAddr, service: Option<&str>) -> Result<Vec<Located>, Refused> {
        let address = address.to_canonical();
        if let Some(name) = service {
            let service = self.leg(name, Family::of(address)).map_or_else(|| self.service(name), Ok)?;
            return service.locate(address).map(|located| vec![located]).ok_or_else(|| {
                let (theirs, mine) = (Family::of(address), service.family());
                Refused::Invalid(format!("service {name} is {mine}: {address} is {theirs} and cannot be its client"))
            });
        }
        let located: Vec<Located> = self.services().iter().filter_map(|service| service.locate(address)).collect();
        if located.is_empty() {
            return Err(Refused::NotFound(format!("no service is {}, as {address} is", Family::of(address))));
        }
        Ok(located)
    }
}

impl Located {
    /// Marks the client as denied by a deny list that contains this prefix.
    pub fn deny(&mut self, prefix: IpNet) {
        (self.backend, self.why) = (None, Why::Rule);
        self.rule = Some(Rule { prefix, action: Action::Deny, ttl: None, ends: None });
    }
}

impl Service {
    /// The longest prefix that contains the client among the rules in the data path, whether or not the rule has an
    /// effect at present.
    #[must_use]
    pub fn rule_prefix(&self, address: IpAddr) -> Option<IpNet> {
        self.rules().longest(address, |rule| !self.is_part_of_a_client(rule)).map(|rule| rule.prefix)
    }

    /// The file that contains the denied prefixes.
    #[must_use]
    pub fn deny_file(&self) -> Option<&Path> {
        Some(&self.deny()?.file)
    }

    /// The backend of `client`; `None` if the client is of the other address family.
    fn locate(&self, address: IpAddr) -> Option<Located> {
        let (prefix, key) = (self.client_prefix(), self.client_key());
        let (client, hash) = match (address, self.family()) {
            (IpAddr::V4(client), Family::V4) => {
                let masked = u32::from_ne_bytes(client.octets()) & mask_v4(prefix);
                (IpAddr::V4(Ipv4Addr::from(masked.to_ne_bytes())), hash_v4(key, masked))
            }
            (IpAddr::V6(client), Family::V6) => {
                let [high, low]: [u64; 2] = bytemuck::cast(client.octets());
                let mask = mask_v6(prefix);
                let masked = [high & mask[0], low & mask[1]];
                (IpAddr::V6(Ipv6Addr::from(bytemuck::cast::<[u64; 2], [u8; 16]>(masked))), hash_v6(key, masked))
            }
            (IpAddr::V4(_), Family::V6) | (IpAddr::V6(_), Family::V4) => return None,
        };
        let slot = slot(hash, self.table_size());
        let entry = self.live_table().get(slot as usize).copied().unwrap_or(ALL_DOWN);
        let backend = self.backends().iter().find(|backend| backend.id().0 == entry);
        let backend = backend.map(|backend| backend.name().to_owned());
        let rule = self.rules().longest(address, |rule| !self.is_part_of_a_client(rule));
        let rule = rule.filter(|rule| self.inactive(rule).is_none());
        let (backend, why) = match rule.map(|rule| &rule.action) {
            Some(Action::Pin { backend }) => (Some(backend.clone()), Why::Rule),
            Some(Action::Spread | Action::Deny) => (None, Why::Rule),
            None if self.tier() == Tier::AsIfUp => (backend, Why::Open),
            None => (backend, Why::Table),
        };
        let client = IpNet::new(client, prefix).ok()?;
        let service = self.name().to_owned();
        Some(Located { service, client, slot, backend, why, rule: rule.cloned(), last_seen: None })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use balancer_common::map_types::Forwarding;
    use balancer_config::{
        config::{ClientPrefix, WhenAllDown},
        fixture::{KEY, config, name, now, service, web},
        states::Admin,
    };

    use super::*;
    use crate::io::Change;

    fn locate(controller: &Controller, address: &str, service: Option<&str>) -> Result<Vec<Located>, Refused> {
        controller.locate(address.parse().unwrap(), service)
    }

    fn controller() -> Controller {
        let mut six = service("six", "[2001:db8::10]:443", Forwarding::Dsr, &["a [2001:db8::a]:443"]);
        six.when_all_down = WhenAllDown::Drop;
        let mut wide = service("wide", "198.51.100.11:80", Forwarding::Dsr, &["a 10.0.0.21:80", "b 10.0.0.22:80"]);
        wide.client_prefix = ClientPrefix { v4: 24, v6: 56 };
        let mut controller = Controller::new(config(vec![web(), six, wide]), KEY);
        controller.start(now());
        controller
    }

    #[test]
    fn when_an_address_is_located_then_it_is_masked() {
        let controller = controller();
        let views = locate(&controller, "203.0.113.77", None).unwrap();
        let clients: Vec<_> = views.iter().map(|view| (view.service.as_str(), view.client.to_string())).collect();
        assert_eq!(clients, [("web", "203.0.113.77/32".to_owned()), ("wide", "203.0.113.0/24".to_owned())]);
        let neighbour = locate(&controller, "203.0.113.1", Some("wide")).unwrap();
        assert_eq!(neighbour[0], views[1]);
        let six = locate(&controller, "2001:db8:1:2:3:4:5:6", None).unwrap();
        assert_eq!((six.len(), six[0].client.to_string().as_str()), (1, "2001:db8:1:2::/64"));
        assert_eq!(locate(&controller, "::ffff:203.0.113.77", None).unwrap(), views);
    }

    #[test]
    fn when_twenty_thousand_clients_are_located_then_shares_are_within_five_per_cent() {
        let controller = controller();
        let mut counts: HashMap<String, u32> = HashMap::new();
        for n in 0..20_000u32 {
            let address = IpAddr::V4(Ipv4Addr::from_bits(0x0a40_0000 + n));
            let views = controller.locate(address, Some("web")).unwrap();
            let [view] = views.as_slice() else { panic!("{views:?}") };
            assert_eq!((view.why, view.last_seen), (Why::Table, None));
            *counts.entry(view.backend.clone().unwrap()).or_default() += 1;
        }
        assert_eq!(counts.len(), 4);
        assert!(counts.values().all(|count| count.abs_diff(5_000) <= 250), "{counts:?}");
    }

    #[test]
    fn when_no_backend_is_eligible_then_the_answer_says_so() {
        let mut controller = controller();
        for backend in ["wide/a", "wide/b", "six/a"] {
            let change = Change::SetAdmin { name: name(backend), admin: Admin::Drain, timeout: None };
            controller.change(change, now()).unwrap();
        }
        let open = locate(&controller, "203.0.113.77", Some("wide")).unwrap();
        assert_eq!((open[0].why, open[0].backend.is_some()), (Why::Open, true));
        let dropped = locate(&controller, "2001:db8::1", Some("six")).unwrap();
        assert_eq!((dropped[0].why, dropped[0].backend.as_deref()), (Why::Table, None));
    }

    #[test]
    fn when_a_client_cannot_be_located_then_the_refusal_has_a_hint() {
        let controller = controller();
        let refused = |address, service| locate(&controller, address, service).unwrap_err().to_string();
        assert_eq!(refused("203.0.113.77", Some("wbe")), "no service \"wbe\": did you mean \"web\"?");
        assert_eq!(
            refused("203.0.113.77", Some("six")),
            "service six is IPv6: 203.0.113.77 is IPv4 and cannot be its client"
        );
        let mut only_four = Controller::new(config(vec![web()]), KEY);
        only_four.start(now());
        let error = locate(&only_four, "2001:db8::1", None).unwrap_err();
        assert_eq!(error, Refused::NotFound("no service is IPv6, as 2001:db8::1 is".to_owned()));
    }
}
