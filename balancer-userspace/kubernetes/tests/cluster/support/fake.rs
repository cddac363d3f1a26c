//! A simulated balancer behind a control socket, which applies files and keeps changes made at run time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::BufReader,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
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
    /// The backends in the file that was applied last, as `SERVICE/BACKEND`.
    base: BTreeSet<String>,
    applied: usize,
    told: Vec<String>,
    away: bool,
}

pub(crate) struct Balancer {
    state: Arc<Mutex<State>>,
    file: PathBuf,
}

impl Balancer {
    /// Starts a simulated balancer whose file has these contents.
    pub(crate) fn start(directory: &Path, text: &str) -> Self {
        let file = directory.join("balancer.toml");
        fs::write(&file, text).unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        apply(&mut state.lock().unwrap(), text).unwrap();
        let listener = UnixListener::bind(directory.join("balancer.sock")).unwrap();
        let served = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let served = Arc::clone(&served);
                thread::spawn(move || serve(&served, stream.unwrap()));
            }
        });
        Self { state, file }
    }

    pub(crate) fn file(&self) -> String {
        fs::read_to_string(&self.file).unwrap()
    }

    pub(crate) fn write(&self, text: &str) {
        fs::write(&self.file, text).unwrap();
    }

    pub(crate) fn services(&self) -> Vec<String> {
        self.state.lock().unwrap().services.keys().cloned().collect()
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

    /// Applies another file, as an operator would.
    pub(crate) fn apply(&self, text: &str) {
        apply(&mut self.state.lock().unwrap(), text).unwrap();
    }

    pub(crate) fn is_away(&self, away: bool) {
        self.state.lock().unwrap().away = away;
    }

    /// The number of files that the simulated balancer has applied.
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
        let words = if parts == ["configuration"] { String::new() } else { request.body.to_string() };
        state.told.push(format!("{} {} {words}", request.method, request.path));
    }
    match (request.method.as_str(), parts.as_slice()) {
        ("GET", ["status"]) => (200, status(state)),
        ("GET", ["services"]) => (200, state.services.iter().map(|(name, backends)| view(name, backends)).collect()),
        ("POST", ["configuration"]) if text("text").contains("\"snat\"") => {
            (422, json!({"error": "the first service with snat needs a restart"}))
        }
        ("POST", ["configuration"]) if request.body["dry_run"] == true => (200, json!({"message": "nothing"})),
        ("POST", ["configuration"]) => match apply(state, &text("text")) {
            Ok(()) => (200, json!({"message": "applied"})),
            Err(error) => (422, json!({"error": error})),
        },
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

fn status(state: &State) -> Value {
    let services: Value = state.services.iter().map(|(name, backends)| view(name, backends)).collect();
    let all = state.services.iter().flat_map(|(service, of)| of.keys().map(move |name| format!("{service}/{name}")));
    let added = all.filter(|name| !state.base.contains(name));
    let changed: Value = added.map(|name| json!({"what": "backend", "name": name, "change": "added"})).collect();
    json!({"interfaces": [], "services": services, "generation": 0, "changed_at_run_time": changed})
}

fn ready(address: String) -> Backend {
    Backend { address, admin: "ready".to_owned(), state: None }
}

/// Applies a file, and keeps the administrative states of backends that remain.
fn apply(state: &mut State, text: &str) -> Result<(), String> {
    let (config, _) = file::parse("balancer.toml".as_ref(), text.as_bytes()).map_err(|errors| errors.to_string())?;
    let mut before = std::mem::take(&mut state.services);
    let base = std::mem::take(&mut state.base);
    for service in config.services.iter() {
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
        "backends": backends})
}
