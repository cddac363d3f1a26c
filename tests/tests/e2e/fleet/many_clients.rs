//! Tens of thousands of clients, by datagrams and by connections.

use std::{
    collections::BTreeSet,
    io,
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use balancer_tests::{
    http_client::{Request, send_all},
    site::{PATIENCE, WORKERS},
    topology::Family,
};

use super::{Fleet, PORT, Plan};

const CLIENTS: u16 = 20_000;
/// Those that connect as well.
const CONNECTING: u16 = 1_000;

/// Answers each datagram with `name`.
fn echo(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut buffer = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((_, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(name.as_bytes(), from).unwrap();
        }
    }
}

/// Ends the echoes also where an assertion fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Fleet {
    /// The backend that answers a datagram of each client, from a port of its own.
    fn homes_by_datagrams(&self, family: Family) -> Vec<String> {
        let vip = SocketAddr::new(self.topology.vip(family), PORT);
        let ask = |client| -> io::Result<String> {
            let socket = UdpSocket::bind((self.topology.client_address(family, client), 0))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send_to(b"?", vip)?;
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer)?;
            Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
        };
        let all = || (1..=CLIENTS).map(ask).collect::<io::Result<_>>();
        self.topology.client().run_in_thread(all).unwrap().unwrap()
    }

    /// The backend that answers a connection of each of the first clients.
    fn homes_by_connections(&self, family: Family) -> Vec<String> {
        let target = SocketAddr::new(self.topology.vip(family), PORT);
        let source = |client| SocketAddr::new(self.topology.client_address(family, client), 0);
        let requests: Vec<Request> = (1..=CONNECTING)
            .map(|client| Request { timeout: PATIENCE, ..Request::new(source(client), target) })
            .collect();
        let replies = send_all(self.topology.client(), &requests, WORKERS).unwrap();
        replies.into_iter().map(|reply| reply.unwrap().answer().unwrap().backend).collect()
    }

    /// All clients are where they were, by datagrams and by connections, through each of these sets of members.
    #[track_caller]
    fn all_at(&self, homes: &[String], family: Family, ways: &[&[usize]]) {
        for way in ways {
            self.route(way);
            let moved = self.homes_by_datagrams(family).iter().zip(homes).filter(|(now, then)| now != then).count();
            assert_eq!(moved, 0, "clients that moved, of {CLIENTS}, through {way:?}");
            assert_eq!(self.homes_by_connections(family), homes[..CONNECTING.into()], "through {way:?}");
        }
    }
}

#[test]
fn twenty_thousand_clients_have_one_answer() {
    let family = Family::V4;
    let mut fleet = Fleet::planned(Plan { datagrams: true, ..Plan::default() });
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for (number, host) in (1..).zip(fleet.topology.backends()) {
            let vip = SocketAddr::new(fleet.topology.vip(family), PORT);
            let socket = host.run_in_thread(|| UdpSocket::bind(vip)).unwrap().unwrap();
            let stop = &stop;
            scope.spawn(move || echo(&socket, &format!("web{number}"), stop));
        }
        let _stops = Stop(&stop);
        fleet.route(&[0]);
        let homes = fleet.homes_by_datagrams(family);
        assert_eq!(homes.iter().collect::<BTreeSet<_>>().len(), 3);
        fleet.all_at(&homes, family, &[&[1], &[2]]);
        // Each change at another member; by ports from now on.
        fleet.spread("1");
        fleet.cli(1, &["backend", "add", "web/web4", &fleet.topology.backend_address(family, 3).to_string()]);
        fleet.cli(2, &["backend", "drain", "web/web2"]);
        fleet.cli(0, &["backend", "weight", "web/web1", "10"]);
        fleet.wait_in_step();
        fleet.all_at(&homes, family, &[&[0], &[1], &[2], &[0, 1, 2]]);
        fleet.route(&[0, 2]);
        fleet.kill(1);
        fleet.all_at(&homes, family, &[&[0], &[2]]);
        fleet.start_again(1);
        fleet.all_at(&homes, family, &[&[1], &[0, 1, 2]]);
    });
}
