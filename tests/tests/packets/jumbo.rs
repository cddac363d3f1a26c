//! Tests of frames that are longer than their linear part. The program reads only the headers of a frame.

use balancer_common::verdict::{DropReason, Verdict};
use balancer_testkit::{
    frame::{ACK, Frame},
    prog_run::{run_linear, splits_frames},
    rig::{Rig, Setup},
};

use crate::{
    cases::{Case, Then, dsr, nat, services},
    rows::{self, Row, rows},
};

fn when_a_frame_has_nine_thousand_bytes_then_it_is_forwarded(rig: &mut Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for (client, at_dsr, at_nat, backend, header) in [
        ("203.0.113.7:40000", "198.51.100.10:80", "198.51.100.20:80", "10.0.0.21:8080", 20),
        ("[2001:db8:c::7]:40000", "[2001:db8::10]:80", "[2001:db8::20]:80", "[fd00::21]:8080", 40),
    ] {
        for length in [3600, 8999, 9000] {
            let payload: Vec<u8> = (0..length - header - 20).map(|i| i as u8).collect();
            let frame = Frame { payload, ..Frame::tcp(client, at_dsr, ACK) };
            let name = format!("{at_dsr} {length} bytes");
            cases.push(Case::new(name, &frame, Then::Tx(dsr(rig, &frame).bytes())));
            let frame = Frame { destination: at_nat.parse().expect("an address"), ..frame };
            let out = nat(rig, &frame, at_nat, backend);
            cases.push(Case::new(format!("{at_nat} {length} bytes"), &frame, Then::Tx(out.bytes())));
            let cut = frame.bytes();
            cases.push(Case {
                name: format!("{at_nat} {length} bytes but one"),
                frame: cut[..cut.len() - 1].to_vec(),
                then: Then::Drop(DropReason::Malformed),
            });
        }
    }
    cases
}

/// Drivers that split headers from data leave little more than headers in the linear part.
fn when_linear_parts_are_short_then_frames_are_forwarded(rig: &mut Rig) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's version");
    if !splits_frames(rig.program(), &release).expect("a run on a frame that is split") {
        println!("not tested: Linux {} runs no program on such frames, Linux 6.18 does", release.trim());
        return;
    }
    for (client, vip, backend, headers) in [
        ("203.0.113.7:40000", "198.51.100.20:80", "10.0.0.21:8080", 54),
        ("[2001:db8:c::7]:40000", "[2001:db8::20]:80", "[fd00::21]:8080", 74),
    ] {
        let frame = Frame { payload: vec![9; 1400], ..Frame::tcp(client, vip, ACK) };
        let out = nat(rig, &frame, vip, backend).bytes();
        for linear in [headers, headers + 1, 200] {
            let ran = run_linear(rig.program(), &frame.bytes(), linear, rig.in_ifindex).expect("a run");
            assert_eq!(ran.frame, out, "{vip}, {linear} bytes in the linear part");
        }
        run_linear(rig.program(), &frame.bytes(), headers - 1, rig.in_ifindex).expect("a run");
    }
    assert_eq!(rig.verdicts(Verdict::Tx).expect("counters"), 6);
    // The program drops a frame whose headers continue beyond the linear part.
    assert_eq!(rig.drops(DropReason::Malformed).expect("counters"), 2);
}

pub(crate) const ROWS: &[Row] = rows![
    when_a_frame_has_nine_thousand_bytes_then_it_is_forwarded,
    when_linear_parts_are_short_then_frames_are_forwarded
];

#[test]
fn when_frames_are_longer_than_their_linear_part_then_they_are_forwarded() {
    rows::run(services(), Setup::default(), ROWS);
}
