//! Tests of budgets, which limit the work that outside senders can cause per CPU and second.

use balancer_common::verdict::{DropReason, Verdict};
use balancer_dataplane::Budgets;
use balancer_testkit::{
    frame::{ACK, Frame, SYN},
    rig::{Rig, Setup},
};
use nix::sched::{CpuSet, sched_setaffinity};

use crate::cases::services;

/// Budgets that are so small that a test exceeds them within a second.
const FEW: Budgets = Budgets { errors: 20, rejections: 20, echo: 20, fragments: 20, waiting: 20 };
const SENT: u64 = 4000;

const XDP_DROP: u32 = 1;
const XDP_TX: u32 = 3;

/// Runs a test in a new namespace, with the thread bound to one CPU.
fn with_rig(test: impl FnOnce(Rig) + Send + 'static) {
    let thread = std::thread::spawn(|| {
        let mut first = CpuSet::new();
        first.set(0).expect("a CPU");
        sched_setaffinity(nix::unistd::Pid::from_raw(0), &first).expect("staying on a CPU");
        test(Rig::with(&services(), &Setup { budgets: FEW, ..Setup::default() }).expect("a rig"));
    });
    thread.join().expect("the thread panicked");
}

#[test]
fn when_echo_requests_exceed_the_budget_then_they_are_dropped() {
    with_rig(|rig| {
        let ping = Frame::icmp("203.0.113.7:0", "198.51.100.10:0", 8, 0, [0; 4]).bytes();
        let mut dropped = 0;
        for _ in 0..SENT {
            let action = rig.run(&ping).expect("a run").action;
            assert!(action == XDP_TX || action == XDP_DROP, "{action}");
            dropped += u64::from(action == XDP_DROP);
        }
        let answered = rig.replies().expect("counters").echo;
        assert_eq!(answered + dropped, SENT);
        assert_eq!(rig.drops(DropReason::EchoLimited).expect("counters"), dropped);
        assert!(answered >= 20, "{answered}");
        assert!(dropped > 0);
        // Each other kind of work has a separate budget.
        assert_eq!(rig.replies().expect("counters").fragments_not_remembered, 0);
    });
}

#[test]
fn when_first_fragments_exceed_the_budget_then_they_are_forwarded_but_not_remembered() {
    with_rig(|rig| {
        let whole = Frame { payload: vec![7; 64], ..Frame::udp("203.0.113.7:40000", "198.51.100.10:53") };
        let first = whole.fragments(32, 1).swap_remove(0).bytes();
        for _ in 0..SENT {
            assert_eq!(rig.run(&first).expect("a run").action, XDP_TX, "each is forwarded");
        }
        let forgotten = rig.replies().expect("counters").fragments_not_remembered;
        assert!(forgotten > 0 && forgotten <= SENT - 20, "{forgotten} of {SENT}");
    });
}

/// A flood with source addresses of an attached network causes replies that wait for neighbours.
#[test]
fn when_replies_wait_for_neighbours_then_the_budget_limits_them() {
    with_rig(|rig| {
        for port in 0..SENT {
            let client = format!("10.0.0.66:{}", 1024 + port);
            rig.run(&Frame::tcp("10.0.0.21:8080", &client, SYN | ACK).bytes()).expect("a run");
        }
        let handed = rig.verdicts(Verdict::Handed).expect("counters");
        let dropped = rig.drops(DropReason::NoNeighbour).expect("counters");
        assert_eq!(handed + dropped, SENT);
        assert!(handed >= 20 && dropped > 0, "{handed} handed over, {dropped} dropped");
    });
}
