//! A simulated balancer behind a control socket, which applies drop-ins and keeps changes made at run time.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::BufReader,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{Arc, Mutex},
    thread,
};

use balancer_config::file;
use balancer_testkit::kubernetes::http::{self, Request};
use serde_json::{Value, json};

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Backend {
    pub(crate) address: String,
    pub(crate) admin: String,
    /// The health state of the backend; absent: the administrative state determines the state.
    pub(crate) state: Option<String>,
}

#[derive(Default)]
struct State {
    services: BTreeMap<String, BTreeMap<String, Backend>>,
    /// The services of the file, each with its listener.
    of_file: BTreeMap<String, String>,
    /// The text of the drop-in; empty: there is none.
    drop_in: String,
    /// The backends in the drop-in that was applied last, as `SERVICE/BACKEND`.
    base: BTreeSet<String>,
    /// The number of services for which the data path has room; `None`: it has room for all.
    room: Option<usize>,
    applied: usize,
    told: Vec<String>,
    away: bool,
}

pub(crate) struct Balancer {
    state: Arc<Mutex<State>>,
}

impl Balancer {
    /// Starts a simulated balancer with the service `web`, which is not in the drop-in.
    pub(crate) fn start(directory: &Path) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let listener = UnixListener::bind(directory.join("balancer.sock")).unwrap();
        let served = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let served = Arc::clone(&served);
                thread::spawn(move || serve(&served, stream.unwrap()));
            }
        });
        let balancer = Self { state };
        balancer.add_service("web", "198.51.100.0:80/tcp");
        balancer
    }

    /// Adds a service to the file, as an operator would.
    pub(crate) fn add_service(&self, name: &str, listener: &str) {
        self.state.lock().unwrap().of_file.insert(name.to_owned(), listener.to_owned());
    }

    pub(crate) fn drop_in(&self) -> String {
        self.state.lock().unwrap().drop_in.clone()
    }

    /// Removes the drop-in with its services, as an operator would.
    pub(crate) fn remove_drop_in(&self) {
        apply(&mut self.state.lock().unwrap(), "").unwrap();
    }

    pub(crate) fn services(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state.services.keys().chain(state.of_file.keys()).cloned().collect()
    }

    pub(crate) fn backends(&self, service: &str) -> BTreeMap<String, Backend> {
        self.state.lock().unwrap().services.get(service).cloned().unwrap_or_default()
    }

    /// Returns the names of a service's backends, with their administrative states.
    pub(crate) fn admins(&self, service: &str) -> Vec<(String, String)> {
        self.backends(service).into_iter().map(|(name, backend)| (name, backend.admin)).collect()
    }

    pub(crate) fn change(&self, service: &str, backend: &str, change: impl FnOnce(&mut Backend)) {
        change(self.state.lock().unwrap().services.get_mut(service).unwrap().get_mut(backend).unwrap());
    }

    /// Adds a backend at run time, as an operator would.
    pub(crate) fn add(&self, service: &str, backend: &str, address: &str) {
        let mut state = self.state.lock().unwrap();
        state.services.get_mut(service).unwrap().insert(backend.to_owned(), ready(address.to_owned()));
    }

    /// Removes a backend at run time, as an operator would.
    pub(crate) fn remove(&self, service: &str, backend: &str) {
        self.state.lock().unwrap().services.get_mut(service).unwrap().remove(backend);
    }

    pub(crate) fn has_room_for(&self, services: usize) {
        self.state.lock().unwrap().room = Some(services);
    }

    pub(crate) fn is_away(&self, away: bool) {
        self.state.lock().unwrap().away = away;
    }

    /// The number of drop-ins that the simulated balancer has applied.
    pub(crate) fn applied(&self) -> usize {
        self.state.lock().unwrap().applied
    }

    /// The changes that the controller has requested from the simulated balancer.
    pub(crate) fn told(&self) -> String {
        self.state.lock().unwrap().told.join("\n")
    }
}

fn serve(state: &Mutex<State>, mut stream: UnixStream) {
    let Ok(Some(request)) = http::read(&mut BufReader::new(&stream.try_clone().unwrap())) else { return };
    let mut state = state.lock().unwrap();
    if state.away {
        return;
    }
    let (status, answer) = answer(&mut state, &request);
    let _ = http::answer(&mut stream, status, &answer);
}

fn answer(state: &mut State, request: &Request) -> (u16, Value) {
    let parts: Vec<&str> = request.path.trim_start_matches("/v1/").split('/').collect();
    let text = |key: &str| request.body[key].as_str().unwrap_or_default().to_owned();
    if request.method != "GET" {
        let words = if parts[0] == "drop-ins" { String::new() } else { request.body.to_string() };
        state.told.push(format!("{} {} {words}", request.method, request.path));
    }
    match (request.method.as_str(), parts.as_slice()) {
        ("GET", ["services"]) => {
            let own = state.services.iter().map(|(name, backends)| view(name, backends));
            (200, own.chain(state.of_file.iter().map(|(name, listener)| other(name, listener))).collect())
        }
        ("GET", ["drop-ins", "kubernetes"]) if !state.drop_in.is_empty() => (200, json!({"text": state.drop_in})),
        ("PUT", ["drop-ins", "kubernetes"]) if text("text").contains("\"snat\"") => {
            (409, json!({"error": "snat needs a table of connections"}))
        }
        ("PUT", ["drop-ins", "kubernetes"]) if request.body["dry_run"] == true => (200, json!({"message": "nothing"})),
        ("PUT", ["drop-ins", "kubernetes"]) => match apply(state, &text("text")) {
            Ok(()) => (200, json!({"message": "applied"})),
            Err(error) => (422, json!({"error": error})),
        },
        ("DELETE", ["drop-ins", "kubernetes"]) if !state.drop_in.is_empty() => {
            apply(state, "").unwrap();
            (200, json!({"message": "removed"}))
        }
        ("PUT", ["services", service, "backends", backend, "admin"]) => {
            let found = state.services.get_mut(*service).and_then(|backends| backends.get_mut(*backend));
            let Some(found) = found else { return (404, json!({"error": "there is no such backend"})) };
            (found.admin, found.state) = (text("admin"), None);
            (200, json!({"message": format!("{service}/{backend} {}", text("admin"))}))
        }
        ("POST", ["services", service, "backends"]) => {
            let Some(backends) = state.services.get_mut(*service) else { return (404, json!({"error": "no service"})) };
            backends.insert(text("name"), ready(text("address")));
            (200, json!({"message": "added"}))
        }
        _ => (404, json!({"error": format!("there is no {}", request.path)})),
    }
}

fn ready(address: String) -> Backend {
    Backend { address, admin: "ready".to_owned(), state: None }
}

/// Applies a drop-in, and keeps the administrative states of backends that remain.
fn apply(state: &mut State, text: &str) -> Result<(), String> {
    let parsed = file::parse_drop_in("kubernetes", "kubernetes".as_ref(), text.as_bytes());
    let (services, _) = parsed.map_err(|errors| errors.to_string())?;
    if state.room.is_some_and(|room| services.len() > room) {
        return Err(format!("the data path refused: no room for {} services", services.len()));
    }
    text.clone_into(&mut state.drop_in);
    let mut before = std::mem::take(&mut state.services);
    let base = std::mem::take(&mut state.base);
    for service in services.iter() {
        let mut known = before.remove(&service.name).unwrap_or_default();
        let backends: Vec<(String, Backend)> = service
            .backends
            .iter()
            .map(|backend| {
                let address = service.shown_address(backend).to_string();
                let kept = known.remove(&backend.name).unwrap_or_else(|| ready(String::new()));
                (backend.name.clone(), Backend { address, ..kept })
            })
            .collect();
        let mut backends: BTreeMap<String, Backend> = backends.into_iter().collect();
        state.base.extend(backends.keys().map(|name| format!("{}/{name}", service.name)));
        backends.extend(known.into_iter().filter(|(name, _)| !base.contains(&format!("{}/{name}", service.name))));
        state.services.insert(service.name.clone(), backends);
    }
    state.applied += 1;
    Ok(())
}

fn view(name: &str, backends: &BTreeMap<String, Backend>) -> Value {
    let backends: Vec<Value> = backends
        .iter()
        .map(|(name, backend)| {
            let usual = if backend.admin == "drain" { "draining" } else { "up" };
            let state = backend.state.clone().unwrap_or_else(|| usual.to_owned());
            json!({"name": name, "address": backend.address, "weight": 100, "backup": false, "admin": backend.admin,
                "health": "up", "state": state, "reason": "", "slots": 0, "known_clients": 0, "connections": 0,
                "packets": 0, "bytes": 0})
        })
        .collect();
    json!({"name": name, "address": "", "protocol": "tcp", "forwarding": "nat", "table_size": 1, "table_generation": 0,
        "backends": backends, "drop_in": "kubernetes"})
}

/// A service that is not in the drop-in.
fn other(name: &str, listener: &str) -> Value {
    json!({"name": name, "address": "", "protocol": "tcp", "forwarding": "ipip", "table_size": 1,
        "table_generation": 0, "backends": [], "listeners": [{"listener": listener}]})
}
