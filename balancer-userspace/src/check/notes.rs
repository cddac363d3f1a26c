//! Notes about surprising effects of a valid configuration: the source address that backends see, clients that get no
//! connection, and failures that nobody notices.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
};

use balancer_common::map_types::Forwarding;
use balancer_config::config::{CheckKind, Config, Protocol, ServiceConfig};
use ipnet::IpNet;
use nix::{ifaddrs::getifaddrs, sys::socket::SockaddrStorage};

/// A subnet on the link of one of this machine's interfaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Subnet {
    interface: String,
    prefix: IpNet,
}

/// The subnets of this machine; empty if the kernel does not report them.
pub(super) fn here() -> BTreeSet<Subnet> {
    let Ok(all) = getifaddrs() else { return BTreeSet::new() };
    let subnets = all.filter_map(|of| {
        let prefix = IpNet::with_netmask(ip(of.address?)?, ip(of.netmask?)?).ok()?;
        // A prefix that contains a single host, such as a VIP, has no neighbours.
        (prefix.prefix_len() < prefix.max_prefix_len())
            .then(|| Subnet { interface: of.interface_name, prefix: prefix.trunc() })
    });
    subnets.collect()
}

fn ip(address: SockaddrStorage) -> Option<IpAddr> {
    match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(v4), _) => Some(IpAddr::V4(v4.ip())),
        (None, Some(v6)) => Some(IpAddr::V6(v6.ip())),
        (None, None) => None,
    }
}

/// Returns the notes about a configuration for a machine with these subnets.
pub(super) fn of(config: &Config, subnets: &BTreeSet<Subnet>) -> Vec<String> {
    let services = config.services.iter();
    services.flat_map(|service| [note(service, &config.interfaces, subnets), unchecked(service)]).flatten().collect()
}

/// Returns a note about a service over UDP alone that has no check, as by default.
fn unchecked(service: &ServiceConfig) -> Option<String> {
    let is_udp = service.listen.iter().all(|listener| listener.protocol != Protocol::Tcp);
    let is_unchecked = service.checks().all(|check| check.kind == CheckKind::None);
    (is_udp && is_unchecked).then(|| {
        format!(
            "service {}: its servers are not checked, so a server that fails keeps its clients; give a check, such as \
             check = {{ type = \"dns\" }}, or \"udp\", \"tcp\" or \"exec\"",
            service.name
        )
    })
}

fn note(service: &ServiceConfig, interfaces: &[String], subnets: &BTreeSet<Subnet>) -> Option<String> {
    let name = &service.name;
    match service.forwarding {
        Forwarding::Snat => Some(format!(
            "service {name}: with snat its servers see an address of this machine in place of the client's; if they must \
             know clients, use nat, dsr or a tunnel"
        )),
        Forwarding::Nat => {
            let shared: Vec<&Subnet> = subnets.iter().filter(|subnet| is_shared(service, interfaces, subnet)).collect();
            let places: Vec<String> =
                shared.iter().map(|subnet| format!("{} ({})", subnet.prefix, subnet.interface)).collect();
            (!places.is_empty()).then(|| {
                format!(
                    "service {name}: clients in {}, where it has backends, get no connection through nat, because a backend \
                     answers its own subnet past the balancer; forwarding = \"snat\" serves them as well",
                    places.join(" and ")
                )
            })
        }
        Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue => None,
    }
}

/// Returns the notes about missing files that checks need, with one note for each file.
pub(super) fn on_files(config: &Config) -> Vec<String> {
    let mut seen = HashSet::new();
    let mut notes = Vec::new();
    for service in config.services.iter() {
        for (purpose, file) in service.checks().flat_map(|check| check.kind.files()) {
            if seen.insert((purpose, file))
                && let Err(error) = file.metadata()
            {
                let (name, file) = (&service.name, file.display());
                notes.push(format!("service {name}: checks cannot run here: {purpose} {file} cannot be read: {error}"));
            }
        }
    }
    notes
}

/// Whether a subnet contains backends and clients arrive on the subnet's interface, which is the interface of the VIP's
/// subnet or the only interface.
fn is_shared(service: &ServiceConfig, interfaces: &[String], subnet: &Subnet) -> bool {
    let of_backends = service.backends.iter().flat_map(|backend| [Some(backend.address), backend.address6]);
    let has_backends = of_backends.flatten().any(|address| subnet.prefix.contains(&address.ip()));
    let has_vip = service.listen.iter().any(|listener| subnet.prefix.contains(&listener.address));
    has_backends && (has_vip || matches!(interfaces, [only] if *only == subnet.interface))
}

#[cfg(test)]
mod tests {
    use balancer_config::file;

    use super::*;

    fn notes(interfaces: &str, vip: &str, forwarding: &str, backend: &str) -> Vec<String> {
        let text = format!(
            "interfaces = [{interfaces}]\n[[service]]\nname = \"web\"\naddress = \"{vip}\"\nforwarding = \"{forwarding}\"\n\
             [[service.backend]]\nname = \"web1\"\naddress = \"{backend}\"\n"
        );
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("balancer.toml");
        std::fs::write(&path, text).unwrap();
        let (config, _) = file::load(&path).unwrap();
        let subnet =
            |interface: &str, prefix: &str| Subnet { interface: interface.to_owned(), prefix: prefix.parse().unwrap() };
        let subnets = BTreeSet::from([
            subnet("eth0", "192.0.2.0/24"),
            subnet("eth1", "10.0.0.0/16"),
            subnet("eth0", "2001:db8:1::/64"),
        ]);
        of(&config, &subnets)
    }

    #[test]
    fn when_clients_of_a_nat_service_share_their_subnet_with_backends_then_snat_is_suggested() {
        let shared = |at: &str| {
            format!(
                "service web: clients in {at}, where it has backends, get no connection through nat, because a backend \
                 answers its own subnet past the balancer; forwarding = \"snat\" serves them as well"
            )
        };
        let (both, v4, v6) = ("\"eth0\", \"eth1\"", shared("192.0.2.0/24 (eth0)"), shared("2001:db8:1::/64 (eth0)"));
        assert_eq!(notes(both, "192.0.2.10:80", "nat", "192.0.2.21"), std::slice::from_ref(&v4));
        assert_eq!(notes(both, "[2001:db8:1::10]:80", "nat", "2001:db8:1::21"), [v6]);
        assert_eq!(notes("\"eth0\"", "198.51.100.10:80", "nat", "192.0.2.21"), [v4], "clients come in by eth0 alone");
    }

    #[test]
    fn when_backends_have_a_subnet_of_their_own_then_nothing_is_noted() {
        let both = "\"eth0\", \"eth1\"";
        for (vip, forwarding, backend) in [
            ("192.0.2.10:80", "nat", "10.0.0.21"),
            ("198.51.100.10:80", "nat", "10.0.0.21"),
            ("192.0.2.10:80", "nat", "172.16.0.1"),
            ("192.0.2.10:80", "dsr", "192.0.2.21"),
            ("192.0.2.10:80", "ipip", "192.0.2.21"),
        ] {
            assert!(notes(both, vip, forwarding, backend).is_empty(), "{vip} {forwarding} {backend}");
        }
    }

    #[test]
    fn when_a_service_is_snat_then_it_is_noted_that_servers_do_not_see_clients() {
        let [note] = <[String; 1]>::try_from(notes("\"eth0\"", "192.0.2.10:80", "snat", "192.0.2.21")).unwrap();
        assert!(note.contains("see an address of this machine in place of the client's"), "{note}");
    }

    #[test]
    fn when_a_service_over_udp_alone_has_no_check_then_it_is_noted_that_failures_are_not_noticed() {
        for (listen, lines, expected) in [
            (r#"["198.51.100.10:53/udp"]"#, "", 1),
            (r#"["198.51.100.10:443/quic", "198.51.100.10:53/udp"]"#, r#"quic = { format = "draft" }"#, 1),
            (r#"["198.51.100.10:53/udp", "198.51.100.10:53"]"#, "", 0),
            (r#"["198.51.100.10:53/udp"]"#, r#"check = { type = "dns" }"#, 0),
        ] {
            let text = format!(
                "[[service]]\nname = \"dns\"\nlisten = {listen}\nforwarding = \"dsr\"\n{lines}\n\
                 [[service.backend]]\nname = \"dns1\"\naddress = \"10.0.0.1\"\n"
            );
            let (config, _) = file::parse("dns.toml".as_ref(), text.as_bytes()).unwrap();
            let notes = of(&config, &BTreeSet::new());
            let is_noted = |note: &String| note.starts_with("service dns: its servers are not checked");
            assert_eq!((notes.len(), notes.iter().all(is_noted)), (expected, true), "{listen} {lines}: {notes:?}");
        }
    }

    #[test]
    fn when_a_file_of_checks_is_not_there_then_it_is_noted_once() {
        let directory = tempfile::tempdir().unwrap();
        let [there, gone] = ["ca.pem", "token"].map(|name| directory.path().join(name));
        std::fs::write(&there, "").unwrap();
        let check = format!(
            "{{ type = \"https\", ca_file = {there:?}, headers = {{ One = {{ file = {gone:?} }}, Two = {{ file = {gone:?} }} }} }}"
        );
        let text = format!(
            "[[service]]\nname = \"web\"\naddress = \"198.51.100.10:443\"\nforwarding = \"nat\"\ncheck = {check}\n\
             [[service.backend]]\nname = \"web1\"\naddress = \"10.0.0.1\"\ncheck = {{ fall = 4 }}\n"
        );
        let (config, _) = file::parse("web.toml".as_ref(), text.as_bytes()).unwrap();
        let [note] = <[String; 1]>::try_from(on_files(&config)).unwrap();
        let wanted = format!(
            "service web: checks cannot run here: the header whose value is in {} cannot be read: No such file",
            gone.display()
        );
        assert!(note.starts_with(&wanted), "{note}");
    }
}
