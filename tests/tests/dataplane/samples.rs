//! Tests of sampled packets: each sample must have the right client, backend and size. The program must take samples at
//! the requested rate, and the samples of periodic traffic must be representative.

use std::{collections::HashMap, net::Ipv4Addr};

use anyhow::Result;
use aya::maps::{MapData, RingBuf};
use balancer_common::map_types::Sample;
use balancer_config::config::ClientPrefix;
use balancer_control::top::client_of;
use balancer_packet_model::world::World;
use balancer_testkit::frame::{ACK, Frame, SYN};

const PREFIX: ClientPrefix = ClientPrefix { v4: 24, v6: 64 };

/// Returns the number of CPUs. Each CPU draws random numbers separately, and the kernel may run the tests on any CPU.
fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn taken(samples: &mut RingBuf<MapData>) -> Vec<Sample> {
    let mut taken = Vec::new();
    while let Some(item) = samples.next() {
        taken.extend(bytemuck::try_pod_read_unaligned::<Sample>(&item).ok());
    }
    taken
}

fn world() -> Result<(World, RingBuf<MapData>)> {
    let mut world = World::new("remember = \"60s\"\nclient_prefix = { v4 = 24, v6 = 64 }", 3, 262_144)?;
    let samples = world.take_samples()?;
    Ok((world, samples))
}

#[test]
fn when_packets_are_sampled_then_samples_have_their_client_backend_and_size() -> Result<()> {
    const CLIENTS: u32 = 2000;
    let (mut world, mut samples) = world()?;
    world.sample_every(1);
    let address = |number: u32| Ipv4Addr::from(0xac10_0000 + (number << 8) + number % 200);
    let mut homes = HashMap::new();
    for number in 0..CLIENTS {
        let masked = Ipv4Addr::from(0xac10_0000 + (number << 8));
        homes.insert(masked, world.connect(address(number))?);
    }
    let taken = taken(&mut samples);
    // On each CPU, the first packet to each backend only makes the program draw a random number.
    let drawing = 3 * cpus();
    assert!(taken.len() <= CLIENTS as usize && taken.len() + drawing >= CLIENTS as usize, "{} samples", taken.len());
    for sample in &taken {
        let client = client_of(sample, PREFIX).to_string();
        let home = homes.remove(&client.parse()?).unwrap_or_else(|| panic!("{client} twice, or nobody"));
        let backends = world.controller().services()[0].backends();
        let named = backends.iter().find(|backend| backend.id().0 == sample.backend).map(|backend| backend.name());
        assert_eq!(named, Some(home.as_str()), "{client}");
        // The frame consists of the Ethernet, IPv4 and TCP headers.
        assert_eq!((sample.bytes, sample.service), (54, world.controller().services()[0].id().0));
    }
    Ok(())
}

/// The outer headers precede the packet that the client has sent.
#[test]
fn when_packets_are_in_a_tunnel_then_samples_have_the_inner_client() -> Result<()> {
    const CLIENT: &str = "172.16.3.9";
    for (forwarding, vlans) in [("ipip", vec![]), ("gue", vec![]), ("ipip", vec![5]), ("gue", vec![5, 6])] {
        let mut world = World::of(&format!(
            "[[service]]\nname = \"web\"\naddress = \"198.51.100.10:80\"\nforwarding = \"{forwarding}\"\n\
             [[service.backend]]\nname = \"web1\"\naddress = \"10.0.0.11\"\n"
        ))?;
        let mut samples = world.take_samples()?;
        world.sample_every(1);
        let source = format!("{CLIENT}:40000");
        let frame = Frame { vlans: vlans.clone(), ..Frame::tcp(&source, "198.51.100.10:80", ACK) };
        for _ in 0..=cpus() {
            assert_eq!(world.deliver(&frame)?.as_deref(), Some("web1"), "{forwarding} {vlans:?}");
        }
        let taken = taken(&mut samples);
        assert!(!taken.is_empty(), "{forwarding} {vlans:?}: nothing is sampled");
        for sample in taken {
            let client = client_of(&sample, ClientPrefix { v4: 32, v6: 128 }).to_string();
            assert_eq!(client, CLIENT, "{forwarding} {vlans:?}");
            assert_eq!(sample.bytes as usize, frame.bytes().len(), "{forwarding} {vlans:?}");
        }
    }
    Ok(())
}

#[test]
fn when_traffic_is_periodic_then_packets_are_sampled_at_the_same_rate() -> Result<()> {
    const INTERVAL: u32 = 16;
    const PACKETS: u32 = 40_000;
    let (mut world, mut samples) = world()?;
    world.sample_every(INTERVAL);
    // Only one backend is left, and two clients send packets alternately.
    world.change_weight("web2", 0)?;
    world.change_weight("web3", 0)?;
    let clients = [Ipv4Addr::new(172, 16, 1, 1), Ipv4Addr::new(172, 16, 2, 2)];
    for client in clients {
        world.send(client, SYN)?;
    }
    let mut counts = HashMap::new();
    for turn in 0..PACKETS {
        world.send(clients[turn as usize % 2], ACK)?;
        if turn % 4000 == 0 {
            for sample in taken(&mut samples) {
                *counts.entry(client_of(&sample, PREFIX)).or_insert(0u32) += 1;
            }
        }
    }
    for sample in taken(&mut samples) {
        *counts.entry(client_of(&sample, PREFIX)).or_insert(0) += 1;
    }
    let all: u32 = counts.values().sum();
    // With these packets, the test expects 2,500 samples. Gaps between 1 and 31 packets give a standard deviation of 29
    // samples, so the bound is more than eight standard deviations.
    assert!(all.abs_diff(PACKETS / INTERVAL) < 250, "{all} samples");
    // The number of samples of one client has a binomial distribution, with a standard deviation of 25 at 1,250
    // samples.
    assert!(counts.values().all(|&count| count.abs_diff(all / 2) < 250), "{counts:?}");

    world.sample_every(0);
    (0..1000).try_for_each(|_| world.send(clients[0], ACK).map(drop))?;
    let late = taken(&mut samples).len();
    assert!(late <= cpus(), "{late} samples after sampling was switched off");
    Ok(())
}
