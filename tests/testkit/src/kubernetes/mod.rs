//! A small stand-in for Kubernetes' API server, which stores objects, notifies watchers, and fails on request.

pub mod http;
pub mod real;
mod store;

use std::{
    io::{BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde_json::{Value, json};

use self::{
    http::Request,
    store::{Place, Store},
};

/// How often a watch checks whether it was cut.
const LOOK: Duration = Duration::from_millis(20);

struct Shared {
    store: Mutex<Store>,
    news: Condvar,
}

/// The stand-in for an API server, which ends with the process. After this value is dropped, it answers no requests.
pub struct Kubernetes {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        self.is_away(true);
    }
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kubernetes {
    /// Starts a stand-in on loopback, without any object.
    ///
    /// # Errors
    /// If there is no port.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { store: Mutex::default(), news: Condvar::new() });
        let all = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&all);
                thread::spawn(move || drop(serve(&shared, stream)));
            }
        });
        Ok(Self { shared, address })
    }

    /// Returns a kubeconfig for the stand-in.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{"name": "it", "cluster": {"server": format!("http://{}", self.address)}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
            "users": [{"name": "it", "user": {}}],
        });
        config.to_string()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let changed = change(&mut self.shared.store());
        self.shared.news.notify_all();
        changed
    }

    /// Creates or replaces an object. `kind` is the name in paths, such as `services`.
    pub fn put(&self, kind: &str, object: Value) {
        self.change(|store| store.put(&Place::of(kind, &object), object));
    }

    /// Returns an object, if it exists.
    #[must_use]
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        self.shared.store().get(&Place::new(kind, namespace, name)).cloned()
    }

    /// All objects of a kind.
    #[must_use]
    pub fn all(&self, kind: &str) -> Vec<Value> {
        self.shared.store().all(kind)
    }

    /// Deletes an object: at once, or when it has no finalizers left.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) {
        self.change(|store| store.delete(&Place::new(kind, namespace, name)));
    }

    /// Ends all watches, like a proxy in between.
    pub fn cut_watches(&self) {
        self.change(|store| store.faults.cuts += 1);
    }

    /// Forgets the history. A watch from an older version gets 410 and has to list again.
    pub fn compact(&self) {
        self.change(Store::compact);
    }

    /// Makes the server unreachable or reachable.
    pub fn is_away(&self, away: bool) {
        self.change(|store| store.faults.away = away);
    }

    /// Refuses this number of the next writes with 409.
    pub fn refuses_writes(&self, count: usize) {
        self.change(|store| store.faults.conflicts = count);
    }

    /// Sends each event to watchers twice, or once.
    pub fn repeats_events(&self, twice: bool) {
        self.change(|store| store.faults.twice = twice);
    }

    /// Stops sending new events to watchers, or sends them again.
    pub fn drops_events(&self, silent: bool) {
        self.change(|store| store.faults.silent = silent);
    }

    /// Answers the next `count` requests with 403, like a real server in the first second, while it reads roles.
    pub fn denies_requests(&self, count: usize) {
        self.change(|store| store.faults.denies = count);
    }

    /// Serves endpoint slices only as `v1beta1`, like Kubernetes up to 1.20.
    pub fn is_old(&self) {
        self.change(|store| store.faults.old = true);
    }

    /// All requests except watches: method and path.
    #[must_use]
    pub fn paths(&self) -> Vec<(String, String)> {
        self.shared.store().requests.clone()
    }

    /// The paths of current and earlier watches.
    #[must_use]
    pub fn watched(&self) -> Vec<String> {
        self.shared.store().watched.clone()
    }

    /// The number of watches whose path contains `part`.
    #[must_use]
    pub fn watches(&self, part: &str) -> usize {
        self.watched().iter().filter(|path| path.contains(part)).count()
    }

    /// The number of requests with this method whose path contains `part`.
    #[must_use]
    pub fn requests(&self, method: &str, part: &str) -> usize {
        let store = self.shared.store();
        store.requests.iter().filter(|(of, path)| of == method && path.contains(part)).count()
    }
}

/// Serves a connection until it ends.
fn serve(shared: &Shared, stream: TcpStream) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    while let Some(request) = http::read(&mut reader)? {
        if shared.store().faults.away {
            break;
        }
        if request.query.contains_key("watch") {
            return watch(shared, &request, &mut stream);
        }
        let (status, answer) = shared.store().answer(&request);
        shared.news.notify_all();
        http::answer(&mut stream, status, &answer)?;
    }
    Ok(())
}

/// Sends events until the time is over, or until the watch is cut.
fn watch(shared: &Shared, request: &Request, stream: &mut TcpStream) -> Result<()> {
    let number = |key: &str| request.query.get(key).and_then(|text| text.parse::<u64>().ok());
    let end = Instant::now() + Duration::from_secs(number("timeoutSeconds").unwrap_or(60));
    let mut version = number("resourceVersion").unwrap_or(0);
    let mut store = shared.store();
    let (cuts, place) = (store.faults.cuts, Place::of_path(&request.path));
    let Some(place) = place.filter(|_| store.knows(&request.path)) else {
        return Ok(http::answer(stream, 404, &store::status(404, "there is no such kind"))?);
    };
    if store.faults.denies > 0 {
        store.faults.denies -= 1;
        return Ok(http::answer(stream, 403, &store::forbidden(&request.path))?);
    }
    store.watched.push(request.path.clone());
    http::begin_chunks(stream)?;
    loop {
        let is_over = store.faults.away || store.faults.cuts != cuts || Instant::now() >= end;
        if is_over {
            break;
        }
        let events = match store.since(&place.kind, version) {
            Ok(events) => events,
            Err(gone) => {
                http::chunk(stream, &format!("{}\n", json!({"type": "ERROR", "object": gone})))?;
                break;
            }
        };
        for (at, event) in events {
            version = at;
            http::chunk(stream, &format!("{event}\n"))?;
        }
        store = shared.news.wait_timeout(store, LOOK).unwrap_or_else(PoisonError::into_inner).0;
    }
    if !store.faults.away {
        http::end_chunks(stream)?;
    }
    Ok(stream.flush()?)
}
