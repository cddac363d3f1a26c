//! Tests of a balancer on a bond, with packets that arrive on the member interfaces of the bond. Only the kernels of
//! `cargo xtask test --kernels` have the necessary modules.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    cell::RefCell,
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    namespace::{Namespace, join},
    site::{PATIENCE, Site},
    topology::{Family, Shape, Topology},
    xdp::{Hook, Passer},
};

use crate::{
    cards::{self, Cards},
    devices::{CLIENTS, give_addresses, port, served, wait_up},
};

const ACTIVE_BACKUP: &str = "active-backup";
const LACP: &str = "802.3ad";
/// The second member interface of the bond. The first member interface of the bond is the interface that otherwise
/// connects the balancer to the backends' segment.
const SECOND: &str = "more0";
/// The ends of the links to the bond's two member interfaces on the switch.
const ENDS: [&str; 2] = ["balancer", SECOND];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parts {
    /// The member interfaces of the bond are `veth` interfaces.
    Pairs,
    /// The member interfaces of the bond are `virtio_net` cards.
    Cards,
}

/// A bond that replaces the balancer's interface on the backends' segment.
#[derive(Clone, Copy, Debug)]
struct Bond {
    mode: &'static str,
    parts: Parts,
    /// Whether the bond uses VLAN 7 for the segment.
    tagged: bool,
}

impl Bond {
    const fn of(parts: Parts, mode: &'static str) -> Self {
        Self { mode, parts, tagged: false }
    }

    /// Creates the bond `bond0`. The caller must keep the returned value while the bond is in use.
    fn make(self, topology: &Topology, shape: Shape) -> Result<Option<Passer>> {
        let (balancer, switch) = (topology.balancer(), topology.switch());
        let port = port(shape);
        let receiver = match self.parts {
            Parts::Pairs => {
                join((balancer, SECOND), (switch, SECOND))?;
                balancer.ip(&format!("addr flush dev {port} scope global"))?;
                Some(Passer::attach(switch, SECOND, Hook::Native)?)
            }
            Parts::Cards => {
                balancer.ip(&format!("link del {port}"))?;
                for (cable, (near, far)) in cards::CABLES.into_iter().zip([(port, ENDS[0]), (SECOND, ENDS[1])]) {
                    cards::give(cable[0], balancer, near)?;
                    cards::give(cable[1], switch, far)?;
                }
                None
            }
        };
        self.bundle(balancer, "bond0", [port, SECOND])?;
        let mut upper = "bond0".to_owned();
        if self.tagged {
            upper += ".7";
            balancer.ip(&format!("link add link bond0 name {upper} type vlan id 7"))?;
        }
        give_addresses(topology, shape, &upper)?;
        self.connect(switch)?;
        Ok(receiver)
    }

    fn connect(self, switch: &Namespace) -> Result<()> {
        let mut ports = ENDS.to_vec();
        if self.mode == LACP {
            ENDS.into_iter().try_for_each(|end| switch.ip(&format!("link set {end} nomaster")).map(drop))?;
            self.bundle(switch, "lag0", ENDS)?;
            ports = vec!["lag0"];
        }
        for port in ports {
            switch.ip(&format!("link set {port} up"))?;
            let mut part = port.to_owned();
            if self.tagged {
                part += ".7";
                switch.ip(&format!("link set {port} nomaster"))?;
                switch.ip(&format!("link add link {port} name {part} type vlan id 7"))?;
            }
            switch.ip(&format!("link set {part} master br0 up"))?;
        }
        if self.tagged && self.parts == Parts::Pairs {
            // Without offloading, VLAN tags stay in frames, as with some network cards. With offloading, a veth pair
            // would pass VLAN tags outside of the frame.
            for end in ENDS {
                let off = switch.command("ethtool").args(["-K", end, "txvlan", "off", "rxvlan", "off"]).output()?;
                ensure!(off.status.success(), "{off:?}");
            }
        }
        Ok(())
    }

    fn bundle(self, host: &Namespace, name: &str, parts: [&str; 2]) -> Result<()> {
        let more = if self.mode == LACP { "lacp_rate fast" } else { "" };
        host.ip(&format!("link add {name} type bond mode {} miimon 50 {more}", self.mode))?;
        for part in parts {
            host.ip(&format!("link set {part} down"))?;
            host.ip(&format!("link set {part} master {name}"))?;
        }
        host.ip(&format!("link set {name} up")).map(drop)
    }
}

fn start(bond: Bond, shape: Shape, forwarding: Forwarding, receiver: &RefCell<Option<Passer>>) -> Site {
    Site::start(shape, forwarding, 2, |settings, topology| {
        settings.families = Family::BOTH.to_vec();
        settings.check = r#"{ type = "tcp", interval = "500ms" }"#.to_owned();
        settings.on_exit = "keep";
        settings.interfaces = match shape {
            Shape::OneLegged | Shape::Routed => vec!["bond0".to_owned()],
            Shape::TwoLegged => vec!["eth0".to_owned(), "bond0".to_owned()],
        };
        settings.xdp_mode = "native";
        *receiver.borrow_mut() = bond.make(topology, shape)?;
        Ok(())
    })
    .unwrap()
}

/// Returns the number of packets that arrived on the bond and that the balancer forwarded.
fn sent(site: &Site) -> f64 {
    let metrics = site.metrics().unwrap();
    let of = |verdict| {
        metrics.sum("packets_seen_total", &["interface=\"bond0\"", &format!("verdict=\"{verdict}\"")]).unwrap()
    };
    of("tx") + of("redirect") + of("handed")
}

/// Checks that clients keep their backends after `change`, and that the bond's counters continue.
#[track_caller]
fn goes_on(site: &mut Site, what: &str, homes: &BTreeMap<u16, String>, change: impl FnOnce(&mut Site)) {
    let before = sent(site);
    change(site);
    let deadline = Instant::now() + 2 * PATIENCE;
    let limit = Duration::from_secs(1);
    loop {
        let [v4, v6] = Family::BOTH.map(|family| site.homes_within(limit, family, CLIENTS));
        if v4.as_ref().is_ok_and(|now| now == homes) && v6.is_ok() {
            break;
        }
        assert!(Instant::now() < deadline, "{what}: {v4:?}, {v6:?}; before: {homes:?}\n{}", described(site));
    }
    let after = sent(site);
    assert!(after > before + 50.0, "{what}: {after} packets after {before}");
}

/// Collects information that may explain why clients get no answer.
fn described(site: &mut Site) -> String {
    let topology = site.topology();
    let links = [topology.balancer(), topology.switch()].map(|host| host.ip("-s -d link"));
    let bond = topology.balancer().command("cat").arg("/proc/net/bonding/bond0").output();
    let bond = bond.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let status = site.cli(&["status"]);
    let log = site.controller().process().tail(40);
    let texts = links.into_iter().chain([bond.map_err(Into::into), status, log]);
    texts.map(|text| text.unwrap_or_else(|error| format!("{error:#}")) + "\n").collect()
}

fn serves(bond: Bond, shape: Shape, forwarding: Forwarding) {
    let _cards = (bond.parts == Parts::Cards).then(|| Cards::take().unwrap());
    let receiver = RefCell::new(None);
    let mut site = start(bond, shape, forwarding, &receiver);
    wait_up(&mut site);
    let homes = served(&site);
    assert!(sent(&site) > 100.0, "{bond:?} {forwarding:?}: {} packets were sent on", sent(&site));
    let first = port(shape);
    let set = |what: String| move |site: &mut Site| drop(site.topology().balancer().ip(&what).unwrap());
    goes_on(&mut site, "the first part leaves", &homes, set(format!("link set {first} nomaster")));
    goes_on(&mut site, "and comes back, alone", &homes, |site| {
        set(format!("link set {first} down"))(site);
        set(format!("link set {first} master bond0"))(site);
        set(format!("link set {SECOND} nomaster"))(site);
    });
    goes_on(&mut site, "the balancer is killed and started again", &homes, |site| {
        site.kill_and_restart(|_| {}).unwrap();
    });
    goes_on(&mut site, "the second part comes back", &homes, |site| {
        set(format!("link set {SECOND} down"))(site);
        set(format!("link set {SECOND} master bond0"))(site);
        set(format!("link set {first} nomaster"))(site);
    });
    println!("{shape:?} {forwarding:?} {bond:?}: {} packets were sent on", sent(&site));
    site.controller().process().stop().unwrap();
    assert!(site.detach().unwrap().status.success());
}

fn serves_with(parts: Parts) {
    for mode in [ACTIVE_BACKUP, LACP] {
        for (shape, forwarding) in [
            (Shape::OneLegged, Forwarding::Nat),
            (Shape::OneLegged, Forwarding::Dsr),
            (Shape::TwoLegged, Forwarding::Nat),
        ] {
            serves(Bond::of(parts, mode), shape, forwarding);
        }
    }
}

#[test]
#[ignore = "needs the module bonding, as the kernels of `cargo xtask test --kernels` have it"]
fn when_the_parts_of_a_bond_of_pairs_come_and_go_then_clients_are_served() {
    serves_with(Parts::Pairs);
}

#[test]
#[ignore = "needs four network cards, as the machines of `cargo xtask test --kernels` have them"]
fn when_the_parts_of_a_bond_of_cards_come_and_go_then_clients_are_served() {
    serves_with(Parts::Cards);
}

#[test]
#[ignore = "needs the modules bonding and 8021q, as the kernels of `cargo xtask test --kernels` have them"]
fn when_a_bond_carries_a_vlan_then_clients_are_served() {
    for (mode, forwarding) in
        [(ACTIVE_BACKUP, Forwarding::Nat), (LACP, Forwarding::Nat), (ACTIVE_BACKUP, Forwarding::Dsr)]
    {
        serves(Bond { tagged: true, ..Bond::of(Parts::Pairs, mode) }, Shape::OneLegged, forwarding);
    }
    serves(Bond { tagged: true, ..Bond::of(Parts::Cards, LACP) }, Shape::OneLegged, Forwarding::Nat);
}
