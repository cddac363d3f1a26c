//! The real balancer of the fleet, whose kernel program steers real packets between clients and servers.

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use balancer_bench::failover::{
    hosts::{Hosts, Servers, client},
    load::{self, Load},
    scrape,
    wire::Wire,
};
use balancer_common::client::hash_v4;
use balancer_config::names::BackendName;
use balancer_control::keys::client_key;
use balancer_testkit::{binaries, controller::Controller, etcd::EtcdCluster, frame::ACK};

use crate::member::KEY;

/// The number of clients whose packets the real balancer steers.
pub(crate) const CLIENTS: u16 = 10_000;
/// The pause between two packets, for 4,000 packets per second.
const PAUSE: Duration = Duration::from_micros(250);
/// If a dead backend receives no packet for `SILENCE`, the benchmark assumes that no more packets will arrive.
const SILENCE: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(60);

/// The balancer, the servers, and the observed packets between balancer and servers. Rust drops the fields in the order
/// of their declarations.
pub(crate) struct Real {
    controller: Controller,
    wire: Wire,
    _servers: Servers,
    _files: tempfile::TempDir,
    /// The expected backend of each client.
    places: HashMap<u16, u16>,
}

/// The hash of a client that sends real packets.
pub(crate) fn hash(number: u16) -> u64 {
    hash_v4(client_key(KEY, "web"), u32::from_ne_bytes(client(number).octets()))
}

impl Real {
    /// Starts the balancer with the given services and the given size of the client table, and waits until the balancer
    /// is ready. Returns the duration of the start.
    ///
    /// # Errors
    /// Fails if the balancer does not become ready.
    pub(crate) fn start(
        hosts: &Hosts,
        etcd: &EtcdCluster,
        services: &str,
        entries: usize,
        servers: Servers,
        places: HashMap<u16, u16>,
    ) -> Result<(Self, Duration)> {
        let files = tempfile::tempdir()?;
        let (config, socket) = (files.path().join("balancer.toml"), files.path().join("balancer.sock"));
        let certificates = etcd.certificates().context("no certificates")?;
        let mut key = String::new();
        KEY.k0.to_le_bytes().iter().chain(&KEY.k1.to_le_bytes()).try_for_each(|byte| write!(key, "{byte:02x}"))?;
        let text = format!(
            "interfaces = [\"eth0\", \"eth1\"]\nxdp_mode = \"native\"\nstate_file = \"{files}/state.json\"\n\
             [control]\nsocket = \"{files}/balancer.sock\"\n\
             [hash]\nkey = \"hex:{key}\"\n[client_table]\ncapacity = {}\n\
             [fleet]\nname = \"bench\"\nmember = \"real\"\nendpoints = {:?}\nca = {:?}\ncert = {:?}\nkey = {:?}\n{services}",
            entries / 4,
            etcd.endpoints(),
            certificates.ca,
            certificates.cert,
            certificates.key,
            files = files.path().display(),
        );
        fs::write(&config, text)?;
        let wire = Wire::tap(hosts.backends.entrance())?;
        let begin = Instant::now();
        let log = files.path().join("balancer.log");
        let controller = Controller::start(&hosts.balancer, &binaries::balancer()?, &config, &socket, &log)?;
        let mut this = Self { controller, wire, _servers: servers, _files: files, places };
        while !this.controller.cli(&["ready"])?.status.success() {
            this.controller.ensure_running()?;
            ensure!(begin.elapsed() < PATIENCE, "it does not become ready:\n{}", this.controller.process().tail(20)?);
            thread::sleep(Duration::from_millis(20));
        }
        Ok((this, begin.elapsed()))
    }

    /// Sends one packet from each client. Returns the number of packets that reach a backend other than the client's
    /// known backend.
    ///
    /// # Errors
    /// Fails if some packets do not arrive at any backend.
    pub(crate) fn strangers(&mut self, hosts: &Hosts) -> Result<usize> {
        self.wire.seen()?.clients.clear();
        load::once(&hosts.clients, 1..=CLIENTS, ACK)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            thread::sleep(Duration::from_millis(100));
            let seen = self.wire.seen()?;
            if seen.clients.len() == usize::from(CLIENTS) {
                return Ok(self
                    .places
                    .iter()
                    .filter(|(client, place)| seen.clients.get(client) != Some(place))
                    .count());
            }
            ensure!(Instant::now() < deadline, "packets of {} clients of {CLIENTS} arrived", seen.clients.len());
        }
    }

    /// Starts to send packets from the clients of the backend `watched`, one client after another. From then on, the
    /// benchmark observes the packets to that backend.
    ///
    /// # Errors
    /// Fails if the benchmark missed packets between balancer and servers.
    pub(crate) fn load(&mut self, hosts: &Hosts, watched: u16) -> Result<Load> {
        self.wire.seen()?.watch(&[watched]);
        let theirs = self.places.iter().filter(|(_, place)| **place == watched).map(|(&client, _)| client).collect();
        Ok(Load::start(hosts.clients.entrance(), &[theirs], &[ACK], PAUSE, PATIENCE))
    }

    /// Waits until the clients of the watched backend reach other backends. Returns the wall-clock time of the last
    /// packet that the watched backend received.
    ///
    /// # Errors
    /// Fails if packets continue to arrive at the watched backend.
    pub(crate) fn last_stray(&mut self, watched: u16) -> Result<Duration> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            thread::sleep(Duration::from_millis(20));
            self.controller.ensure_running()?;
            let seen = self.wire.seen()?;
            let backend = seen.watched.get(&watched).context("nobody watches")?;
            let mut theirs = self.places.iter_mut().filter(|(_, place)| **place == watched);
            if let Some(last) = backend.last
                && seen.now.saturating_sub(last) > SILENCE
                && theirs.all(|(client, _)| seen.clients.get(client).is_some_and(|place| *place != watched))
            {
                for (client, place) in self.places.iter_mut().filter(|(_, place)| **place == watched) {
                    *place = seen.clients.get(client).copied().unwrap_or(watched);
                }
                return Ok(last);
            }
            if Instant::now() >= deadline {
                bail!("clients still go to a dead backend: {backend:?}");
            }
        }
    }

    /// Returns the number of bytes that the balancer has sent to etcd, and the number of bytes that it has received
    /// from etcd.
    ///
    /// # Errors
    /// Fails if the balancer does not report the numbers of bytes.
    pub(crate) fn bytes(&self, hosts: &Hosts) -> Result<(u64, u64)> {
        let metrics = scrape(&hosts.balancer)?;
        let of = |direction: &str| metrics.sum("fleet_engine_bytes_total", &[&format!("direction=\"{direction}\"")]);
        Ok((of("sent")? as u64, of("received")? as u64))
    }

    /// The CPU time that the balancer has used so far.
    ///
    /// # Errors
    /// Fails if the kernel does not report the CPU time.
    pub(crate) fn cpu(&mut self) -> Result<Duration> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.controller.process().pid()))?;
        let mut sum = Duration::ZERO;
        for thread in threads {
            let path = thread?.path().join("schedstat");
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let nanoseconds = text.split(' ').next().context("an empty schedstat")?.parse()?;
            sum += Duration::from_nanos(nanoseconds);
        }
        Ok(sum)
    }
}

/// Returns the name of a backend.
pub(crate) fn web(number: u16) -> BackendName {
    BackendName { service: "web".to_owned(), backend: format!("web{number}") }
}
