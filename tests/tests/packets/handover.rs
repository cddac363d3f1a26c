//! Tests of frames that XDP cannot send: the program rewrites and marks these frames, and passes them to the kernel.

use balancer_common::{
    handover::Handed,
    map_types::{DEVICE_CARRIES_TAGS, DEVICE_TAKES_NO_FRAMES},
};
use balancer_testkit::{
    frame::{ACK, Frame, SYN},
    rig::{IN_MAC, OUT_MAC, ROUTER_MAC, Rig, Setup, backend_id},
};

use crate::{
    cases::{Case, Then, dsr, handed, nat, services},
    rows::{self, rows},
    tunnel::wrapped,
};

fn to(rig: &Rig, service: &str) -> Handed {
    let index = rig.service(service).expect("a service of the rig");
    Handed::Backend(backend_id(index).0)
}

/// Returns, for every mode and family, the frame, the service of the frame, and the expected result without a mark. In
/// these cases, the backend is behind the second interface.
fn beyond(rig: &Rig) -> Vec<(String, Frame, &'static str, Frame)> {
    let mut all = Vec::new();
    for flags in [SYN, ACK] {
        for (client, vip) in [("203.0.113.7:40000", "198.51.100.10:81"), ("[2001:db8:c::7]:40000", "[2001:db8::10]:81")]
        {
            let frame = Frame::tcp(client, vip, flags);
            let out = dsr(rig, &frame);
            all.push((format!("dsr {vip} {flags}"), frame, vip, out));
        }
        for (client, vip, backend) in [
            ("203.0.113.7:40000", "198.51.100.20:81", "10.0.1.21:8081"),
            ("[2001:db8:c::7]:40000", "[2001:db8::20]:81", "[fd01::21]:8081"),
        ] {
            let frame = Frame::tcp(client, vip, flags);
            let out = nat(rig, &frame, vip, backend);
            all.push((format!("nat {vip} {flags}"), frame, vip, out));
        }
        for (mode, client, vip, backend) in [
            ("ipip", "203.0.113.7:40000", "198.51.100.50:81", "10.0.1.50"),
            ("ipip", "[2001:db8:c::7]:40000", "[2001:db8::52]:81", "fd01::56"),
            ("gue", "203.0.113.7:40000", "198.51.100.60:81", "10.0.1.60"),
            ("gue", "[2001:db8:c::7]:40000", "[2001:db8::62]:81", "fd01::66"),
        ] {
            let frame = Frame::tcp(client, vip, flags);
            let out = wrapped(rig, mode, &frame, vip, backend);
            all.push((format!("{mode} {vip} {flags}"), frame, vip, out));
        }
    }
    all
}

fn when_an_interface_takes_no_frames_then_they_are_handed_over(rig: &mut Rig) -> Vec<Case> {
    rig.set_devices([(rig.out_ifindex, DEVICE_TAKES_NO_FRAMES)]).expect("devices");
    let mut cases = Vec::new();
    for (name, frame, service, out) in beyond(rig) {
        let out = handed(rig, &out, to(rig, service));
        cases.push(Case::new(name, &frame, Then::Handed(out.bytes())));
    }
    for (client, vip) in [("203.0.113.7:40000", "198.51.100.10:80"), ("[2001:db8:c::7]:40000", "[2001:db8::10]:80")] {
        let frame = Frame::tcp(client, vip, ACK);
        cases.push(Case::new(format!("{vip} not beyond it"), &frame, Then::Tx(dsr(rig, &frame).bytes())));
    }
    for (backend, vip, client) in [
        ("10.0.0.21:8080", "198.51.100.20:80", "203.0.114.7:40000"),
        ("[fd00::21]:8080", "[2001:db8::20]:80", "[2001:db8:d::7]:40000"),
    ] {
        let reply = Frame::tcp(backend, client, ACK);
        let out = Frame { source: vip.parse().expect("an address"), ttl: reply.ttl - 1, ..reply.clone() };
        let out = handed(rig, &out, Handed::Client);
        cases.push(Case::new(format!("a reply to {client}"), &reply, Then::Handed(out.bytes())));
    }
    cases
}

/// The VLAN tag of a frame names the VLAN of the ingress interface, but the frame leaves by another VLAN.
fn when_an_interface_has_vlans_then_tagged_frames_are_handed_over(rig: &mut Rig) -> Vec<Case> {
    rig.set_devices([(rig.in_ifindex, DEVICE_CARRIES_TAGS)]).expect("devices");
    let mut cases = Vec::new();
    for vlans in [vec![], vec![10], vec![10, 20]] {
        for (client, vip) in [("203.0.113.7:40000", "198.51.100.10:80"), ("[2001:db8:c::7]:40000", "[2001:db8::10]:80")]
        {
            let frame = Frame { vlans: vlans.clone(), ..Frame::tcp(client, vip, ACK) };
            let out = dsr(rig, &frame);
            let then = if vlans.is_empty() {
                Then::Tx(out.bytes())
            } else {
                Then::Handed(handed(rig, &out, to(rig, vip)).bytes())
            };
            cases.push(Case::new(format!("{vip} {vlans:?}"), &frame, then));
        }
        for (name, frame, service, out) in beyond(rig) {
            let frame = Frame { vlans: vlans.clone(), ..frame };
            let out = Frame { vlans: vlans.clone(), ..out };
            let then = if vlans.is_empty() {
                Then::Redirect(out.bytes())
            } else {
                Then::Handed(handed(rig, &out, to(rig, service)).bytes())
            };
            cases.push(Case::new(format!("{name} {vlans:?}"), &frame, then));
        }
        let reply = Frame { vlans: vlans.clone(), ..Frame::tcp("10.0.0.21:8080", "203.0.113.7:40000", ACK) };
        let vip = "198.51.100.20:80".parse().expect("an address");
        let out = Frame { source: vip, ttl: reply.ttl - 1, ..reply.clone() };
        let then = if vlans.is_empty() {
            Then::Tx(Frame { destination_mac: ROUTER_MAC, source_mac: IN_MAC, ..out }.bytes())
        } else {
            Then::Handed(handed(rig, &out, Handed::Client).bytes())
        };
        cases.push(Case::new(format!("a reply {vlans:?}"), &reply, then));
    }
    cases
}

/// The program considers only the properties that matter for the frame: whether the frame has a tag, and whether it
/// leaves by another interface.
fn when_both_are_known_then_only_frames_with_tags_and_redirected_ones_are_handed_over(rig: &mut Rig) -> Vec<Case> {
    rig.set_devices([(rig.in_ifindex, DEVICE_CARRIES_TAGS), (rig.out_ifindex, DEVICE_TAKES_NO_FRAMES)])
        .expect("devices");
    let mut cases = Vec::new();
    for vlans in [vec![], vec![10]] {
        let near = Frame::tcp("203.0.113.7:40000", "198.51.100.10:80", ACK);
        let near = Frame { vlans: vlans.clone(), ..near };
        let out = dsr(rig, &near);
        let then = if vlans.is_empty() {
            Then::Tx(out.bytes())
        } else {
            Then::Handed(handed(rig, &out, to(rig, "198.51.100.10:80")).bytes())
        };
        cases.push(Case::new(format!("near {vlans:?}"), &near, then));
        for (name, frame, service, out) in beyond(rig) {
            let frame = Frame { vlans: vlans.clone(), ..frame };
            let out = handed(rig, &Frame { vlans: vlans.clone(), ..out }, to(rig, service));
            cases.push(Case::new(format!("{name} {vlans:?}"), &frame, Then::Handed(out.bytes())));
        }
    }
    cases
}

fn when_properties_of_interfaces_are_withdrawn_then_frames_are_sent_again(rig: &mut Rig) -> Vec<Case> {
    let known = [(rig.in_ifindex, DEVICE_CARRIES_TAGS), (rig.out_ifindex, DEVICE_TAKES_NO_FRAMES)];
    rig.set_devices(known).expect("devices");
    rig.set_devices([]).expect("devices");
    let frame = Frame { vlans: vec![10], ..Frame::tcp("203.0.113.7:40000", "198.51.100.10:81", ACK) };
    let out = Frame { source_mac: OUT_MAC, ..dsr(rig, &frame) };
    vec![Case::new("redirected, tag and all", &frame, Then::Redirect(out.bytes()))]
}

#[test]
fn when_xdp_cannot_send_a_frame_then_the_kernel_gets_it() {
    rows::run(
        services(),
        Setup::default(),
        rows![
            when_an_interface_takes_no_frames_then_they_are_handed_over,
            when_an_interface_has_vlans_then_tagged_frames_are_handed_over,
            when_both_are_known_then_only_frames_with_tags_and_redirected_ones_are_handed_over,
            when_properties_of_interfaces_are_withdrawn_then_frames_are_sent_again,
        ],
    );
}
