//! The metrics of the controller for Prometheus.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Context as _;
use axum::{Router, http::StatusCode, routing::get};
use tokio::{net::TcpListener, time::Instant};

use crate::pools::Family;

/// The number of seconds without a complete comparison after which the controller counts as unhealthy.
const STALE: f64 = 180.0;

/// The components whose failures are counted.
const PARTS: [&str; 3] = ["balancer", "cluster", "conflict"];

/// The metrics of the controller, which all tasks update.
#[derive(Debug)]
pub struct Metrics {
    numbers: Mutex<Numbers>,
}

#[derive(Debug)]
struct Numbers {
    started: Instant,
    compared: Option<Instant>,
    listed: Option<Instant>,
    comparisons: u64,
    changes: u64,
    errors: BTreeMap<&'static str, u64>,
    leader: bool,
    services: usize,
    backends: [usize; 2],
    left: BTreeMap<Family, f64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let errors = PARTS.map(|part| (part, 0)).into();
        let numbers = Numbers {
            started: Instant::now(),
            compared: None,
            listed: None,
            comparisons: 0,
            changes: 0,
            errors,
            leader: false,
            services: 0,
            backends: [0; 2],
            left: BTreeMap::new(),
        };
        Self { numbers: Mutex::new(numbers) }
    }
}

impl Metrics {
    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a failure of the component `what`.
    pub fn failed(&self, what: &'static str) {
        *self.numbers().errors.entry(what).or_default() += 1;
    }

    /// Records that the program has just listed the cluster's objects.
    pub fn listed(&self) {
        self.numbers().listed = Some(Instant::now());
    }

    /// Counts a change that the program has requested from the balancer.
    pub fn changed(&self) {
        self.numbers().changes += 1;
    }

    /// Records whether this controller holds the Lease.
    pub fn leads(&self, leader: bool) {
        self.numbers().leader = leader;
    }

    /// Records that a comparison has just ended without an error.
    pub fn compared(&self) {
        let mut numbers = self.numbers();
        numbers.compared = Some(Instant::now());
        numbers.comparisons += 1;
    }

    /// Records the numbers of services, backends, draining backends, and free addresses.
    pub fn counted(&self, services: usize, backends: usize, draining: usize, left: &BTreeMap<Family, f64>) {
        let mut numbers = self.numbers();
        numbers.services = services;
        numbers.backends = [backends.saturating_sub(draining), draining];
        numbers.left.clone_from(left);
    }

    /// Whether the controller counts as healthy.
    #[must_use]
    pub fn is_well(&self) -> bool {
        let numbers = self.numbers();
        let since = if numbers.leader { numbers.compared } else { numbers.listed };
        age(since, numbers.started) < STALE
    }

    /// Renders the metrics as text for Prometheus.
    #[must_use]
    pub fn text(&self) -> String {
        let numbers = self.numbers();
        let mut text = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, values: &[(String, f64)]| {
            let _ =
                writeln!(text, "# HELP balancer_kubernetes_{name} {help}\n# TYPE balancer_kubernetes_{name} {kind}");
            for (labels, value) in values {
                let _ = writeln!(text, "balancer_kubernetes_{name}{labels} {value}");
            }
        };
        let one = |value: f64| [(String::new(), value)];
        let label = |name: &str, value: &dyn std::fmt::Display| format!("{{{name}=\"{value}\"}}");
        let errors: Vec<_> = numbers.errors.iter().map(|(part, count)| (label("in", part), *count as f64)).collect();
        let left: Vec<_> = numbers.left.iter().map(|(family, left)| (label("family", family), *left)).collect();
        let backends: Vec<_> = ["eligible", "draining"]
            .iter()
            .zip(numbers.backends)
            .map(|(state, n)| (label("state", state), n as f64))
            .collect();
        let started = numbers.started;
        metric(
            "sync_age_seconds",
            "gauge",
            "Since the last complete comparison.",
            &one(age(numbers.compared, started)),
        );
        metric(
            "list_age_seconds",
            "gauge",
            "Since the API server last listed something.",
            &one(age(numbers.listed, started)),
        );
        metric("comparisons_total", "counter", "Complete comparisons.", &one(numbers.comparisons as f64));
        metric("changes_total", "counter", "Changes that the balancer was asked for.", &one(numbers.changes as f64));
        metric("errors_total", "counter", "What failed, and was tried again.", &errors);
        metric(
            "leader",
            "gauge",
            "Whether this controller is the one that acts.",
            &one(f64::from(u8::from(numbers.leader))),
        );
        metric("services", "gauge", "Services that are served.", &one(numbers.services as f64));
        metric("backends", "gauge", "Backends of these services.", &backends);
        metric("addresses_left", "gauge", "Addresses of the pools that nobody has.", &left);
        text
    }

    /// Serves the metrics at `/metrics`, and the health of the controller at `/healthz`.
    ///
    /// # Errors
    /// Fails if this process cannot listen on the address.
    pub async fn serve(self: Arc<Self>, address: SocketAddr) -> anyhow::Result<()> {
        let listener =
            TcpListener::bind(address).await.with_context(|| format!("--metrics {address} cannot be used"))?;
        tracing::info!("metrics at http://{}/metrics", listener.local_addr()?);
        let health = Arc::clone(&self);
        let app = Router::new().route("/metrics", get(move || async move { self.text() })).route(
            "/healthz",
            get(move || async move {
                if health.is_well() {
                    (StatusCode::OK, "ok\n")
                } else {
                    (StatusCode::SERVICE_UNAVAILABLE, "no complete comparison within 180 s\n")
                }
            }),
        );
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(())
    }
}

fn age(since: Option<Instant>, started: Instant) -> f64 {
    since.unwrap_or(started).elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn names(text: &str) -> Vec<&str> {
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect()
    }

    #[test]
    fn when_numbers_are_shown_then_each_is_described_in_the_book() {
        let metrics = Metrics::default();
        metrics.failed("balancer");
        metrics.counted(2, 5, 1, &[(Family::V4, 3.0)].into());
        let text = metrics.text();
        for line in [
            "balancer_kubernetes_errors_total{in=\"balancer\"} 1",
            "balancer_kubernetes_errors_total{in=\"cluster\"} 0",
            "balancer_kubernetes_backends{state=\"draining\"} 1",
            "balancer_kubernetes_addresses_left{family=\"IPv4\"} 3",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line}: {text}");
        }
        let book = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/src/kubernetes.md")).unwrap();
        for name in names(&text) {
            assert!(book.contains(&format!("`{}", name.trim_start_matches("balancer_kubernetes_"))), "{name}");
        }
    }
}
