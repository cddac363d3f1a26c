//! Observing the packets of the running balancer: what `balancer trace` and `balancer capture` share.

pub(crate) mod explain;
pub(crate) mod frame;

use std::{
    collections::VecDeque,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use balancer_api::{
    client::{Client, ClientError},
    model::ServiceView,
    trace::{BeginTrace, MAX_WAIT, TraceView, TracedPacket},
};
use balancer_model::words;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ipnet::IpNet;
use nix::time::{ClockId, clock_gettime};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::Instant,
};

use self::explain::Known;
use crate::Failure;

/// How long what the controller says of its services is taken to hold.
const REFRESH: Duration = Duration::from_secs(1);

/// A client's address, or the prefix of several.
pub(crate) fn client(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    let prefix = text.parse::<IpNet>().map(|prefix| prefix.trunc());
    prefix.map_err(|_| format!("{text:?} is neither an IP address nor a prefix such as 203.0.113.0/24"))
}

/// Whose packets are observed.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) service: Option<String>,
    pub(crate) client: Option<IpNet>,
    pub(crate) snaplen: u32,
    pub(crate) count: u64,
}

/// A packet, with the frames as they came and as they left.
#[derive(Clone, Debug)]
pub(crate) struct Observation {
    pub(crate) head: TracedPacket,
    pub(crate) came: Vec<u8>,
    pub(crate) left: Vec<u8>,
}

impl Observation {
    /// `None`: the controller sends nonsense.
    fn of(head: TracedPacket) -> Option<Self> {
        let came = STANDARD.decode(&head.came_frame).ok()?;
        let left = STANDARD.decode(&head.left_frame).ok()?;
        Some(Self { head, came, left })
    }
}

/// A trace, and what is known of those whose packets it sees.
pub(crate) struct Session {
    api: Client,
    service: Option<String>,
    trace: u64,
    known: Known,
    refreshed: Instant,
    waiting: VecDeque<Observation>,
    /// How many packets are still to be observed.
    left: u64,
    lost: u64,
    /// What is to be added to the monotonic clock.
    real: Duration,
    interrupt: Signal,
    terminate: Signal,
}

impl Session {
    /// Begins to observe. If this process ends without [`end`](Self::end), the controller ends it some seconds later.
    ///
    /// # Errors
    /// When there is no controller or no such service, somebody else traces, or the kernel refuses.
    pub(crate) async fn open(api: &Client, asked: &Asked) -> Result<Self, Failure> {
        let services = services(api, asked.service.as_deref()).await?;
        // Before anything begins, so that there is no moment in which they would just end the process.
        let (interrupt, terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let wanted = BeginTrace {
            service: asked.service.clone(),
            client: asked.client.map(|client| client.to_string()),
            snaplen: asked.snaplen,
        };
        let mut this = Self {
            trace: api.trace(&wanted).await?.trace,
            api: api.clone(),
            service: asked.service.clone(),
            known: Known { services, ..Known::default() },
            refreshed: Instant::now(),
            waiting: VecDeque::new(),
            left: asked.count,
            lost: 0,
            real: real()?,
            interrupt,
            terminate,
        };
        let first = api.traced(this.trace, Duration::ZERO).await?;
        this.take(first);
        Ok(this)
    }

    /// The next packet. `None`: there were as many as were asked for, or a signal has come.
    ///
    /// # Errors
    /// When the controller ends the trace.
    pub(crate) async fn next(&mut self) -> Result<Option<Observation>, Failure> {
        while self.left > 0 {
            if let Some(observation) = self.waiting.pop_front() {
                self.left -= 1;
                return Ok(Some(observation));
            }
            let view = tokio::select! {
                biased;
                _ = self.interrupt.recv() => return Ok(None),
                _ = self.terminate.recv() => return Ok(None),
                view = self.api.traced(self.trace, MAX_WAIT) => view?,
            };
            self.take(view);
        }
        Ok(None)
    }

    fn take(&mut self, view: TraceView) {
        let TraceView { packets, lost, hops, interfaces } = view;
        self.waiting.extend(packets.into_iter().filter_map(Observation::of));
        self.lost = lost;
        self.known.hops = hops;
        self.known.interfaces = interfaces.into_iter().map(|of| (of.ifindex, of.name)).collect();
    }

    /// What is known by now of services, backends and interfaces.
    pub(crate) async fn known(&mut self) -> &Known {
        if self.refreshed.elapsed() >= REFRESH {
            self.refreshed = Instant::now();
            // A controller that restarts is back in a moment; what it said last holds meanwhile.
            if let Ok(services) = services(&self.api, self.service.as_deref()).await {
                self.known.services = services;
            }
        }
        &self.known
    }

    /// The time of day of a moment of the monotonic clock, in nanoseconds.
    pub(crate) fn time(&self, nanoseconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.real + Duration::from_nanos(nanoseconds)
    }

    /// Ends the observing, and gives how many frames came too fast to be told.
    pub(crate) async fn end(self) -> u64 {
        // A controller that has ended the trace itself has nothing more to say.
        self.api.end_trace(self.trace).await.map_or(self.lost, |ended| ended.lost)
    }
}

/// The services that are asked about.
async fn services(api: &Client, service: Option<&str>) -> Result<Vec<ServiceView>, ClientError> {
    match service {
        Some(name) => Ok(vec![api.service(name).await?]),
        None => api.services().await,
    }
}

/// A number of packets, in words.
pub(crate) fn packets(number: u64) -> String {
    words::counted(usize::try_from(number).unwrap_or(usize::MAX), "packet")
}

fn real() -> anyhow::Result<Duration> {
    let read = |clock: ClockId| -> anyhow::Result<Duration> { Ok(clock_gettime(clock)?.into()) };
    Ok(read(ClockId::CLOCK_REALTIME)?.saturating_sub(read(ClockId::CLOCK_MONOTONIC)?))
}
