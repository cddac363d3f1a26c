//! Tests of programs that have the code of certain features only, and of richer programs that replace them.
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
use balancer_control::{
    features,
    io::{BackendId, BackendSpec, ListenerId, ListenerSpec, NextHop, ServiceId, ServiceSpec},
};
use balancer_daemon::supervisor::Supervisor;
use balancer_dataplane::{
    Attached, Attacher, Capacity, Dataplane as _, HostEnds, KernelDataplane, Layers,
    telling::{Filter, PROGRAM},
};
use balancer_testkit::{
    frame::{Frame, SYN},
    prog_run,
    rig::{IN_MAC, OUT_MAC, enter_namespace},
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const VIP: &str = "198.51.100.20:80";
const INTERFACES: [&str; 2] = ["in0", "out0"];
const CAPACITY: Capacity = Capacity {
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
struct Scene {
    dataplane: KernelDataplane,
    attacher: Attacher,
    attached: Vec<Attached>,
    ifindex: u32,
}

impl Scene {
    fn start(features: Features) -> Result<Self> {
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

    /// Publishes one service.
    fn publish(&mut self, spec: &ServiceSpec) -> Result<()> {
        self.dataplane.write_backend(&backend(spec))?;
        self.dataplane.swap_table(spec.id, vec![1; 251].into(), None)?;
        self.dataplane.publish_services(std::slice::from_ref(spec))
    }

    fn extend(&mut self, features: Features) -> Result<Option<Features>> {
        self.attacher.extend(&mut self.attached, features)
    }

    /// The program on both interfaces.
    fn program(&self) -> ProgramInfo {
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
    fn action(&self) -> u32 {
        let frame = Frame::tcp("203.0.113.7:40000", VIP, SYN).bytes();
        let program = self.program().fd().unwrap();
        prog_run::run(program.as_fd(), &frame, self.ifindex, 1).unwrap().action
    }
}

fn service(forwarding: Forwarding) -> ServiceSpec {
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

fn backend(spec: &ServiceSpec) -> BackendSpec {
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
fn apart(test: impl FnOnce() -> Result<()> + Send + 'static) {
    thread::spawn(test).join().unwrap().unwrap();
}

#[test]
fn when_a_service_needs_a_feature_then_it_waits_for_the_richer_program() {
    apart(|| {
        let mut scene = Scene::start(Features::NONE)?;
        let poor = scene.program();
        let nat = service(Forwarding::Nat);
        let refused = scene.publish(&nat).unwrap_err().to_string();
        assert_eq!(refused, "the kernel program that runs has no code for nat");
        assert_eq!(scene.action(), XDP_PASS);

        let needed = features::of_published(&nat);
        assert_eq!(scene.extend(needed)?, Some(needed));
        assert_ne!(scene.program().id(), poor.id());
        assert_eq!(scene.program().name_as_str(), Some("balancer"));
        assert!(loaded_programs().filter_map(Result::ok).all(|program| program.id() != poor.id()), "it stays loaded");
        scene.publish(&nat)?;
        assert_eq!(scene.action(), XDP_TX);

        let richer = scene.program().id();
        assert_eq!(scene.extend(needed)?, None);
        assert_eq!(scene.program().id(), richer);
        let ruled = ServiceSpec { rules: true, ..nat };
        assert!(scene.publish(&ruled).unwrap_err().to_string().ends_with("no code for rules"));
        assert_eq!(scene.extend(features::of_published(&ruled))?, Some(needed | Features::RULES));
        scene.publish(&ruled)?;
        assert_eq!(scene.action(), XDP_TX);
        Ok(())
    });
}

#[test]
fn when_the_kernel_refuses_a_richer_program_then_the_present_one_goes_on_and_a_later_attempt_succeeds() {
    apart(|| {
        let nat = service(Forwarding::Nat);
        let mut scene = Scene::start(features::of_published(&nat))?;
        scene.publish(&nat)?;
        let before = scene.program().id();
        let dsr = service(Forwarding::Dsr);
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, 10, hard)?;
        let refused = scene.extend(features::of_published(&dsr));
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
        let refused = format!("{:#}", refused.unwrap_err());
        assert!(
            refused.starts_with("a kernel program with IPv4, dsr: ") && refused.contains("os error 24"),
            "{refused}"
        );
        assert_eq!((scene.program().id(), scene.action()), (before, XDP_TX));
        assert!(scene.publish(&dsr).unwrap_err().to_string().ends_with("no code for dsr"));

        let told = scene.attacher.tell(&mut scene.attached, &filter())?;
        assert_eq!((scene.program().name_as_str(), scene.action()), (Some(PROGRAM), XDP_TX));
        scene.attacher.tell_no_more(&mut scene.attached);
        drop(told);
        assert_eq!((scene.program().id(), scene.action()), (before, XDP_TX));

        assert!(scene.extend(features::of_published(&dsr))?.is_some());
        scene.publish(&dsr)?;
        assert_eq!(scene.action(), XDP_TX);
        Ok(())
    });
}

#[test]
fn when_packets_are_traced_then_the_tracing_program_gets_the_feature_and_the_plain_program_after_it() {
    apart(|| {
        let mut scene = Scene::start(Features::NONE)?;
        let nat = service(Forwarding::Nat);
        let told = scene.attacher.tell(&mut scene.attached, &filter())?;
        let poor = scene.program();
        assert_eq!((poor.name_as_str(), scene.action()), (Some(PROGRAM), XDP_PASS));
        assert!(scene.extend(features::of_published(&nat))?.is_some());
        scene.publish(&nat)?;
        let richer = scene.program();
        assert_ne!(richer.id(), poor.id());
        assert_eq!((richer.name_as_str(), scene.action()), (Some(PROGRAM), XDP_TX));
        drop(told);
        scene.attacher.tell_no_more(&mut scene.attached);
        assert_eq!((scene.program().name_as_str(), scene.action()), (Some("balancer"), XDP_TX));
        let told = scene.attacher.tell(&mut scene.attached, &filter())?;
        assert_eq!((scene.program().name_as_str(), scene.action()), (Some(PROGRAM), XDP_TX));
        drop(told);
        Ok(())
    });
}

fn filter() -> Filter {
    Filter { client: None, vips: BTreeSet::new(), only_vips: false, snaplen: 64 }
}

#[test]
fn when_the_programs_are_not_attached_yet_then_a_published_service_brings_its_features() {
    apart(|| {
        let (ifindex, other) = enter_namespace()?;
        let mut dataplane = KernelDataplane::load_kept(
            CAPACITY,
            &[ifindex, other],
            None,
            false,
            &Supervisor::default(),
            Features::NONE,
        )?;
        let nat = service(Forwarding::Nat);
        dataplane.write_backend(&backend(&nat))?;
        dataplane.swap_table(nat.id, vec![1; 251].into(), None)?;
        dataplane.publish_services(std::slice::from_ref(&nat))?;
        assert_eq!(dataplane.features(), features::of_published(&nat));
        Ok(())
    });
}
