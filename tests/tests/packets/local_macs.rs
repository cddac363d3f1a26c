//! Tests of frames for the balancer's machine: the program recognizes these frames by the destination MAC address, and
//! replies also by the ingress interface.

use std::time::Duration;

use balancer_common::verdict::DropReason;
use balancer_dataplane::Layers;
use balancer_testkit::{
    frame::{ACK, Frame, Mac, SYN},
    prog_run::Ran,
    rig::{IN_MAC, OUT_MAC, Rig, Setup},
};

use crate::{
    cases::{Case, Then, dsr, services},
    rows::{self, rows},
};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

const PAIRS: [(&str, &str); 2] =
    [("203.0.113.7:40000", "198.51.100.10:80"), ("[2001:db8:c::7]:40000", "[2001:db8::10]:80")];

fn to(destination_mac: Mac) -> Vec<u8> {
    Frame { destination_mac, ..Frame::tcp(PAIRS[0].0, PAIRS[0].1, SYN) }.bytes()
}

fn when_a_frame_is_for_another_machine_then_it_passes(rig: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for (client, vip) in PAIRS {
        let frame = Frame::tcp(client, vip, SYN);
        for byte in 0..6 {
            let mut other = frame.clone();
            other.destination_mac[byte] ^= 2;
            cases.push(Case::new(format!("{vip}: byte {byte} differs"), &other, Then::Pass));
        }
        let other = Frame { destination_mac: OUT_MAC, ..frame.clone() };
        cases.push(Case::new(format!("{vip}: the other interface's"), &other, Then::Pass));
        let tagged = Frame { vlans: vec![7], ..other.clone() };
        cases.push(Case::new(format!("{vip}: in a VLAN"), &tagged, Then::Pass));
        for group in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]] {
            let frame = Frame { destination_mac: group, ..frame.clone() };
            let sent = Then::Tx(dsr(rig, &frame).bytes());
            cases.push(Case::new(format!("{vip}: to several"), &frame, sent));
        }
        // The test imitates a frame that another balancer has forwarded and a switch has flooded.
        let forwarded = dsr(rig, &frame);
        cases.push(Case::new(format!("{vip}: forwarded by another"), &forwarded, Then::Pass));
    }
    let broken = Frame { destination_mac: OUT_MAC, ..Frame::tcp(PAIRS[0].0, PAIRS[0].1, SYN) }.bytes();
    let frame = broken[..broken.len() - 20].to_vec();
    cases.push(Case { name: "broken, for another".to_owned(), frame, then: Then::Pass });
    let ping = Frame::icmp("203.0.113.7:0", "198.51.100.10:0", 8, 0, [0; 4]);
    cases.push(Case::new("a ping of another", &Frame { destination_mac: OUT_MAC, ..ping }, Then::Pass));
    cases
}

fn when_an_interface_has_several_macs_then_frames_for_each_are_taken(rig: &mut Rig) {
    let steered = |rig: &Rig, mac| rig.run(&to(mac)).expect("a run").action != XDP_PASS;
    let (vrrp, new) = ([0, 0, 0x5e, 0, 1, 51], [2, 0, 0, 0, 0, 77]);
    assert!(steered(rig, IN_MAC) && !steered(rig, vrrp));
    let upon = |mac, others: &[Mac]| {
        let mut layers = Layers::flat(&[(rig.in_ifindex, mac), (rig.out_ifindex, OUT_MAC)]);
        for (index, &other) in others.iter().enumerate() {
            layers.add(1000 + index as u32, Some(other));
            layers.put_upon(rig.in_ifindex, 1000 + index as u32);
        }
        layers
    };
    let (with_vrrp, renamed) = (upon(IN_MAC, &[vrrp]), upon(new, &[]));
    let many: Vec<Mac> = (0..7).map(|last| [2, 0, 0, 0, 9, last]).collect();
    let (full, crowded) = (upon(IN_MAC, &many[1..]), upon(IN_MAC, &many));

    rig.set_layers(with_vrrp);
    assert!(steered(rig, IN_MAC) && steered(rig, vrrp) && !steered(rig, new));
    rig.set_layers(renamed);
    assert!(steered(rig, new) && !steered(rig, IN_MAC) && !steered(rig, vrrp));
    rig.set_layers(full);
    assert!(steered(rig, IN_MAC) && many[1..].iter().all(|&mac| steered(rig, mac)) && !steered(rig, many[0]));
    // If the interface has too many MAC addresses, or if no address is known, the program accepts all frames.
    rig.set_layers(crowded);
    assert!(steered(rig, IN_MAC) && steered(rig, many[0]) && steered(rig, new));
    rig.set_layers(Layers::default());
    assert!(steered(rig, IN_MAC) && steered(rig, vrrp) && steered(rig, new));
}

/// Runs the program on a reply that arrives on an interface.
fn reply(rig: &Rig, ifindex: u32, source: &str, destination: &str) -> Ran {
    let destination_mac = if ifindex == rig.in_ifindex { IN_MAC } else { OUT_MAC };
    let frame = Frame { destination_mac, ..Frame::tcp(source, destination, SYN | ACK) };
    rig.run_by(ifindex, &frame.bytes()).expect("a run")
}

/// Returns whether the program forwards a backend's reply that arrives on `ifindex`.
fn goes_on(rig: &Rig, ifindex: u32, source: &str, destination: &str) -> bool {
    let before = rig.drops(DropReason::WrongInterface).expect("counters");
    let ran = reply(rig, ifindex, source, destination);
    let wrong = rig.drops(DropReason::WrongInterface).expect("counters") - before;
    assert_eq!(wrong, u64::from(ran.action == XDP_DROP), "action {}", ran.action);
    ran.action != XDP_DROP
}

fn when_a_reply_comes_in_where_the_backend_is_then_it_is_forwarded(rig: &mut Rig) {
    let (usual, other) = (rig.in_ifindex, rig.out_ifindex);
    for (backend, at, elsewhere, client, own) in [
        ("10.0.0.21:8080", usual, other, "203.0.113.7:40000", "10.0.0.1:50000"),
        ("10.0.1.21:8081", other, usual, "203.0.113.7:40000", "10.0.0.1:50000"),
        ("[fd00::21]:8080", usual, other, "[2001:db8:c::7]:40000", "[fd00::1]:50000"),
    ] {
        assert!(goes_on(rig, at, backend, client), "{backend}");
        assert!(!goes_on(rig, elsewhere, backend, client), "{backend} from elsewhere");
        // For packets to the balancer's machine itself, the kernel's reverse path filter decides.
        assert_eq!(reply(rig, elsewhere, backend, own).action, XDP_PASS, "{backend} to {own}");
    }
}

fn when_an_error_comes_in_where_the_backend_is_then_it_is_forwarded(rig: &mut Rig) {
    let quoted = Frame::tcp("203.0.113.7:40000", "10.0.0.21:8080", ACK).packet();
    let unreachable = |destination_mac| Frame {
        destination_mac,
        payload: quoted.clone(),
        ..Frame::icmp("10.0.0.21:0", "203.0.113.7:0", 3, 1, [0; 4])
    };
    let by = |ifindex, mac| rig.run_by(ifindex, &unreachable(mac).bytes()).expect("a run").action;
    assert_ne!(by(rig.in_ifindex, IN_MAC), XDP_DROP);
    assert_eq!(by(rig.out_ifindex, OUT_MAC), XDP_DROP);
    assert_eq!(rig.drops(DropReason::WrongInterface).expect("counters"), 1);
}

fn when_the_next_hop_moves_then_the_accepted_ingress_follows(rig: &mut Rig) {
    let (usual, other) = (rig.in_ifindex, rig.out_ifindex);
    let (service, backend, client) = ("198.51.100.20:80", "10.0.0.21:8080", "203.0.113.7:40000");
    let by = |rig: &Rig, ifindex| goes_on(rig, ifindex, backend, client);
    assert!(by(rig, usual) && !by(rig, other));

    rig.move_backend(service, backend, Some(other)).expect("a move");
    assert!(by(rig, other), "at once");
    assert!(by(rig, usual), "the backend may not have noticed yet");
    rig.pass_time(Duration::from_secs(59));
    assert!(by(rig, usual));
    rig.pass_time(Duration::from_secs(60));
    assert!(by(rig, other) && !by(rig, usual));

    rig.move_backend(service, backend, None).expect("a move");
    assert!(by(rig, other) && by(rig, usual), "while nobody knows where it is, no reply is lost");
    rig.move_backend(service, backend, Some(usual)).expect("a move");
    rig.pass_time(Duration::from_secs(200));
    assert!(by(rig, usual) && !by(rig, other));
}

fn when_replies_come_in_by_ports_of_one_bridge_then_they_are_forwarded(rig: &mut Rig) {
    let (usual, other) = (rig.in_ifindex, rig.out_ifindex);
    let by = |rig: &Rig, ifindex| goes_on(rig, ifindex, "10.0.0.21:8080", "203.0.113.7:40000");
    let mut layers = Layers::flat(&[(usual, IN_MAC), (other, OUT_MAC)]);
    layers.add(1000, Some(IN_MAC));
    layers.put_upon(usual, 1000);
    layers.put_upon(other, 1000);
    rig.set_layers(layers);
    assert!(by(rig, usual) && by(rig, other));
    rig.set_layers(Layers::flat(&[(usual, IN_MAC), (other, OUT_MAC)]));
    assert!(by(rig, usual) && !by(rig, other));
    // The backend is behind an interface without the program, so the backend's replies arrive on another interface.
    rig.move_backend("198.51.100.20:80", "10.0.0.21:8080", Some(1)).expect("a move");
    assert!(by(rig, usual) && by(rig, other));
}

#[test]
fn when_frames_arrive_then_macs_and_interfaces_decide_whether_they_are_taken() {
    rows::run(
        services(),
        Setup::default(),
        rows![
            when_a_frame_is_for_another_machine_then_it_passes,
            when_an_interface_has_several_macs_then_frames_for_each_are_taken,
            when_a_reply_comes_in_where_the_backend_is_then_it_is_forwarded,
            when_an_error_comes_in_where_the_backend_is_then_it_is_forwarded,
            when_the_next_hop_moves_then_the_accepted_ingress_follows,
            when_replies_come_in_by_ports_of_one_bridge_then_they_are_forwarded
        ],
    );
}
