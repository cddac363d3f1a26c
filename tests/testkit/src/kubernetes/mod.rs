//! A small stand-in for the API server of Kubernetes. The stand-in stores objects, notifies watchers, and simulates
//! failures for tests.

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

/// The interval at which a watch checks whether a test has cut the watch.
const LOOK: Duration = Duration::from_millis(20);

struct Shared {
    store: Mutex<Store>,
    news: Condvar,
}

/// A stand-in for an API server. The server's threads end with the process, and answer no requests after the value has
/// been dropped.
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
    /// Starts a stand-in without objects on the loopback interface.
    ///
    /// # Errors
    /// Fails if the kernel has no free port.
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

    /// Returns a kubeconfig that names the stand-in.
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

    /// Creates or replaces an object. `kind` is the name that paths use, such as `services`.
    pub fn put(&self, kind: &str, object: Value) {
        self.change(|store| store.put(&Place::of(kind, &object), object));
    }

    /// Returns an object, or `None` if the object does not exist.
    #[must_use]
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        self.shared.store().get(&Place::new(kind, namespace, name)).cloned()
    }

    #[must_use]
    pub fn all(&self, kind: &str) -> Vec<Value> {
        self.shared.store().all(kind)
    }

    /// Deletes an object at once, or as soon as the object has no finalizers.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) {
        self.change(|store| store.delete(&Place::new(kind, namespace, name)));
    }

    /// Ends all watches, like a proxy that closes connections.
    pub fn cut_watches(&self) {
        self.change(|store| store.faults.cuts += 1);
    }

    /// Forgets the history of objects. A watch from an older version gets status 410, so the watching client has to
    /// list the objects again.
    pub fn compact(&self) {
        self.change(Store::compact);
    }

    /// Makes the API server unreachable, or reachable again.
    pub fn is_away(&self, away: bool) {
        self.change(|store| store.faults.away = away);
    }

    /// Refuses the next `count` writes with status 409.
    pub fn refuses_writes(&self, count: usize) {
        self.change(|store| store.faults.conflicts = count);
    }

    /// Makes the server send each event to watchers twice, or only once.
    pub fn repeats_events(&self, twice: bool) {
        self.change(|store| store.faults.twice = twice);
    }

    /// Stops or resumes sending new events to watchers.
    pub fn drops_events(&self, silent: bool) {
        self.change(|store| store.faults.silent = silent);
    }

    /// Answers the next `count` requests with status 403, like a real server that has not yet loaded the roles of its
    /// users.
    pub fn denies_requests(&self, count: usize) {
        self.change(|store| store.faults.denies = count);
    }

    /// Serves endpoint slices only as `v1beta1`, like Kubernetes up to 1.20.
    pub fn is_old(&self) {
        self.change(|store| store.faults.old = true);
    }

    /// The method and the path of all requests except watches.
    #[must_use]
    pub fn paths(&self) -> Vec<(String, String)> {
        self.shared.store().requests.clone()
    }

    /// Returns the paths of current and earlier watches.
    #[must_use]
    pub fn watched(&self) -> Vec<String> {
        self.shared.store().watched.clone()
    }

    /// The number of watches whose path contains `part`.
    #[must_use]
    pub fn watches(&self, part: &str) -> usize {
        self.watched().iter().filter(|path| path.contains(part)).count()
    }

    /// Returns the number of requests with the given method whose path contains `part`.
    #[must_use]
    pub fn requests(&self, method: &str, part: &str) -> usize {
        let store = self.shared.store();
        store.requests.iter().filter(|(of, path)| of == method && path.contains(part)).count()
    }
}

/// Serves a connection until the connection ends.
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

/// Sends events until the watch's time is over, or until a test cuts the watch.
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
