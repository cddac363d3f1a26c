//! Tests of connections that others make directly to the address and port of a server on the balancer's machine, not
//! through the VIP.
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    io::{self, Read as _, Write as _},
    net::TcpStream,
};

use balancer_testkit::{
    http_client::{Request, send_all},
    namespace::Namespace,
    site::WORKERS,
};
use socket2::{Domain, Socket, Type};

use super::*;

fn own(forwarding: Forwarding, family: Family) -> SocketAddr {
    SocketAddr::new(Topology::balancer_address(family).0, backend_port(forwarding))
}

/// Returns the servers that answer hosts which send requests to the server's own address.
fn asked_directly(host: &Namespace, from: &[IpAddr], target: SocketAddr) -> BTreeSet<String> {
    let request = |&from| Request { timeout: PATIENCE, ..Request::new(SocketAddr::new(from, 0), target) };
    let requests: Vec<_> = from.iter().map(request).collect();
    let replies = send_all(host, &requests, WORKERS).unwrap();
    replies.into_iter().map(|reply| reply.expect("an answer").answer().unwrap().backend).collect()
}

/// Checks that a client, and the host of another backend of the service, reach the server at its own address while
/// clients reach it through the VIP.
pub(super) fn the_server_answers_from_its_own_address(cells: &[(Forwarding, Family, Shape)]) {
    for &(forwarding, family, shape) in cells {
        let (site, _server) = site(shape, forwarding, family);
        let own = own(forwarding, family);
        let topology = site.topology();
        let clients: Vec<_> = CLIENTS.map(|client| topology.client_address(family, client)).collect();
        let before = served(topology, family, CLIENTS);
        let only_own = BTreeSet::from(["own".to_owned()]);
        assert_eq!(asked_directly(topology.client(), &clients, own), only_own, "{forwarding:?} {family:?}");
        let other = [topology.backend_address(family, 0)];
        assert_eq!(asked_directly(&topology.backends()[0], &other, own), only_own, "{forwarding:?} {family:?}");
        assert_eq!(before, served(topology, family, CLIENTS), "{forwarding:?} {family:?}");
    }
}

#[test]
fn when_others_connect_to_the_own_address_of_a_server_on_this_machine_then_it_answers_from_this_address() {
    the_server_answers_from_its_own_address(&[(Forwarding::Nat, Family::V4, Shape::OneLegged)]);
}

/// Sends a request on an open connection, and returns whether the server answers on this connection with success.
fn is_answered(mut stream: &TcpStream) -> io::Result<bool> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer.starts_with(b"HTTP/1.1 200"))
}

#[test]
fn when_the_balancer_restarts_then_open_connections_to_the_own_address_of_its_server_continue() {
    let (mut site, _server) = site(Shape::OneLegged, Forwarding::Nat, Family::V4);
    let own = own(Forwarding::Nat, Family::V4);
    let connect = || TcpStream::connect(own).unwrap();
    let streams = [(); 2].map(|()| site.topology().backends()[0].run_in_thread(connect).unwrap());
    site.restart(|_| ()).unwrap();
    assert!(is_answered(&streams[0]).unwrap(), "after an orderly restart");
    site.kill_and_restart(|_| ()).unwrap();
    assert!(is_answered(&streams[1]).unwrap(), "after a kill");
}

/// Opens a connection from each client through the VIP.
fn connections(topology: &Topology, family: Family) -> Vec<TcpStream> {
    let vip = SocketAddr::new(topology.vip(family), PORT);
    let sources: Vec<_> = CLIENTS.map(|client| SocketAddr::new(topology.client_address(family, client), 0)).collect();
    let connect = move |from: SocketAddr| -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(from), Type::STREAM, None)?;
        socket.bind(&from.into())?;
        socket.connect_timeout(&vip.into(), PATIENCE)?;
        Ok(socket.into())
    };
    let all = move || sources.into_iter().map(connect).collect::<io::Result<Vec<_>>>();
    topology.client().run_in_thread(all).unwrap().expect("connections through the VIP")
}

pub(super) fn two_machines_see_each_other(cells: &[(Forwarding, Family)]) {
    for &(forwarding, family) in cells {
        let pair = Pair::start(forwarding, family);
        for number in 0..2 {
            wait_for(PATIENCE, &format!("{forwarding:?} {family:?}: machine {number} finds both servers up"), || {
                pair.up(family, number) == 2
            });
        }
        pair.vip_is_at(family, 0);
        let before = served(&pair.topology, family, CLIENTS);
        assert!(["web1", "web2"].iter().all(|name| before.values().any(|home| home == name)), "{before:?}");
        let open = connections(&pair.topology, family);
        pair.vip_is_at(family, 1);
        for stream in &open {
            let result = is_answered(stream);
            let is_reset = result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset);
            let as_promised = if forwarding == Forwarding::Snat { is_reset } else { matches!(result, Ok(true)) };
            assert!(as_promised, "{forwarding:?} {family:?}: an open connection, {result:?}");
        }
        assert_eq!(before, served(&pair.topology, family, CLIENTS), "{forwarding:?} {family:?}");
        pair.vip_is_at(family, 0);
        assert_eq!(before, served(&pair.topology, family, CLIENTS), "{forwarding:?} {family:?}");
        assert_eq!([0, 1].map(|number| pair.up(family, number)), [2, 2], "{forwarding:?} {family:?}");
    }
}

#[test]
fn when_two_machines_are_nat_servers_and_balancers_then_each_finds_the_other_up_and_clients_stay_when_the_vip_moves() {
    two_machines_see_each_other(&[(Forwarding::Nat, Family::V4)]);
}

#[test]
fn when_two_machines_are_snat_servers_and_balancers_then_each_finds_the_other_up_and_clients_stay_when_the_vip_moves() {
    two_machines_see_each_other(&[(Forwarding::Snat, Family::V4)]);
}
