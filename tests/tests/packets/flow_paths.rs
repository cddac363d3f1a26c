//! Tests of packets of existing `snat` connections. Most of these packets take a short path through the program, and
//! everything that this path cannot do sends a packet on a longer path: both paths have the same effect.

use std::{thread, time::Duration};

use balancer_common::{
    features::Features,
    handover::Handed,
    map_types::{DEVICE_CARRIES_TAGS, DEVICE_TAKES_NO_FRAMES},
    verdict::DropReason,
};
use balancer_control::io::{ListenerId, RuleAction, RuleSpec, ServiceId};
use balancer_testkit::{
    frame::{ACK, DESTINATION_OPTIONS, Frame, SYN, options},
    rig::{OUT_MAC, OUT_MTU, POOL_PORTS, Rig, Setup, backend_id},
};
use ipnet::IpNet;

use crate::{
    cases::handed,
    flows::{
        BOTH, Scene, XDP_DROP, XDP_PASS, XDP_TX, comes_back, connect, restored, sent, services, translated,
        with_services,
    },
    next_hop_cache::{LATER, OTHER_ROUTER_MAC, XDP_REDIRECT, ip},
    rows::{self, rows},
    too_big::{segment, told},
};

const PORT: u16 = 40_000;
/// A time that is longer than a tick of the kernel program's clock.
const A_TICK: Duration = Duration::from_millis(1100);

fn packets(rig: &Rig, scene: Scene) -> u64 {
    rig.backend_stats(scene.index).expect("counters").packets
}

/// Returns the bytes of the scene's only connection, to the backend and to the client.
fn bytes(rig: &Rig, scene: Scene) -> [u64; 2] {
    let all = rig.flows().list(ServiceId(scene.index as u16), |_| true, 2);
    assert_eq!(all.len(), 1);
    [all[0].bytes_to_backend, all[0].bytes_to_client]
}

/// Sends a packet from the client and a packet from the backend of a connection.
fn both_ways(rig: &Rig, scene: Scene, seen: u16) {
    assert_eq!(sent(rig, scene.index, &scene.there(PORT, ACK), scene.backend), seen, "{}", scene.vip);
    comes_back(rig, &scene.back(seen, ACK), scene.vip, &scene.client(PORT));
}

fn with_options(frame: Frame) -> Frame {
    if frame.source.is_ipv4() {
        Frame { options: vec![1; 8], ..frame }
    } else {
        Frame { extensions: vec![options(DESTINATION_OPTIONS, 1)], ..frame }
    }
}

fn when_packets_take_different_paths_then_they_arrive_alike_and_are_counted_once(rig: &mut Rig) {
    for scene in BOTH {
        let seen = connect(rig, scene, PORT);
        let tagged = |frame: Frame| Frame { vlans: vec![10], ..frame };
        for change in [|frame: Frame| frame, with_options, tagged, |frame: Frame| frame] {
            let (there, back) = (change(scene.there(PORT, ACK)), change(scene.back(seen, ACK)));
            let before = packets(rig, scene);
            let [to_backend, to_client] = bytes(rig, scene);
            let ran = rig.run(&there.bytes()).expect("a run");
            assert_eq!((ran.action, ran.frame), (XDP_TX, translated(&there, scene.index, seen, scene.backend).bytes()));
            assert_eq!(packets(rig, scene), before + 1, "{there:?}");
            for _ in 0..2 {
                comes_back(rig, &back, scene.vip, &scene.client(PORT));
            }
            assert_eq!(packets(rig, scene), before + 1, "{back:?}");
            let length = |frame: &Frame| frame.packet().len() as u64;
            assert_eq!(bytes(rig, scene), [to_backend + length(&there), to_client + 2 * length(&back)]);
        }
    }
}

fn when_a_rule_denies_a_client_then_its_connection_waits_until_the_rule_is_gone(rig: &mut Rig) {
    for scene in BOTH {
        let seen = connect(rig, scene, PORT);
        let prefix = IpNet::from(scene.there(PORT, ACK).source.ip());
        let rule = |action| RuleSpec { prefix, action };
        rig.set_rules(scene.vip, &[rule(RuleAction::Deny)]).expect("rules");
        let before = (rig.drops(DropReason::Denied).expect("counters"), packets(rig, scene));
        assert_eq!(rig.run(&scene.there(PORT, ACK).bytes()).expect("a run").action, XDP_DROP);
        let after = (rig.drops(DropReason::Denied).expect("counters"), packets(rig, scene));
        assert_eq!(after, (before.0 + 1, before.1));
        assert_eq!(rig.rule_stats(scene.vip, prefix).expect("counters"), (1, 0));
        rig.set_rules(scene.vip, &[rule(RuleAction::Pin(Some(backend_id(scene.index))))]).expect("rules");
        both_ways(rig, scene, seen);
        rig.set_rules(scene.vip, &[]).expect("rules");
        both_ways(rig, scene, seen);
    }
}

fn when_pools_get_other_ports_then_connections_keep_theirs_and_new_ones_get_the_new(rig: &mut Rig) {
    const OTHERS: (u16, u16) = (50_000, 50_999);
    let seen: Vec<(Scene, u16)> = BOTH.into_iter().map(|scene| (scene, connect(rig, scene, PORT))).collect();
    assert!(seen.iter().all(|(_, port)| *port < OTHERS.0));
    rig.set_pool_ports(OTHERS).expect("other ports");
    for (scene, seen) in seen {
        both_ways(rig, scene, seen);
        assert_eq!(rig.run(&scene.there(PORT + 1, SYN).bytes()).expect("a run").action, XDP_TX);
        let flows = rig.flows().list(ServiceId(scene.index as u16), |flow| flow.client.port() == PORT + 1, 2);
        let ports: Vec<u16> = flows.iter().map(|flow| flow.pool.port()).collect();
        assert!(matches!(ports[..], [new] if (OTHERS.0..=OTHERS.1).contains(&new)), "{ports:?}");
    }
    rig.set_pool_ports(POOL_PORTS).expect("the former ports");
}

fn when_a_service_has_several_listeners_then_each_packet_counts_once_for_its_own(rig: &mut Rig) {
    for scene in BOTH {
        let more = scene.vip.replace(":80", ":81");
        let listeners = [scene.vip, &*more].map(|at| (format!("{at}/tcp").parse().expect("a listener"), 0));
        let first = rig.listen(scene.vip, &listeners).expect("listeners");
        let seen = connect(rig, scene, PORT);
        let count =
            |rig: &Rig| [0, 1].map(|add| rig.listener_stats(ListenerId(first.0 + add)).expect("counters").packets);
        let [own, other] = count(rig);
        for (number, change) in [|frame: Frame| frame, with_options].into_iter().enumerate() {
            let frame = change(scene.there(PORT, ACK));
            assert_eq!(rig.run(&frame.bytes()).expect("a run").action, XDP_TX);
            assert_eq!(count(rig), [own + 1 + number as u64, other], "{frame:?}");
        }
        both_ways(rig, scene, seen);
    }
}

#[test]
fn when_the_route_to_a_client_changes_then_replies_of_its_connection_follow_a_moment_later() {
    with_services(services(), |rig| {
        let goes = |scene: Scene, seen: u16, action: u32, mac: [u8; 6]| {
            for _ in 0..3 {
                let ran = rig.run(&scene.back(seen, ACK).bytes()).expect("a run");
                assert_eq!((ran.action, &ran.frame[..6]), (action, &mac[..]), "{}", scene.vip);
            }
        };
        let ends = BOTH.map(|scene| connect(&rig, scene, PORT));
        ip("neigh replace 203.0.113.7 lladdr 02:00:00:00:00:77 dev in0 nud permanent");
        ip("neigh replace fd00::fe lladdr 02:00:00:00:00:77 dev in0 nud permanent");
        thread::sleep(LATER);
        BOTH.into_iter().zip(ends).for_each(|(scene, seen)| goes(scene, seen, XDP_TX, [2, 0, 0, 0, 0, 0x77]));
        ip("route add 203.0.113.7/32 via 10.0.1.254");
        ip("-6 route add 2001:db8:c::7/128 via fd01::fe");
        thread::sleep(LATER);
        BOTH.into_iter().zip(ends).for_each(|(scene, seen)| goes(scene, seen, XDP_REDIRECT, OTHER_ROUTER_MAC));
    });
}

fn when_the_backend_is_behind_another_interface_then_mtu_and_devices_decide_how_a_packet_leaves(rig: &mut Rig) {
    for scene in BOTH {
        rig.set_devices([]).expect("devices");
        let seen = connect(rig, scene, PORT);
        rig.widen(scene.vip, scene.backend, OUT_MTU).expect("a backend");
        let frame = scene.there(PORT, ACK);
        let to = Frame { source_mac: OUT_MAC, ..translated(&frame, scene.index, seen, scene.backend) };
        let redirected = |rig: &Rig| {
            let ran = rig.run(&frame.bytes()).expect("a run");
            assert_eq!((ran.action, ran.frame), (XDP_REDIRECT, to.bytes()), "{}", scene.vip);
        };
        redirected(rig);
        let long = segment(&scene.client(PORT), scene.vip, OUT_MTU as usize + 1);
        let before = packets(rig, scene);
        let ran = rig.run(&long.bytes()).expect("a run");
        assert_eq!((ran.action, ran.frame), (XDP_TX, told(&long, OUT_MTU as usize).bytes()));
        assert_eq!(packets(rig, scene), before);
        redirected(rig);
        rig.set_devices([(rig.out_ifindex, DEVICE_TAKES_NO_FRAMES)]).expect("devices");
        rig.widen(scene.vip, scene.backend, OUT_MTU).expect("a backend");
        let ran = rig.run(&frame.bytes()).expect("a run");
        let expected = handed(rig, &to, Handed::Backend(backend_id(scene.index).0));
        assert_eq!((ran.action, ran.frame), (XDP_PASS, expected.bytes()), "{}", scene.vip);
        assert_eq!(packets(rig, scene), before + 2);
    }
}

fn when_only_the_kernel_can_send_a_tagged_frame_then_it_sends_it_both_ways(rig: &mut Rig) {
    rig.set_devices([(rig.in_ifindex, DEVICE_CARRIES_TAGS)]).expect("devices");
    for scene in BOTH {
        rig.move_backend(scene.vip, scene.backend, Some(rig.in_ifindex)).expect("a backend");
        let seen = connect(rig, scene, PORT);
        let tagged = |frame: Frame| Frame { vlans: vec![10], ..frame };
        let (there, back) = (tagged(scene.there(PORT, ACK)), tagged(scene.back(seen, ACK)));
        let to_backend = translated(&there, scene.index, seen, scene.backend);
        let to_client = restored(&back, scene.vip, &scene.client(PORT));
        for (frame, sent, to) in
            [(&there, &to_backend, Handed::Backend(backend_id(scene.index).0)), (&back, &to_client, Handed::Client)]
        {
            let ran = rig.run(&frame.bytes()).expect("a run");
            assert_eq!((ran.action, ran.frame), (XDP_PASS, handed(rig, sent, to).bytes()), "{frame:?}");
        }
        both_ways(rig, scene, seen);
    }
}

fn when_clients_are_remembered_then_the_first_packet_of_each_second_is_sent_like_the_others(rig: &mut Rig) {
    for scene in BOTH {
        rig.remember(scene.vip, Duration::from_secs(3600)).expect("memory");
    }
    let ends = BOTH.map(|scene| connect(rig, scene, PORT));
    for _ in 0..2 {
        thread::sleep(A_TICK);
        for (scene, seen) in BOTH.into_iter().zip(ends) {
            let before = packets(rig, scene);
            both_ways(rig, scene, seen);
            both_ways(rig, scene, seen);
            assert_eq!(packets(rig, scene), before + 2, "{}", scene.vip);
        }
    }
}

#[test]
fn when_packets_of_connections_take_rare_paths_then_they_arrive_like_all_others() {
    rows::run(
        services(),
        Setup { features: Features::RULES | Features::MEMORY, ..Setup::default() },
        rows![
            when_packets_take_different_paths_then_they_arrive_alike_and_are_counted_once,
            when_a_rule_denies_a_client_then_its_connection_waits_until_the_rule_is_gone,
            when_pools_get_other_ports_then_connections_keep_theirs_and_new_ones_get_the_new,
            when_a_service_has_several_listeners_then_each_packet_counts_once_for_its_own,
            when_the_backend_is_behind_another_interface_then_mtu_and_devices_decide_how_a_packet_leaves,
            when_only_the_kernel_can_send_a_tagged_frame_then_it_sends_it_both_ways,
            when_clients_are_remembered_then_the_first_packet_of_each_second_is_sent_like_the_others
        ],
    );
}
