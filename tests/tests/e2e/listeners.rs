//! Tests of a service with several listeners. Each client has the same backend at all listeners of the service, in
//! every mode and for both families. The tests use real sockets, and add and remove listeners, drain backends and put
//! them into maintenance.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod release;

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use balancer_api::model::{ClientView, ForgottenView, PlanView, RuleView};
use balancer_common::map_types::Forwarding;
use balancer_config::config::{Protocol, forwarding_word};
use balancer_testkit::{
    site::Site,
    topology::{Family, Shape, Topology},
};
use socket2::{Domain, Socket, Type};

const PATIENCE: Duration = Duration::from_secs(5);
pub(crate) const CLIENTS: u16 = 12;
pub(crate) const BACKENDS: u16 = 3;
/// The ports of listeners, each with the port of the listener's `nat` backends.
pub(crate) const PORTS: [(u16, u16); 2] = [(7080, 9080), (7443, 9443)];
/// A port in the range of a listener, and a port for a listener that a test adds later.
pub(crate) const IN_RANGE: u16 = 7105;
pub(crate) const LATER: u16 = 7200;

/// Starts servers that answer every client with the backend's name until the test ends.
pub(crate) fn serve(site: &Site, forwarding: Forwarding, number: u16) {
    let name = format!("web{number}");
    let topology = site.topology();
    let nat = forwarding == Forwarding::Nat;
    let port = |(listener, backend): (u16, u16)| if nat { backend } else { listener };
    for family in Family::BOTH {
        // A UDP server must reply from the address that received the request.
        let everywhere: IpAddr = match family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        let at = if nat { topology.backend_address(family, number - 1) } else { topology.vip(family) };
        let sockets = topology.backends()[usize::from(number) - 1].run_in_thread(|| {
            let streams: Vec<TcpListener> = (PORTS.map(port).into_iter().chain([LATER]))
                .map(|port| listen(SocketAddr::new(everywhere, port)).unwrap())
                .collect();
            let datagrams: Vec<UdpSocket> = (PORTS.map(port).into_iter().chain([IN_RANGE]))
                .map(|port| UdpSocket::bind((at, port)).unwrap())
                .collect();
            (streams, datagrams)
        });
        let (streams, datagrams) = sockets.unwrap();
        for listener in streams {
            let name = name.clone();
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let _ = stream.and_then(|mut stream| stream.write_all(name.as_bytes()));
                }
            });
        }
        for socket in datagrams {
            let name = name.clone();
            thread::spawn(move || {
                while let Ok((_, from)) = socket.recv_from(&mut [0; 64]) {
                    let _ = socket.send_to(name.as_bytes(), from);
                }
            });
        }
    }
}

/// Returns a listener for one address family, so that listeners of both families can use the same port.
fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&at.into())?;
    socket.listen(64)?;
    Ok(socket.into())
}

/// Returns the backend that answers a client through a listener.
pub(crate) fn ask(site: &Site, family: Family, client: u16, port: u16, protocol: Protocol) -> io::Result<String> {
    let topology = site.topology();
    let vip = SocketAddr::new(topology.vip(family), port);
    let from = SocketAddr::new(topology.client_address(family, client), 0);
    let answer = topology.client().run_in_thread(|| match protocol {
        Protocol::Tcp => {
            let socket = Socket::new(Domain::for_address(vip), Type::STREAM, None)?;
            socket.bind(&from.into())?;
            socket.connect_timeout(&vip.into(), PATIENCE)?;
            let mut stream: TcpStream = socket.into();
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        }
        Protocol::Udp | Protocol::Quic => {
            let socket = UdpSocket::bind(from)?;
            socket.connect(vip)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send(b"who?")?;
            let mut answer = [0; 64];
            let length = socket.recv(&mut answer)?;
            Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
        }
    });
    answer.unwrap()
}

/// Returns the backend of each client, and checks that the client reaches the same backend at all listeners.
pub(crate) fn where_all_are(site: &Site, tcp: &[u16], udp: &[u16]) -> BTreeMap<(bool, u16), String> {
    let mut homes = BTreeMap::new();
    for family in Family::BOTH {
        for client in 0..CLIENTS {
            let listeners = tcp.iter().map(|&port| (port, Protocol::Tcp));
            for (port, protocol) in listeners.chain(udp.iter().map(|&port| (port, Protocol::Udp))) {
                let answer = ask(site, family, client, port, protocol);
                assert!(answer.is_ok(), "{family:?} client {client} at {port}/{protocol}: {answer:?}");
                let backend = answer.unwrap();
                let home = homes.entry((family == Family::V4, client)).or_insert_with(|| backend.clone());
                assert_eq!(*home, backend, "{family:?} client {client} at {port}/{protocol}");
            }
        }
    }
    homes
}

pub(crate) fn shop(topology: &Topology, forwarding: Forwarding) -> String {
    let [v4, v6] = Family::BOTH.map(|family| topology.vip(family));
    let ports = if forwarding == Forwarding::Nat { "ports = { 7080 = 9080, 7443 = 9443 }\n" } else { "" };
    let text = format!(
        "[[service]]\nname = \"shop\"\nforwarding = \"{}\"\nremember = \"1h\"\n\
         client_prefix = {{ v4 = 32, v6 = 128 }}\ncheck = {{ type = \"none\" }}\n{ports}\
         listen = [\"{v4}:7080\", \"{v4}:7443\", \"{v4}:7080/udp\", \"{v4}:7443/udp\", \"{v4}:7100-7110/udp\",\n\
         \"[{v6}]:7080\", \"[{v6}]:7443\", \"[{v6}]:7080/udp\", \"[{v6}]:7443/udp\", \"[{v6}]:7100-7110/udp\"]\n",
        forwarding_word(forwarding)
    );
    text + &backends(topology)
}

/// Returns the configuration of backends that have addresses of both families.
pub(crate) fn backends(topology: &Topology) -> String {
    let backend = |number: u16| {
        let [address, address6] = Family::BOTH.map(|family| topology.backend_address(family, number - 1));
        format!("[[service.backend]]\nname = \"web{number}\"\naddress = \"{address}\"\naddress6 = \"{address6}\"\n")
    };
    (1..=BACKENDS).map(backend).collect()
}

/// Makes the balancer forget one client of each family by its address, and all other clients by their backend.
fn forget_everybody(site: &Site) {
    let forget = |arguments: &[&str]| -> u64 {
        let text = site.cli(&[&["client", "forget", "--json"], arguments].concat()).unwrap();
        serde_json::from_str::<ForgottenView>(&text).unwrap().forgotten
    };
    for family in Family::BOTH {
        let address = site.topology().client_address(family, 1).to_string();
        assert_eq!(forget(&[&address]), 1, "{address}");
    }
    let others: u64 =
        ["shop/web1", "shop/web2", "shop/web3"].iter().map(|backend| forget(&["--backend", backend])).sum();
    assert_eq!(others, 2 * u64::from(CLIENTS) - 2);
}

fn each_client_has_one_backend(forwarding: Forwarding) {
    let shape = if forwarding == Forwarding::Dsr { Shape::OneLegged } else { Shape::TwoLegged };
    let mut site = Site::start(shape, forwarding, BACKENDS, |settings, topology| {
        settings.on_exit = "keep";
        settings.families = Vec::new();
        settings.lines = shop(topology, forwarding);
        Ok(())
    })
    .unwrap();
    (1..=BACKENDS).for_each(|number| serve(&site, forwarding, number));
    let tcp = PORTS.map(|(port, _)| port);
    let udp = [PORTS[0].0, PORTS[1].0, IN_RANGE];
    let homes = where_all_are(&site, &tcp, &udp);
    let used: std::collections::BTreeSet<&String> = homes.values().collect();
    assert!(used.len() > 1, "one backend has them all: {homes:?}");

    // No client moves when a user adds or removes listeners.
    let later = SocketAddr::new(site.topology().vip(Family::V4), LATER).to_string();
    let planned = site.cli(&["plan", "service", "listen", "add", "shop", &later]).unwrap();
    assert_eq!(
        planned,
        format!(
            "service shop: 0 of 131,074 slots would move, 0 needless; 0 known clients would move\n\
             would listen on {later}/tcp\n"
        )
    );
    assert_eq!(site.status().unwrap().services[0].listeners.len(), 10, "a plan changes nothing");
    site.cli(&["service", "listen", "add", "shop", &later]).unwrap();
    for client in 0..CLIENTS {
        assert_eq!(ask(&site, Family::V4, client, LATER, Protocol::Tcp).unwrap(), homes[&(true, client)]);
    }
    site.cli(&["service", "listen", "remove", "shop", &later]).unwrap();
    assert_eq!(where_all_are(&site, &tcp, &udp), homes);

    // A drained backend keeps its clients at all listeners.
    site.cli(&["backend", "drain", "shop/web1", "--timeout", "10m"]).unwrap();
    assert_eq!(where_all_are(&site, &tcp, &udp), homes);

    // `client where` knows all clients, even if the lookup table now names other backends for them. The list of rules
    // contains rules of both families.
    for (&(v4, client), home) in &homes {
        let address = site.topology().client_address(if v4 { Family::V4 } else { Family::V6 }, client).to_string();
        let located: ClientView =
            serde_json::from_str(&site.cli(&["client", "where", &address, "--service", "shop", "--json"]).unwrap())
                .unwrap();
        assert_eq!((located.backend.as_ref(), located.why.as_str()), (Some(home), "known"), "{address}");
    }
    let strangers = ["192.0.2.0/24", "2001:db8:ffff::/48"];
    strangers.iter().for_each(|prefix| drop(site.cli(&["rule", "add", "shop", prefix, "deny"]).unwrap()));
    let rules: Vec<RuleView> = serde_json::from_str(&site.cli(&["rule", "list", "shop", "--json"]).unwrap()).unwrap();
    assert_eq!(rules.iter().map(|rule| rule.prefix.as_str()).collect::<Vec<_>>(), strangers);

    // If the controller is killed and started again, no client moves, and the counters continue.
    site.kill_and_restart(|_| {}).unwrap();
    assert_eq!(where_all_are(&site, &tcp, &udp), homes);

    // All clients of a backend in maintenance move at the same time, and no other client moves. The number of moved
    // clients of both families together equals the number in the plan.
    let of_web2 = homes.values().filter(|home| *home == "web2").count();
    let planned = site.cli(&["plan", "backend", "maint", "shop/web2", "--json"]).unwrap();
    let planned: PlanView = serde_json::from_str(&planned).unwrap();
    assert_eq!(planned.known_clients_moved, of_web2 as u64);
    site.cli(&["backend", "maint", "shop/web2"]).unwrap();
    for (client, home) in where_all_are(&site, &tcp, &udp) {
        let before = &homes[&client];
        assert!(home == *before || before == "web2", "{client:?} went from {before} to {home}");
        assert_ne!(home, "web2");
    }
    forget_everybody(&site);

    let metrics = site.metrics().unwrap();
    let tcp_listener = format!("listener=\"{}:7080/tcp\"", site.topology().vip(Family::V4));
    let connections = metrics.sum("listener_connections_total", &["service=\"shop\"", &tcp_listener]).unwrap();
    assert_eq!(connections, f64::from(5 * CLIENTS));
    let status = site.status().unwrap();
    assert_eq!((status.services.len(), status.services[0].listeners.len()), (1, 10));
    assert!(status.services[0].backends.iter().all(|backend| backend.families.len() == 2));
}

#[test]
fn when_a_service_has_several_listeners_with_nat_then_each_client_has_one_backend() {
    each_client_has_one_backend(Forwarding::Nat);
}

#[test]
fn when_a_service_has_several_listeners_with_gue_then_each_client_has_one_backend() {
    each_client_has_one_backend(Forwarding::Gue);
}
