//! Sessions of clients from the users' point of view. Tests check which sessions survive, and whether the balancer
//! counts the lost sessions. A failed check of this module panics.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, TcpStream},
};

use anyhow::Context as _;
use balancer_common::map_types::Forwarding;

use crate::{
    http_client::{Request, send_all},
    pace::patience,
    site::{PATIENCE, Settings, Site, WORKERS, counts},
    topology::{Family, Shape},
};

const FAMILY: Family = Family::V4;
const CAUSES: [&str; 7] = ["down", "drain", "maint", "removed", "failback", "rule", "forgotten"];

/// A session from the client's point of view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub backend: String,
    pub name: String,
    /// The number of requests in the session so far.
    pub requests: u64,
}

/// Makes the balancer's host create neighbour entries for the clients. Without a neighbour entry, the kernel loses the
/// first reply, and the balancer counts the repeated SYN as a second connection.
pub fn find_the_way_to_the_clients(site: &Site) {
    let discard = SocketAddr::new(site.topology().client_address(FAMILY, 1), 9);
    let connect = || TcpStream::connect_timeout(&discard, PATIENCE).unwrap_err().kind();
    assert_eq!(site.topology().balancer().run_in_thread(connect).unwrap(), io::ErrorKind::ConnectionRefused);
}

/// A site, and the clients that have visited the site.
#[derive(Debug)]
pub struct Users {
    pub site: Site,
    /// The clients and their current sessions.
    pub sessions: BTreeMap<u16, Session>,
    /// The number of connections that the clients have opened so far.
    pub connections: u64,
}

impl Users {
    /// Starts the backends `web1` to `web4` of the configuration, and a host `web5` with a server that the
    /// configuration does not contain.
    pub fn new(forwarding: Forwarding, adapt: impl FnOnce(&mut Settings)) -> Self {
        let mut site = Site::start(Shape::OneLegged, forwarding, 5, |settings, _| {
            settings.backends.pop();
            settings.remember = "60s";
            settings.check =
                r#"{ type = "http", path = "/healthz", interval = "300ms", timeout = "250ms", fall = 3, rise = 2 }"#
                    .to_owned();
            adapt(settings);
            Ok(())
        })
        .unwrap();
        for number in 1..=4 {
            site.wait_state(number, &["up"]).unwrap();
        }
        find_the_way_to_the_clients(&site);
        Self { site, sessions: BTreeMap::new(), connections: 0 }
    }

    /// Sends one request from each of `clients`, in the client's session. Returns each client that lost its session,
    /// and the client's previous backend.
    pub fn visit(&mut self, clients: impl IntoIterator<Item = u16>) -> BTreeMap<u16, String> {
        let clients: Vec<u16> = clients.into_iter().collect();
        let requests: Vec<Request> = clients
            .iter()
            .map(|&client| {
                let session = self.sessions.get(&client).map(|session| session.name.clone());
                Request { timeout: PATIENCE, ..self.site.request(FAMILY, client).session(session) }
            })
            .collect();
        self.connections += requests.len() as u64;
        let mut moved = BTreeMap::new();
        for (client, reply) in
            clients.into_iter().zip(send_all(self.site.topology().client(), &requests, WORKERS).unwrap())
        {
            let answer = reply.and_then(|reply| reply.answer()).with_context(|| format!("client {client}")).unwrap();
            let now = Session { backend: answer.backend, name: answer.session, requests: answer.requests };
            if let Some(before) = self.sessions.insert(client, now.clone()) {
                if now.backend == before.backend {
                    let next = Session { requests: before.requests + 1, ..before };
                    assert_eq!(now, next, "client {client} is where it was, and its session is not");
                } else {
                    moved.insert(client, before.backend);
                }
            }
        }
        moved
    }

    /// Sends a request from every known client, and checks that no client moves.
    #[track_caller]
    pub fn nobody_moves(&mut self, when: &str) {
        let known: Vec<u16> = self.sessions.keys().copied().collect();
        let moved = self.visit(known);
        assert!(moved.is_empty(), "{} of {} clients moved {when}: {moved:?}", moved.len(), self.sessions.len());
    }

    /// Sends a request from every known client, and checks that exactly the clients of `backend` move. Returns the
    /// number of clients that moved.
    #[track_caller]
    pub fn only_its_clients_move(&mut self, backend: &str) -> u64 {
        let its = self.clients_of(backend);
        assert!(its.len() >= 30, "{backend} has {} of {} clients", its.len(), self.sessions.len());
        let known: Vec<u16> = self.sessions.keys().copied().collect();
        let moved = self.visit(known);
        assert!(moved.values().all(|from| from == backend), "moved from elsewhere as well: {moved:?}");
        assert_eq!(moved.into_keys().collect::<Vec<_>>(), its, "the clients of {backend}");
        assert!(self.clients_of(backend).is_empty());
        self.nobody_moves("a second time");
        its.len() as u64
    }

    /// Returns the clients that have a session at `backend`.
    #[must_use]
    pub fn clients_of(&self, backend: &str) -> Vec<u16> {
        self.sessions.iter().filter(|(_, session)| session.backend == backend).map(|(&client, _)| client).collect()
    }

    /// Returns the number of sessions on each backend.
    #[must_use]
    pub fn homes(&self) -> BTreeMap<String, usize> {
        counts(self.sessions.values().map(|session| &session.backend))
    }

    /// Checks that `moves_total` has exactly the expected values by cause, and that the balancer made one decision for
    /// every connection.
    #[track_caller]
    pub fn assert_moves(&self, expected: &[(&str, u64)]) {
        let metrics = self.site.metrics().unwrap();
        for cause in CAUSES {
            let moves = expected.iter().filter(|(other, _)| *other == cause).map(|(_, moves)| moves).sum::<u64>();
            let counted = metrics.sum("moves_total", &[&format!("cause=\"{cause}\"")]).unwrap_or(0.0);
            assert_eq!(counted, moves as f64, "moved for {cause}");
        }
        let all = expected.iter().map(|(_, moves)| moves).sum::<u64>();
        assert_eq!(self.decided("moved"), all as f64);
        let decisions = metrics.sum("decisions_total", &["service=\"web\""]).unwrap();
        assert_eq!(decisions, self.connections as f64, "decisions");
    }

    /// Returns the number of connections with the given decision.
    #[must_use]
    pub fn decided(&self, result: &str) -> f64 {
        let result = format!("result=\"{result}\"");
        self.site.metrics().unwrap().sum("decisions_total", &["service=\"web\"", &result]).unwrap()
    }

    /// Waits until the status shows, for each backend, as many known clients as the backend has sessions.
    pub fn wait_counted(&mut self) {
        let homes = self.homes();
        let shown = |status: &balancer_api::model::StatusView| {
            status.services[0]
                .backends
                .iter()
                .filter(|backend| backend.known_clients > 0)
                .map(|backend| (backend.name.clone(), backend.known_clients as usize))
                .collect::<BTreeMap<_, _>>()
        };
        self.site
            .controller()
            .wait_for(patience(PATIENCE), &format!("known clients {homes:?}"), |status| shown(status) == homes)
            .unwrap();
    }

    /// The state of a backend in the status, and the reason for the state.
    #[must_use]
    pub fn shown(&self, number: u16) -> (String, String) {
        let status = self.site.status().unwrap();
        let name = format!("web{number}");
        let backend = status.services[0].backends.iter().find(|backend| backend.name == name).unwrap();
        (backend.state.clone(), backend.reason.clone())
    }

    /// Adds `web5`, which the configuration does not contain.
    pub fn add_web5(&mut self) {
        let address = self.site.backend_address(FAMILY, 5).to_string();
        println!("{}", self.site.cli(&["backend", "add", "web/web5", &address]).unwrap());
        self.site.wait_state(5, &["up"]).unwrap();
    }
}
