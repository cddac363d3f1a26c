//! Tests of replacing a backend's row while the program handles packets: for each packet, the program sees the complete
//! old row or the complete new row.

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use balancer_testkit::{
    frame::{ACK, Frame},
    prog_run,
    rig::{IN_MAC, OUT_MAC, Rig},
};

use crate::cases::services;

const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;
const CHANGES: usize = 150;

#[test]
fn when_a_row_is_replaced_then_no_packet_is_lost_or_mixed() {
    let thread = thread::spawn(|| {
        let (service, backend) = ("198.51.100.20:80", "10.0.0.21:8080");
        let mut rig = Rig::new(&services()).expect("a rig");
        let (usual, other) = (rig.in_ifindex, rig.out_ifindex);
        let frame = Frame::tcp("203.0.113.7:40000", service, ACK).bytes();
        let program = rig.program().try_clone_to_owned().expect("a descriptor");
        let done = AtomicBool::new(false);
        let namespace = std::fs::File::open("/proc/thread-self/ns/net").expect("this namespace");
        let sender = || {
            nix::sched::setns(namespace.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET).expect("the same namespace");
            let program: BorrowedFd<'_> = program.as_fd();
            let (mut sent, mut ways) = (0u64, [false; 2]);
            while !done.load(Ordering::Relaxed) {
                let ran = prog_run::run(program, &frame, usual, 1).expect("a run");
                let by_other = match ran.action {
                    XDP_TX => false,
                    XDP_REDIRECT => true,
                    action => panic!("lost after {sent} packets: action {action}"),
                };
                let expected = if by_other { OUT_MAC } else { IN_MAC };
                assert_eq!(ran.frame[6..12], expected, "half of one way and half of another");
                ways[usize::from(by_other)] = true;
                sent += 1;
            }
            (sent, ways)
        };
        let (sent, ways) = thread::scope(|scope| {
            let senders = [scope.spawn(sender), scope.spawn(sender)];
            for change in 0..CHANGES {
                let ifindex = if change % 2 == 0 { other } else { usual };
                rig.move_backend(service, backend, Some(ifindex)).expect("a move");
            }
            done.store(true, Ordering::Relaxed);
            let results = senders.map(|sender| sender.join().expect("a sender failed"));
            results
                .into_iter()
                .fold((0, [false; 2]), |(sum, all), (sent, ways)| (sum + sent, [all[0] || ways[0], all[1] || ways[1]]))
        });
        assert_eq!(ways, [true; 2], "{sent} packets");
    });
    thread.join().expect("the thread panicked");
}
