//! Tests of transfers of 100 MB over TCP and UDP in each forwarding mode and for both families; the segments fill the
//! MTU. Every byte must arrive, and the packet counts must be correct.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod release;

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::{Settings, Site},
    topology::{Family, Shape, Topology},
    transfer::{Transfer, add_services},
};

const BYTES: u64 = 100 << 20;
const MTU: u64 = 1500;
const CLIENT: u16 = 7;

/// Returns the size of the client's largest packet that fits the path to the backend.
fn fits(forwarding: Forwarding, family: Family, crossed: bool) -> u64 {
    let ip = match if crossed { family.other() } else { family } {
        Family::V4 => 20,
        Family::V6 => 40,
    };
    match forwarding {
        // An IPv4 packet grows by 20 bytes.
        Forwarding::Snat if crossed && family == Family::V4 => MTU - 20,
        Forwarding::Dsr | Forwarding::Nat | Forwarding::Snat => MTU,
        Forwarding::Ipip => MTU - ip,
        Forwarding::Gue => MTU - ip - 8,
    }
}

/// Returns the numbers of packets and bytes that the balancer has sent to the service's backend.
fn counted(site: &Site, service: &str) -> (f64, f64) {
    let metrics = site.metrics().unwrap();
    let of = |name| metrics.sum(name, &[&format!("service=\"{service}\"")]).unwrap();
    (of("packets_total"), of("bytes_total"))
}

fn every_byte_arrives(shape: Shape, forwarding: Forwarding, adapt: impl FnOnce(&mut Settings)) {
    let mut crossed = false;
    let site = Site::start(shape, forwarding, 1, |settings, topology: &Topology| {
        settings.families = Family::BOTH.to_vec();
        adapt(settings);
        crossed = settings.crossed;
        add_services(settings, topology);
        Ok(())
    })
    .unwrap();
    for family in Family::BOTH {
        let six = if family == Family::V6 { "6" } else { "" };
        let fits = fits(forwarding, family, crossed);
        let ip = if family == Family::V6 { 40 } else { 20 };
        let transfer = Transfer::new(&site, forwarding, family, CLIENT);

        // Downloads pass the balancer only with `nat` and `snat`.
        let down = if matches!(forwarding, Forwarding::Nat | Forwarding::Snat) { BYTES } else { 0 };
        let took = transfer.tcp(BYTES, down).unwrap();
        let (packets, bytes) = counted(&site, &format!("tcp{six}"));
        println!("{forwarding:?} {family:?}: TCP {} MB in {took:?}, {packets} packets", (BYTES + down) >> 20);
        // The TCP header has 20 bytes and 12 bytes of options, and the balancer's byte count includes the Ethernet
        // header. No kernel on the path has merged packets.
        let segment = (fits - ip - 32) as f64;
        let least = BYTES as f64 / segment;
        // Each packet of a download causes at most one acknowledgement.
        let most = least + down as f64 / segment;
        assert!(packets >= least && packets < 1.1 * most + 128.0, "{packets} packets, {least} to {most} are needed");
        assert!(bytes / packets <= (MTU + 14) as f64, "{bytes} bytes in {packets} packets");
        assert!(bytes >= BYTES as f64);

        let size = (fits - ip - 8) as usize;
        let (took, again) = transfer.udp(BYTES, size).unwrap();
        let (packets, bytes) = counted(&site, &format!("udp{six}"));
        println!("{forwarding:?} {family:?}: UDP 100 MB in {took:?}, {packets} packets, {again} windows sent again");
        let least = (BYTES / size as u64) as f64;
        assert!(packets >= least && packets < 1.1 * least + 128.0, "{packets} packets, {least} are needed");
        assert_eq!(bytes / packets, (fits + 14) as f64);
    }
    let metrics = site.metrics().unwrap();
    assert_eq!(metrics.sum("packets_seen_total", &["verdict=\"aborted\""]).unwrap(), 0.0);
    for reason in ["malformed", "no_next_hop", "fragment_unknown", "no_neighbour", "too_big"] {
        let dropped = metrics.sum("drops_total", &[&format!("reason=\"{reason}\"")]).unwrap();
        assert_eq!(dropped, 0.0, "{reason}");
    }
}

#[test]
fn when_much_is_sent_with_nat_on_one_leg_in_generic_mode_then_every_byte_arrives() {
    every_byte_arrives(Shape::OneLegged, Forwarding::Nat, |settings| settings.xdp_mode = "generic");
}

#[test]
fn when_much_is_sent_with_snat_to_the_other_family_in_generic_mode_then_every_byte_arrives() {
    every_byte_arrives(Shape::OneLegged, Forwarding::Snat, |settings| {
        (settings.crossed, settings.xdp_mode) = (true, "generic");
    });
}

#[test]
fn when_much_is_sent_with_gue_over_the_other_family_then_every_byte_arrives() {
    every_byte_arrives(Shape::TwoLegged, Forwarding::Gue, |settings| settings.crossed = true);
}
