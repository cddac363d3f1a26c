//! Preparations at the start that run while the kernel verifies the program; the verification keeps one processor busy
//! for most of this time.

use anyhow::Context as _;
use balancer_checks::prober::Prober;
use balancer_common::features::Features;
use balancer_control::{controller::Controller, io::Event};
use balancer_dataplane::{Capacity, KernelDataplane, Pins};
use balancer_netlink::neighbours::Neighbours;
use balancer_runtime::supervisor::{Supervisor, panicked};
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinHandle, spawn_blocking},
};

use super::running::EVENTS;
use crate::{kernel_log, owner::Beginning};

/// The kernel program while it is being loaded.
pub(super) struct Loading(JoinHandle<anyhow::Result<KernelDataplane>>);

/// The resources that the balancer can prepare before the kernel program is loaded.
pub(super) struct Prepared {
    pub(super) beginning: Beginning,
    pub(super) neighbours: Neighbours,
    pub(super) prober: Prober,
    pub(super) events: mpsc::Receiver<Event>,
    /// The events that arrived during the preparation.
    pub(super) found: Vec<Event>,
}

impl Loading {
    /// Starts to load the kernel program with `features` on a separate thread.
    pub(super) fn begin(
        capacity: Capacity,
        features: Features,
        ifindexes: Vec<u32>,
        pins: Option<Pins>,
        supervisor: &Supervisor,
    ) -> Self {
        let (supervisor, tells) = (supervisor.clone(), kernel_log::wanted());
        Self(spawn_blocking(move || {
            KernelDataplane::load_kept(capacity, &ifindexes, pins, tells, &supervisor, features)
        }))
    }

    /// Prepares `controller` while the kernel program is being loaded. Even after an error, the function waits until
    /// loading has ended, so that the caller can undo all changes in the kernel.
    pub(super) async fn meanwhile(
        mut self,
        controller: Controller,
        supervisor: &Supervisor,
    ) -> anyhow::Result<(KernelDataplane, Prepared)> {
        let prepared = Prepared::new(controller, supervisor);
        let (loaded, prepared) = match prepared {
            Ok(mut prepared) => {
                let loaded = loop {
                    tokio::select! {
                        loaded = &mut self.0 => break loaded,
                        1.. = prepared.events.recv_many(&mut prepared.found, EVENTS) => {}
                    }
                };
                (loaded, Ok(prepared))
            }
            Err(error) => (self.0.await, Err(error)),
        };
        Ok((loaded.map_err(ended)??, prepared?))
    }
}

impl Prepared {
    fn new(controller: Controller, supervisor: &Supervisor) -> anyhow::Result<Self> {
        let (events_in, events) = mpsc::channel(EVENTS);
        let neighbours = Neighbours::spawn(events_in.clone(), supervisor)?;
        let prober = Prober::new(events_in, supervisor).context("starting the thread of the health checks")?;
        let beginning = Beginning::new(controller, &neighbours);
        Ok(Self { beginning, neighbours, prober, events, found: Vec::new() })
    }
}

fn ended(error: JoinError) -> anyhow::Error {
    let why = error.try_into_panic().map_or_else(|_| "was stopped".to_owned(), |panic| panicked(panic.as_ref()));
    anyhow::anyhow!("the loading of the kernel program {why}")
}
