//! A data path whose programs are attached to two interfaces, for tests of programs that replace one another.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, net::SocketAddr, os::fd::AsFd as _, process::Command, thread, time::Duration};

use anyhow::Result;
use aya::programs::{ProgramInfo, loaded_programs};
use balancer_common::{client::HashKey, features::Features, map_types::Forwarding, share::Share, verdict::MoveCause};
use balancer_config::{
    config::{Failback, Protocol, XdpMode},
    listeners::{Family, Listener},
    snat::SnatConfig,
};
use balancer_control::io::{BackendId, BackendSpec, ListenerId, ListenerSpec, NextHop, ServiceId, ServiceSpec};
use balancer_dataplane::{Attached, Attacher, Capacity, Dataplane as _, HostEnds, KernelDataplane, Layers};
use balancer_runtime::supervisor::Supervisor;
use balancer_testkit::{
    frame::{Frame, SYN},
    prog_run,
    rig::{IN_MAC, OUT_MAC, enter_namespace},
};

pub(crate) const XDP_PASS: u32 = 2;
pub(crate) const XDP_TX: u32 = 3;
pub(crate) const VIP: &str = "198.51.100.20:80";
const INTERFACES: [&str; 2] = ["in0", "out0"];
pub(crate) const CAPACITY: Capacity = Capacity {
    slots: 1 << 16,
    services: 16,
    listeners: 16,
    ranges: 16,
    returns: 16,
    backends: 8,
    counted: 8,
    clients: 1024,
    flows: 0,
};

/// A data path and the programs on two interfaces.
pub(crate) struct Scene {
    pub(crate) dataplane: KernelDataplane,
    pub(crate) attacher: Attacher,
    pub(crate) attached: Vec<Attached>,
    ifindex: u32,
}

impl Scene {
    pub(crate) fn start(features: Features) -> Result<Self> {
        let (ifindex, other) = enter_namespace()?;
        let ifindexes = [ifindex, other];
        let mut dataplane =
            KernelDataplane::load_kept(CAPACITY, &ifindexes, None, false, &Supervisor::default(), features)?;
        dataplane.set_layers(Layers::flat(&[(ifindex, IN_MAC), (other, OUT_MAC)]));
        let HostEnds { mut attacher, .. } = dataplane.take_host_ends(1, "state.json".as_ref())?;
        let mut attached = Vec::new();
        for (place, name) in INTERFACES.into_iter().enumerate() {
            attached.push(attacher.attach(name, ifindexes[place], XdpMode::Native, &ifindexes[..place])?);
        }
        Ok(Self { dataplane, attacher, attached, ifindex })
    }

    pub(crate) fn publish(&mut self, spec: &ServiceSpec) -> Result<()> {
        self.dataplane.write_backend(&backend(spec))?;
        self.dataplane.swap_table(spec.id, vec![1; 251].into(), None)?;
        self.dataplane.publish_services(std::slice::from_ref(spec))
    }

    pub(crate) fn extend(&mut self, features: Features) -> Result<Option<Features>> {
        self.attacher.extend(&mut self.attached, features)
    }

    /// The program on both interfaces.
    pub(crate) fn program(&self) -> ProgramInfo {
        let output = Command::new("ip").args(["-d", "-j", "link", "show"]).output().unwrap();
        let links: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
        let on = |link: &&serde_json::Value| INTERFACES.iter().any(|name| link["ifname"] == *name);
        let ids: BTreeSet<u64> =
            links.iter().filter(on).map(|link| link["xdp"]["prog"]["id"].as_u64().unwrap()).collect();
        assert_eq!(ids.len(), 1, "the interfaces have different programs");
        let is_it = |program: &ProgramInfo| ids.contains(&u64::from(program.id()));
        loaded_programs().filter_map(Result::ok).find(is_it).unwrap()
    }

    /// The XDP action of the attached program for the first packet of a connection to the service.
    pub(crate) fn action(&self) -> u32 {
        self.run(VIP, 7).action
    }

    /// The outcome of the attached program for the first packet of a connection from the client `203.0.113.CLIENT`.
    pub(crate) fn run(&self, vip: &str, client: u8) -> prog_run::Ran {
        let frame = Frame::tcp(&format!("203.0.113.{client}:40000"), vip, SYN).bytes();
        let program = self.program().fd().unwrap();
        prog_run::run(program.as_fd(), &frame, self.ifindex, 1).unwrap()
    }
}

pub(crate) fn service(forwarding: Forwarding) -> ServiceSpec {
    let vip: SocketAddr = VIP.parse().unwrap();
    ServiceSpec {
        tick_seconds: 0,
        id: ServiceId(0),
        hash_key: HashKey { k0: 1, k1: 2 },
        family: Family::V4,
        listeners: vec![ListenerSpec {
            id: ListenerId(0),
            listener: Listener::at(vip, Protocol::Tcp),
            backend_port: 0,
            counted: false,
        }],
        client_prefix: 32,
        forwarding,
        remember: Duration::ZERO,
        failback: Failback::Stay,
        rules: false,
        reject: false,
        flows: SnatConfig::default(),
        quic: None,
        share: Share::ALL,
        backends: [(BackendId(1), "10.0.0.21:80".parse().unwrap())].into(),
        local: Vec::new(),
    }
}

pub(crate) fn backend(spec: &ServiceSpec) -> BackendSpec {
    BackendSpec {
        id: BackendId(1),
        forwarding: spec.forwarding,
        address: spec.backends[0].1,
        next_hop: Some(NextHop {
            gateway: None,
            ifindex: nix::net::if_::if_nametoindex("in0").unwrap(),
            source_mac: IN_MAC,
            destination_mac: [2, 0, 0, 0, 1, 1],
            mtu: 1500,
            source: None,
            local: false,
        }),
        service: spec.id,
        keeps_known: true,
        cause: MoveCause::Down,
        takes_pinned: true,
        tunnel_source: None,
        passive: None,
    }
}

/// Runs `test` in a thread of its own, which moves into another network namespace.
pub(crate) fn apart(test: impl FnOnce() -> Result<()> + Send + 'static) {
    thread::spawn(test).join().unwrap().unwrap();
}
