//! Observes the packets of the running balancer, for `balancer trace` and `balancer capture`.

pub(crate) mod explain;
pub(crate) mod frame;

use std::{
    collections::VecDeque,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use balancer_api::{
    client::Client,
    trace::{BeginTrace, MAX_WAIT, TraceView, TracedPacket},
};
use balancer_config::words;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ipnet::IpNet;
use nix::time::{ClockId, clock_gettime};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::Instant,
};

use self::explain::{Explanation, Known, explain};
use crate::Failure;

/// The time for which the session uses an answer of the controller about its services.
const REFRESH: Duration = Duration::from_secs(1);

/// Parses the address of a client, or a prefix of clients.
pub(crate) fn client(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    let prefix = text.parse::<IpNet>().map(|prefix| prefix.trunc());
    prefix.map_err(|_| format!("{text:?} is neither an IP address nor a prefix such as 203.0.113.0/24"))
}

/// The selection of packets to observe.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) service: Option<String>,
    pub(crate) client: Option<IpNet>,
    pub(crate) snaplen: u32,
    pub(crate) count: u64,
}

/// An observed packet, with the frame as it arrived and as it departed.
#[derive(Clone, Debug)]
pub(crate) struct Observation {
    pub(crate) head: TracedPacket,
    pub(crate) came: Vec<u8>,
    pub(crate) left: Vec<u8>,
}

impl Observation {
    /// Decodes a packet in the controller's answer; `None` if the packet is malformed.
    fn of(head: TracedPacket) -> Option<Self> {
        let came = STANDARD.decode(&head.came_frame).ok()?;
        let left = STANDARD.decode(&head.left_frame).ok()?;
        Some(Self { head, came, left })
    }
}

/// A running trace, with the services, backends and interfaces that its packets may concern.
pub(crate) struct Session {
    api: Client,
    /// The only service whose packets are observed.
    service: Option<String>,
    trace: u64,
    known: Known,
    refreshed: Instant,
    waiting: VecDeque<Observation>,
    /// The number of packets that the session still has to observe.
    left: u64,
    lost: u64,
    /// The difference between the wall clock and the monotonic clock.
    real: Duration,
    interrupt: Signal,
    terminate: Signal,
}

impl Session {
    /// Starts a trace of packets. If this process dies without calling [`end`](Self::end), the controller ends the
    /// trace after some seconds.
    ///
    /// # Errors
    /// Fails if there is no controller, if the service does not exist, if another trace is running, or if the
    /// controller cannot start the trace.
    pub(crate) async fn open(api: &Client, asked: &Asked) -> Result<Self, Failure> {
        let services = api.services().await?;
        // The signal handlers must exist before the trace starts, because otherwise a signal during the start would
        // kill the process.
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

    /// Returns the next observed packet, explained; `None` after the requested number of packets, or after a signal.
    ///
    /// # Errors
    /// Fails if the controller has ended the trace.
    pub(crate) async fn next(&mut self) -> Result<Option<(Observation, Explanation)>, Failure> {
        while self.left > 0 {
            if let Some(observation) = self.waiting.pop_front() {
                let explanation = explain(&observation, self.known().await);
                if !self.is_wanted(&explanation) {
                    continue;
                }
                self.left -= 1;
                return Ok(Some((observation, explanation)));
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

    /// Whether a packet is one of the service whose packets are observed. The program selects packets by the VIP, which
    /// may belong to several services; without ports, a packet may be of each of them.
    fn is_wanted(&self, of: &Explanation) -> bool {
        match (&self.service, &of.service) {
            (None, _) => true,
            (Some(wanted), Some(service)) => wanted == service,
            (Some(_), None) => of.packet.as_ref().is_none_or(|packet| packet.destination_port.is_none()),
        }
    }

    fn take(&mut self, view: TraceView) {
        let TraceView { packets, lost, hops, interfaces } = view;
        self.waiting.extend(packets.into_iter().filter_map(Observation::of));
        self.lost = lost;
        self.known.hops = hops;
        self.known.interfaces = interfaces.into_iter().map(|of| (of.ifindex, of.name)).collect();
    }

    /// Returns the current services, backends and interfaces.
    async fn known(&mut self) -> &Known {
        if self.refreshed.elapsed() >= REFRESH {
            self.refreshed = Instant::now();
            // If the controller restarts, it returns soon; until then, the session uses the last answer.
            if let Ok(services) = self.api.services().await {
                self.known.services = services;
            }
        }
        &self.known
    }

    /// Converts a time of the monotonic clock, in nanoseconds, to a time of the wall clock.
    pub(crate) fn time(&self, nanoseconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.real + Duration::from_nanos(nanoseconds)
    }

    /// Ends the trace, and returns the number of frames that were not reported because frames arrived too fast.
    pub(crate) async fn end(self) -> u64 {
        // The call fails if the controller has already ended the trace.
        self.api.end_trace(self.trace).await.map_or(self.lost, |ended| ended.lost)
    }
}

/// Formats a number of packets in words.
pub(crate) fn packets(number: u64) -> String {
    words::counted(usize::try_from(number).unwrap_or(usize::MAX), "packet")
}

fn real() -> anyhow::Result<Duration> {
    let read = |clock: ClockId| -> anyhow::Result<Duration> { Ok(clock_gettime(clock)?.into()) };
    Ok(read(ClockId::CLOCK_REALTIME)?.saturating_sub(read(ClockId::CLOCK_MONOTONIC)?))
}
