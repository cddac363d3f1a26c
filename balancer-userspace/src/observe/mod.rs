//! Observing the packets of the running balancer: what `balancer trace` and `balancer capture` share.

pub(crate) mod explain;
pub(crate) mod frame;

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use balancer_api::client::Client;
use balancer_dataplane::observer::{Filter, Observation, Observer};
use balancer_doctor::look;
use balancer_model::words;
use ipnet::IpNet;
use nix::time::{ClockId, clock_gettime};
use tokio::{
    io::unix::AsyncFd,
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

/// Attached programs, and what is known of those whose packets they see.
pub(crate) struct Session {
    api: Client,
    service: Option<String>,
    observer: AsyncFd<Observer>,
    known: Known,
    refreshed: Instant,
    left: u64,
    /// What is to be added to the monotonic clock.
    real: Duration,
    interrupt: Signal,
    terminate: Signal,
}

impl Session {
    /// Attaches, until it is dropped or this process ends.
    ///
    /// # Errors
    /// When there is no controller or no such service, or the kernel refuses.
    pub(crate) async fn open(api: &Client, asked: &Asked) -> Result<Self, Failure> {
        let services = services(api, asked.service.as_deref()).await?;
        let programs = look::programs(api.socket()).await?;
        let interfaces = programs.iter().map(|on| (on.ifindex, on.name.clone())).collect();
        let known = Known { services, interfaces, hops: Vec::new() };
        let filter = Filter {
            client: asked.client,
            vips: known.vips().collect(),
            only_vips: asked.service.is_some(),
            snaplen: asked.snaplen,
            limit: asked.count,
        };
        // Before anything is attached, so that there is no moment in which they would just end the process.
        let (interrupt, terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let programs = programs.iter().map(|on| on.program).collect();
        let observer = Observer::attach(&programs, &filter)?;
        // SAFETY: its descriptor is that of the ring, which it holds open as long as it lives.
        let observer = unsafe { AsyncFd::register(observer) }.context("waiting for packets")?;
        let mut this = Self {
            api: api.clone(),
            service: asked.service.clone(),
            known,
            refreshed: Instant::now(),
            observer,
            left: asked.count,
            real: real()?,
            interrupt,
            terminate,
        };
        this.known.hops = this.observer.get_ref().hops().to_vec();
        Ok(this)
    }

    /// The next packet that belongs to the service. `None`: there were as many as were asked for, or a signal has come.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) async fn next(&mut self) -> Result<Option<Observation>, Failure> {
        while self.left > 0 {
            let observation = match self.observer.get_mut().take() {
                Some(observation) => observation,
                None => {
                    tokio::select! {
                        biased;
                        _ = self.interrupt.recv() => return Ok(None),
                        _ = self.terminate.recv() => return Ok(None),
                        ready = self.observer.readable_mut() => {
                            let mut ready = ready?;
                            let next = ready.get_inner_mut().take();
                            if next.is_none() {
                                ready.clear_ready();
                            }
                            let Some(next) = next else { continue };
                            next
                        }
                    }
                }
            };
            self.left -= 1;
            return Ok(Some(observation));
        }
        Ok(None)
    }

    /// Whether another packet is there already would tell; this is what is known by now.
    pub(crate) async fn known(&mut self) -> Result<&Known, Failure> {
        if self.refreshed.elapsed() >= REFRESH {
            self.refreshed = Instant::now();
            // A controller that restarts is back in a moment; what it said last holds meanwhile.
            if let Ok(services) = services(&self.api, self.service.as_deref()).await {
                self.known.services = services;
            }
            let observer = self.observer.get_mut();
            observer.watch()?;
            self.known.hops = observer.hops().to_vec();
        }
        Ok(&self.known)
    }

    /// The time of day of a moment of the monotonic clock, in nanoseconds.
    pub(crate) fn time(&self, nanoseconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.real + Duration::from_nanos(nanoseconds)
    }

    /// Packets that were not taken from the kernel fast enough.
    ///
    /// # Errors
    /// When the kernel refuses the read.
    pub(crate) fn lost(&self) -> anyhow::Result<u64> {
        self.observer.get_ref().lost()
    }
}

/// The services that are asked about.
async fn services(
    api: &Client,
    service: Option<&str>,
) -> Result<Vec<balancer_api::model::ServiceView>, balancer_api::client::ClientError> {
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
