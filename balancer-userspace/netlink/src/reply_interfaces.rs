//! Finds interfaces that a configuration does not name although replies of `nat` and `snat` backends would arrive by
//! them, on the machine of the calling process.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use balancer_common::map_types::Forwarding;
use balancer_config::config::Config;

use crate::{
    interfaces::{self, Link},
    layers,
    neighbours::egresses,
};

/// The maximum number of addresses whose routes the function looks up.
pub const MOST: usize = 4096;

/// Returns the interfaces that the configuration should also name, each with the backends (`SERVICE/NAME`) behind it.
/// The result is empty if the configuration names no interfaces, or an interface that this machine lacks, because the
/// configuration is then probably meant for another machine.
///
/// # Errors
/// Fails if the kernel does not answer.
pub async fn unnamed(config: &Config) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
    let backends = replying(config);
    if config.interfaces.is_empty() || backends.is_empty() {
        return Ok(BTreeMap::new());
    }
    let addresses: BTreeSet<IpAddr> = backends.iter().map(|(address, _)| *address).take(MOST).collect();
    let (links, egresses) = egresses(addresses).await?;
    Ok(among(&config.interfaces, &links, &egresses, &backends))
}

/// The addresses of the backends that reply through the balancer, with the backends' names.
pub(crate) fn replying(config: &Config) -> Vec<(IpAddr, String)> {
    let services = config.services.iter();
    let services = services.filter(|service| matches!(service.forwarding, Forwarding::Nat | Forwarding::Snat));
    let backends = services.flat_map(|service| service.backends.iter().map(move |backend| (service, backend)));
    let all = backends.flat_map(|(service, backend)| {
        let name = format!("{}/{}", service.name, backend.name);
        [Some(backend.address), backend.address6].into_iter().flatten().map(move |at| (at.ip(), name.clone()))
    });
    all.collect()
}

fn among(
    named: &[String],
    links: &[Link],
    egresses: &HashMap<IpAddr, u32>,
    backends: &[(IpAddr, String)],
) -> BTreeMap<String, Vec<String>> {
    let Ok(interfaces) = interfaces::select(named, links) else { return BTreeMap::new() };
    let with_parts = interfaces.iter().flat_map(|of| {
        let parts = interfaces::parts(of.ifindex, links).map(|part| part.ifindex);
        std::iter::once(of.ifindex).chain(parts)
    });
    let steered: BTreeSet<u32> = with_parts.collect();
    let layers = layers::of(links.iter());
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (address, name) in backends {
        let Some(egress) = egresses.get(address) else { continue };
        let link = links.iter().find(|link| link.ifindex == *egress && link.mac.is_some());
        if let Some(link) = link.filter(|_| layers.misses(*egress, steered.iter().copied())) {
            let names = found.entry(link.name.clone()).or_default();
            if names.last() != Some(name) {
                names.push(name.clone());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::InfoKind;

    use super::*;
    use crate::neighbours::test_link;

    #[test]
    fn when_a_route_to_a_backend_leads_out_elsewhere_then_that_interface_is_named() {
        let link = |ifindex, name| Link { mac: Some([2, 0, 0, 0, 0, ifindex as u8]), ..test_link(ifindex, name) };
        let vlan = Link { kind: Some(InfoKind::Vlan), lower: Some(2), ..link(4, "lb0.7") };
        let tunnel = Link { mac: None, ..link(5, "wg0") };
        let links = [link(2, "lb0"), link(3, "lb1"), vlan, tunnel];
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        let egresses = HashMap::from([(address(1), 3), (address(2), 2), (address(3), 4), (address(4), 5)]);
        let backends: Vec<(IpAddr, String)> = (1..=9).map(|last| (address(last), format!("web/web{last}"))).collect();
        let found = |named: &[&str]| {
            let named: Vec<String> = named.iter().map(|&name| name.to_owned()).collect();
            among(&named, &links, &egresses, &backends)
        };
        assert_eq!(found(&["lb0"]), BTreeMap::from([("lb1".to_owned(), vec!["web/web1".to_owned()])]));
        assert_eq!(found(&["lb0", "lb1"]), BTreeMap::new());
        assert_eq!(found(&["lb1"]).into_keys().collect::<Vec<_>>(), ["lb0", "lb0.7"]);
        assert_eq!(found(&["eth7"]), BTreeMap::new(), "this machine is not the one that is meant");
    }

    #[tokio::test]
    async fn when_a_configuration_names_no_interface_of_this_machine_then_nothing_is_said() {
        let text = |forwarding: &str| {
            format!(
                "interfaces = [\"no-such-if\"]\n[[service]]\nname = \"web\"\naddress = \"198.51.100.10:80\"\n\
                 forwarding = \"{forwarding}\"\n[[service.backend]]\nname = \"web1\"\naddress = \"192.0.2.21\"\n"
            )
        };
        let config =
            |forwarding| balancer_config::file::parse("a.toml".as_ref(), text(forwarding).as_bytes()).unwrap().0;
        for forwarding in ["nat", "snat", "dsr"] {
            assert_eq!(unnamed(&config(forwarding)).await.unwrap(), BTreeMap::new());
        }
        assert_eq!(replying(&config("snat")), [(IpAddr::from([192, 0, 2, 21]), "web/web1".to_owned())]);
        assert_eq!(replying(&config("dsr")), []);
    }
}
