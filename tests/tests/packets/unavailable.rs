//! Services that cannot forward say why.

use balancer_common::verdict::DropReason;
use balancer_tests::frame::{ACK, Frame, SYN};

use crate::cases::{Case, Then, run};

#[test]
fn each_reason_has_its_counter() {
    run(|_| {
        let mut cases = Vec::new();
        for (client, vip) in [("203.0.113.7:40000", "198.51.100.4"), ("[2001:db8:c::7]:40000", "[2001:db8::4")] {
            let close = if vip.starts_with('[') { "]" } else { "" };
            for (host, reason) in
                [("0", DropReason::NoBackend), ("1", DropReason::AllDown), ("2", DropReason::NoNextHop)]
            {
                for flags in [SYN, ACK] {
                    let frame = Frame::tcp(client, &format!("{vip}{host}{close}:80"), flags);
                    cases.push(Case::new(format!("{vip}{host} flags {flags}"), &frame, Then::Drop(reason)));
                }
                let other = Frame::tcp(client, &format!("{vip}{host}{close}:81"), SYN);
                cases.push(Case::new(format!("{vip}{host}, wrong port"), &other, Then::Pass));
            }
        }
        cases
    });
}
