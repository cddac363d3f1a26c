//! Tests of known clients that send unusual packets: fragments, IPv6 extension headers, ICMP errors. The program must
//! send unusual packets to the client's known backend instead of the lookup table's backend, and must count and
//! remember the client only once. Other tests use clients of a service with long ticks and of a service with short
//! ticks in the same client table.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result};
use balancer_common::verdict::{Decision, MoveCause};
use balancer_config::states::Admin;
use balancer_dataplane::Dataplane as _;
use balancer_packet_model::world::{VIP, VIP_V6, World, client};
use balancer_testkit::frame::{ACK, DESTINATION_OPTIONS, Frame, HOP_BY_HOP, SYN, options};

const REMEMBER: &str = "remember = \"60s\"\ndrain = { timeout = \"20s\" }";
pub(super) const CLIENTS: u32 = 200;

/// A world over IPv4 or IPv6, with clients of the same address family.
pub(super) struct Scene {
    pub(super) world: World,
    v6: bool,
}

impl Scene {
    pub(super) fn new(v6: bool) -> Result<Self> {
        let world = if v6 { World::v6(REMEMBER, 4, 65_536) } else { World::with_ids(40_000, REMEMBER, 4, 65_536) }?;
        Ok(Self { world, v6 })
    }

    pub(super) fn client(&self, number: u32) -> IpAddr {
        // Each IPv6 client has a separate /64 prefix.
        if self.v6 {
            Ipv6Addr::new(0x2001, 0xdb8, 0xc, number as u16, 0, 0, 0, 7).into()
        } else {
            client(number).into()
        }
    }

    pub(super) fn segment(&self, number: u32, flags: u8) -> Frame {
        let mut frame = if self.v6 {
            Frame::tcp("[2001:db8::1]:40000", VIP_V6, flags)
        } else {
            Frame::tcp("192.0.2.1:40000", VIP, flags)
        };
        frame.source = SocketAddr::new(self.client(number), 40_000);
        frame
    }

    /// Returns a router's ICMP error about a segment from the VIP to a client.
    fn error(&self, number: u32) -> Frame {
        let segment = self.segment(number, ACK);
        let quoted = Frame { source: segment.destination, destination: segment.source, ..segment };
        let (router, vip, kind) = if self.v6 { ("[2001:db8:ff::77]:0", VIP_V6, 1) } else { ("192.0.2.77:0", VIP, 3) };
        let mut payload = quoted.packet();
        payload.truncate(60);
        Frame { payload, ..Frame::icmp(router, vip, kind, 1, [0; 4]) }
    }

    fn parts(&self, number: u32, flags: u8, id: u32) -> Vec<Frame> {
        Frame { payload: vec![3; 200], ..self.segment(number, flags) }.fragments(80, id)
    }

    pub(super) fn deliver(&mut self, frame: &Frame) -> Result<String> {
        self.world.deliver(frame)?.context("dropped")
    }

    /// Opens a connection of a client, and returns the backend of the connection.
    pub(super) fn connect_one(&mut self, number: u32) -> Result<String> {
        self.deliver(&self.segment(number, SYN))
    }

    /// Makes every client known, and returns the clients of web2.
    fn connect(&mut self) -> Result<Vec<u32>> {
        let mut there = Vec::new();
        for number in 0..CLIENTS {
            if self.connect_one(number)? == "web2" {
                there.push(number);
            }
        }
        assert!(there.len() > 20, "{} of {CLIENTS} at web2", there.len());
        Ok(there)
    }
}

fn where_they_are_known(v6: bool) -> Result<()> {
    let mut scene = Scene::new(v6)?;
    let known = scene.connect()?;
    scene.world.admin("web2", Admin::Drain, None)?;
    for &number in &known {
        assert_ne!(
            scene.world.home(scene.client(number))?,
            [0, if v6 { 0x12 } else { 12 }],
            "the table says otherwise"
        );
        let mut frames = scene.parts(number, ACK, 1000 + number);
        frames.push(scene.parts(number, ACK, 2000 + number).remove(1));
        frames.push(scene.error(number));
        if v6 {
            for kind in [DESTINATION_OPTIONS, HOP_BY_HOP] {
                frames.push(Frame { extensions: vec![options(kind, 2)], ..scene.segment(number, ACK) });
            }
        }
        for (index, frame) in frames.iter().enumerate() {
            assert_eq!(scene.deliver(frame)?, "web2", "client {number}, frame {index}");
        }
    }
    let counters = scene.world.counters()?;
    assert_eq!((counters.connections, counters.decided(Decision::New)), (u64::from(CLIENTS), u64::from(CLIENTS)));
    // The program counts a connection that opens in fragments once, and likewise a connection with extension headers.
    for &number in &known {
        let mut frames = scene.parts(number, SYN, 3000 + number);
        if v6 {
            frames.push(Frame { extensions: vec![options(DESTINATION_OPTIONS, 1)], ..scene.segment(number, SYN) });
        }
        for frame in &frames {
            assert_eq!(scene.deliver(frame)?, "web2");
        }
    }
    let counters = scene.world.counters()?;
    let opened = known.len() as u64 * if v6 { 2 } else { 1 };
    assert_eq!(counters.decided(Decision::Kept), opened);
    assert_eq!(counters.connections, u64::from(CLIENTS) + opened);
    assert_eq!(counters.moves, [0; MoveCause::COUNT]);
    Ok(())
}

fn moved_once(v6: bool) -> Result<()> {
    let mut scene = Scene::new(v6)?;
    let known = scene.connect()?;
    scene.world.admin("web2", Admin::Maint, None)?;
    for (index, &number) in known.iter().enumerate() {
        let told = scene.deliver(&scene.error(number))?;
        assert_eq!(scene.world.counters()?.moved(MoveCause::Maint), index as u64, "an error moves nobody");
        let mut frames = scene.parts(number, ACK, number);
        if v6 {
            frames.insert(0, Frame { extensions: vec![options(DESTINATION_OPTIONS, 1)], ..scene.segment(number, ACK) });
        }
        for frame in frames {
            assert_eq!(scene.deliver(&frame)?, told);
            assert_eq!(scene.world.counters()?.moved(MoveCause::Maint), index as u64 + 1);
        }
        assert_eq!(scene.deliver(&scene.error(number))?, told);
    }
    assert_eq!(scene.world.counters()?.moves.iter().sum::<u64>(), known.len() as u64);
    assert_eq!(scene.world.counters()?.connections, u64::from(CLIENTS));
    Ok(())
}

fn recorded_once(v6: bool) -> Result<()> {
    let mut scene = Scene::new(v6)?;
    for number in 0..CLIENTS {
        let home = scene.deliver(&scene.error(number))?;
        let part = scene.parts(number, ACK, number).remove(1);
        assert_eq!(scene.deliver(&part)?, home, "the only service of the VIP");
        let memory = scene.world.dataplane().memory()?;
        assert_eq!(memory.stats.inserted, u64::from(number), "nothing is recorded of errors and parts without ports");
        for part in scene.parts(number, SYN, 1000 + number) {
            assert_eq!(scene.deliver(&part)?, home);
        }
        assert_eq!(scene.world.dataplane().memory()?.stats.inserted, u64::from(number) + 1);
    }
    let counters = scene.world.counters()?;
    assert_eq!((counters.connections, counters.decided(Decision::New)), (u64::from(CLIENTS), u64::from(CLIENTS)));
    Ok(())
}

#[test]
fn when_a_known_client_sends_rare_packets_then_they_go_where_it_is_known() -> Result<()> {
    where_they_are_known(false)?;
    where_they_are_known(true)
}

#[test]
fn when_a_client_moves_with_rare_packets_then_it_moves_once_and_errors_move_none() -> Result<()> {
    moved_once(false)?;
    moved_once(true)
}

#[test]
fn when_a_new_client_sends_rare_packets_then_it_is_recorded_once_and_errors_record_none() -> Result<()> {
    recorded_once(false)?;
    recorded_once(true)
}

#[test]
fn when_a_quick_service_has_many_new_clients_then_a_slow_ones_established_clients_stay() -> Result<()> {
    // The client table has only a few entries. The ticks of the two services last 11 s and 1 s.
    let settings = "remember = \"12h\"
[[service.backend]]
name = \"slow\"
address = \"10.0.0.99\"
[[service]]
name = \"quick\"
address = \"198.51.100.20:80\"
forwarding = \"dsr\"
remember = \"10s\"";
    let mut world = World::new(settings, 1, 8)?;
    let connect_known = |world: &mut World, numbers: &[u32]| -> Result<Vec<u32>> {
        let mut known = Vec::new();
        for &number in numbers {
            let kept = world.counters()?.decided(Decision::Kept);
            world.connect(client(number))?;
            if world.counters()?.decided(Decision::Kept) > kept {
                known.push(number);
            }
        }
        world.pass(11)?;
        Ok(known)
    };
    let all: Vec<u32> = (0..100).collect();
    connect_known(&mut world, &all)?;
    let established = connect_known(&mut world, &all)?;
    assert!(established.len() >= 20, "{} established clients", established.len());
    // After 60 seconds, the entries have the largest possible age in the service with ticks of 1 s.
    world.pass(60)?;
    for number in 0..1000 {
        let frame = Frame {
            source: SocketAddr::new(client(number).into(), 40_000),
            destination: "198.51.100.20:80".parse()?,
            ..Frame::tcp("192.0.2.1:40000", VIP, SYN)
        };
        assert_eq!(world.deliver(&frame)?.as_deref(), Some("web1"));
    }
    assert_eq!(connect_known(&mut world, &established)?, established);
    Ok(())
}
