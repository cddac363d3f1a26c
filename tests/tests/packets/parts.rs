//! Tests of frames in several buffers: some interfaces accept only frames in a single buffer from XDP.

use balancer_common::{
    handover::Handed,
    map_types::{ANY_DEVICE, DEVICE_TAKES_NO_PARTS},
};
use balancer_testkit::{
    frame::{ACK, Frame, SYN},
    prog_run::{run_linear, splits_frames},
    rig::{Rig, Setup, backend_id},
};

use crate::{
    cases::{Case, Then, dsr, handed, nat, services},
    rows::{self, rows},
    tunnel::wrapped,
};

const LONG: usize = 8000;
const MTU: u32 = 9000;
/// The services whose backend is behind the second interface: VIP, backend, mode, and a client.
const BEYOND: [(&str, &str, &str, &str); 6] = [
    ("198.51.100.10:81", "10.0.1.11:81", "dsr", "203.0.113.7:40000"),
    ("[2001:db8::10]:81", "[fd01::11]:81", "dsr", "[2001:db8:c::7]:40000"),
    ("198.51.100.20:81", "10.0.1.21:8081", "nat", "203.0.113.7:40000"),
    ("[2001:db8::20]:81", "[fd01::21]:8081", "nat", "[2001:db8:c::7]:40000"),
    ("198.51.100.50:81", "10.0.1.50:81", "ipip", "203.0.113.7:40000"),
    ("[2001:db8::62]:81", "[fd01::66]:81", "gue", "[2001:db8:c::7]:40000"),
];

fn widen(rig: &mut Rig) -> anyhow::Result<()> {
    BEYOND.iter().try_for_each(|&(vip, at, ..)| rig.widen(vip, at, MTU))
}

/// Returns a frame for each service, in its original form and in the form in which it leaves.
fn frames(rig: &Rig, payload: usize) -> impl Iterator<Item = (&'static str, Frame, Frame)> {
    BEYOND.into_iter().map(move |(vip, at, mode, client)| {
        let frame = Frame { payload: vec![7; payload], ..Frame::tcp(client, vip, ACK) };
        let host = at.rsplit_once(':').expect("a port").0.trim_matches(['[', ']']);
        let out = match mode {
            "dsr" => dsr(rig, &frame),
            "nat" => nat(rig, &frame, vip, at),
            mode => wrapped(rig, mode, &frame, vip, host),
        };
        (vip, frame, out)
    })
}

fn to(rig: &Rig, vip: &str) -> Handed {
    Handed::Backend(backend_id(rig.service(vip).expect("a service of the rig")).0)
}

/// Returns the cases with the expected fates. If `hands_parts` is true, the program hands frames in several buffers
/// over to the kernel.
fn cases(rig: &Rig, hands_parts: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for payload in [0, LONG] {
        for (vip, frame, out) in frames(rig, payload) {
            let then = if hands_parts && payload == LONG {
                Then::Handed(handed(rig, &out, to(rig, vip)).bytes())
            } else {
                Then::Redirect(out.bytes())
            };
            cases.push(Case::new(format!("{vip} {payload}"), &frame, then));
        }
        for (client, vip) in [("203.0.113.7:40000", "198.51.100.10:80"), ("[2001:db8:c::7]:40000", "[2001:db8::10]:80")]
        {
            for flags in [SYN, ACK] {
                let frame = Frame { payload: vec![7; payload], ..Frame::tcp(client, vip, flags) };
                let then = Then::Tx(dsr(rig, &frame).bytes());
                cases.push(Case::new(format!("{vip} {payload}, by the ingress interface"), &frame, then));
            }
        }
    }
    cases
}

fn when_the_second_interface_takes_no_frames_in_parts_then_only_those_are_handed_over(rig: &mut Rig) -> Vec<Case> {
    handed_over(rig, rig.out_ifindex)
}

fn when_any_interface_may_take_no_frames_in_parts_then_only_those_are_handed_over(rig: &mut Rig) -> Vec<Case> {
    handed_over(rig, ANY_DEVICE)
}

fn handed_over(rig: &mut Rig, device: u32) -> Vec<Case> {
    widen(rig).expect("backends");
    rig.set_devices([(device, DEVICE_TAKES_NO_PARTS)]).expect("devices");
    cases(rig, true)
}

fn when_an_interface_takes_frames_in_parts_then_the_program_sends_them(rig: &mut Rig) -> Vec<Case> {
    rig.set_devices([(rig.out_ifindex, DEVICE_TAKES_NO_PARTS)]).expect("devices");
    widen(rig).expect("backends");
    // The property of the ingress interface has no effect, because the program redirects no frame to the ingress
    // interface.
    rig.set_devices([(rig.in_ifindex, DEVICE_TAKES_NO_PARTS)]).expect("devices");
    cases(rig, false)
}

fn when_a_reply_in_parts_leaves_by_an_interface_that_takes_none_then_it_is_handed_over(rig: &mut Rig) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's version");
    if !splits_frames(rig.program(), &release).expect("a run on a frame that is split") {
        println!("not tested: Linux {} runs no program on such frames, Linux 6.18 does", release.trim());
        return;
    }
    rig.set_devices([(rig.out_ifindex, DEVICE_TAKES_NO_PARTS)]).expect("devices");
    for (backend, vip, client, headers) in [
        ("10.0.0.21:8080", "198.51.100.20:80", "203.0.114.7:40000", 54),
        ("[fd00::21]:8080", "[2001:db8::20]:80", "[2001:db8:d::7]:40000", 74),
    ] {
        let reply = Frame { payload: vec![9; 1000], ..Frame::tcp(backend, client, ACK) };
        let out = Frame { source: vip.parse().expect("an address"), ttl: reply.ttl - 1, ..reply.clone() };
        // The test sends an unsplit reply between two split replies, so that the program caches the client's next
        // hop.
        for linear in [headers, reply.bytes().len(), headers] {
            let ran = run_linear(rig.program(), &reply.bytes(), linear, rig.in_ifindex).expect("a run");
            let is_handed = ran.frame == handed(rig, &out, Handed::Client).bytes();
            let what = format!("{backend}, {linear} bytes in the first buffer: {:02x?}", &ran.frame[..40]);
            assert_eq!(is_handed, linear == headers, "{what}");
            assert_eq!(ran.frame[14..], out.bytes()[14..], "{what}");
        }
    }
}

#[test]
fn when_frames_come_in_parts_then_the_kernel_gets_those_that_no_interface_takes() {
    rows::run(
        services(),
        Setup::default(),
        rows![
            when_the_second_interface_takes_no_frames_in_parts_then_only_those_are_handed_over,
            when_any_interface_may_take_no_frames_in_parts_then_only_those_are_handed_over,
            when_an_interface_takes_frames_in_parts_then_the_program_sends_them,
            when_a_reply_in_parts_leaves_by_an_interface_that_takes_none_then_it_is_handed_over,
        ],
    );
}
