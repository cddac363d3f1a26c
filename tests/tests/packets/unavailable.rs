//! Tests that a service counts the reason why it cannot forward a packet.

use balancer_common::verdict::DropReason;
use balancer_testkit::{
    frame::{ACK, Frame, SYN},
    rig::{Rig, Setup},
};

use crate::{
    cases::{Case, Then, services},
    rows::{self, Row, rows},
};

fn when_a_service_cannot_forward_then_the_reason_is_counted(_: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for (client, vip) in [("203.0.113.7:40000", "198.51.100.4"), ("[2001:db8:c::7]:40000", "[2001:db8::4")] {
        let close = if vip.starts_with('[') { "]" } else { "" };
        for (host, reason) in [("0", DropReason::NoBackend), ("1", DropReason::AllDown), ("2", DropReason::NoNextHop)] {
            for flags in [SYN, ACK] {
                let frame = Frame::tcp(client, &format!("{vip}{host}{close}:80"), flags);
                cases.push(Case::new(format!("{vip}{host} flags {flags}"), &frame, Then::Drop(reason)));
            }
            let other = Frame::tcp(client, &format!("{vip}{host}{close}:81"), SYN);
            cases.push(Case::new(format!("{vip}{host}, wrong port"), &other, Then::Pass));
        }
    }
    cases
}

fn when_a_connection_cannot_be_forwarded_then_its_decision_still_counts(rig: &mut Rig) {
    const V4: &str = "203.0.113.7:40000";
    const V6: &str = "[2001:db8:c::7]:40000";
    let last_hop = |frame: Frame| Frame { ttl: 1, ..frame };
    let long = |frame: Frame| Frame { payload: vec![0; 1400], ..frame };
    let fragmentable = |frame: Frame| Frame { dont_fragment: false, ..frame };
    let mut seen = 0;
    for (client, vip, of) in
        [(V4, "198.51.100", ["42", "20", "10", "50"]), (V6, "2001:db8::", ["42", "20", "10", "52"])]
    {
        let to = |host: &str, port: u16, flags| {
            let vip = if client == V6 { format!("[{vip}{host}]:{port}") } else { format!("{vip}.{host}:{port}") };
            (Frame::tcp(client, &vip, flags), vip)
        };
        for flags in [SYN, ACK] {
            let [unreachable, nat, dsr, ipip] = of.map(|host| move |port| to(host, port, flags));
            let cases = [
                (unreachable(80), DropReason::NoNextHop, None),
                (nat(80), DropReason::TtlExceeded, Some(&last_hop as &dyn Fn(Frame) -> Frame)),
                (ipip(80), DropReason::TtlExceeded, Some(&last_hop)),
                (dsr(81), DropReason::TooBig, Some(&long)),
                (nat(81), DropReason::TooBig, Some(&long)),
                (ipip(81), DropReason::TooBig, Some(&long)),
            ];
            for ((frame, vip), reason, change) in cases {
                let index = rig.service(&vip).unwrap_or_else(|| panic!("{vip}"));
                let frame = change.map_or_else(|| frame.clone(), |change| change(frame.clone()));
                // The program informs the sender regardless of the DF bit in the packet.
                for frame in [frame.clone(), fragmentable(frame)] {
                    let before = rig.backend_stats(index).expect("counters");
                    let drops = rig.drops(reason).expect("counters") + rig.replies().expect("counters").too_big;
                    rig.run(&frame.bytes()).expect("a run");
                    let ended = rig.drops(reason).expect("counters") + rig.replies().expect("counters").too_big;
                    let stats = rig.backend_stats(index).expect("counters");
                    assert_eq!(ended - drops, 1, "{vip}");
                    let opened = u64::from(flags == SYN);
                    let sum = |stats: balancer_common::map_types::BackendStats| stats.decisions.iter().sum::<u64>();
                    assert_eq!(sum(stats) - sum(before), opened, "{vip} {reason:?}");
                    assert_eq!((stats.packets, stats.connections), (before.packets, before.connections), "{vip}");
                    seen += 1;
                }
            }
        }
    }
    assert_eq!(seen, 48);
}

pub(crate) const ROWS: &[Row] = rows![
    when_a_service_cannot_forward_then_the_reason_is_counted,
    when_a_connection_cannot_be_forwarded_then_its_decision_still_counts
];

#[test]
fn when_backends_are_unavailable_then_reasons_and_decisions_are_counted() {
    rows::run(services(), Setup::default(), ROWS);
}
