//! Tests of the kernel program against the model: generated packets must have the same results and counts in the
//! program and in the model, and lead to the same client table.
//!
//! `BALANCER_MODEL_SEED` selects other packets, and `BALANCER_MODEL_PACKETS` sets the number of packets.
#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod release;

use std::{collections::BTreeMap, time::Instant};

use balancer_common::{
    features::Features,
    map_types::Forwarding,
    quic::QuicStats,
    verdict::{Decision, DropReason, MoveCause, Verdict},
};
use balancer_config::listeners::Family;
use balancer_packet_model::{
    contest::{Kernel, hex, play, shrink},
    generate::{self, Scene, Step},
    model::Counters,
};
use balancer_testkit::variable;
use balancer_tests::verified::sets;

const SEED: u64 = 0x0062_616c_616e_6365;
/// The number of packets for each change; the module `release` has more.
const PACKETS: usize = 250_000;
/// The number of packets for each set of features in `balancer-ebpf/verified.txt`.
const OF_SET: usize = 20_000;
/// The number of packets in a scene.
const SCENE: usize = 4000;
/// If a test has at least this number of packets, every event must occur.
const ENOUGH: usize = 200_000;
/// The minimal number of occurrences of each event, and the number of packets for which that minimum is valid.
const EACH: (u64, usize) = (20, 1_000_000);
/// The number of steps between two comparisons of the counters.
const LOOK: usize = 64;

#[test]
fn when_packets_are_generated_then_kernel_and_model_agree() {
    agree(SEED, wanted(PACKETS), Features::ALL);
}

/// The program has exactly the features of the set, and the services of the scenes need no other features.
#[test]
fn when_the_program_has_one_set_of_features_then_kernel_and_model_agree() {
    for set in sets().expect("the sets of features").into_iter().filter(|set| set.features != Features::ALL) {
        println!("{}", set.name);
        agree(SEED, wanted(OF_SET).min(OF_SET), set.features);
    }
}

/// The number of packets that the environment wants, or `packets`.
fn wanted(packets: usize) -> usize {
    let wanted = variable::number("BALANCER_MODEL_PACKETS").expect("how many packets");
    wanted.map_or(packets, |packets| packets as usize)
}

/// Fails if kernel and model disagree; a variable of the environment overrides the seed.
fn agree(seed: u64, packets: usize, features: Features) {
    let seed = variable::number("BALANCER_MODEL_SEED").expect("a seed").unwrap_or(seed);
    // The contest moves its thread into another namespace, so the contest runs in a separate thread.
    let thread = std::thread::spawn(move || contest(seed, packets, features));
    let report = thread.join().expect("the thread of the contest panicked");
    if let Some(report) = report.expect("the contest could not be held") {
        panic!("{report}");
    }
}

fn contest(seed: u64, packets: usize, features: Features) -> anyhow::Result<Option<String>> {
    let mut kernel = Kernel::new(features)?;
    let start = Instant::now();
    let mut seeds = seed;
    let mut done = 0;
    let mut total = Total::default();
    while done < packets {
        let count = SCENE.min(packets - done);
        let (scene, steps) = generate::scene(seeds, count, kernel.interfaces, features);
        let found = match play(&mut kernel, &scene, &steps, LOOK)? {
            Ok(counters) => {
                total.add(&scene, &counters);
                None
            }
            Err(found) => Some(found),
        };
        if let Some(found) = found {
            let mut fails = |steps: &[Step]| Ok(play(&mut kernel, &scene, steps, 1)?.is_err());
            let small = shrink(&steps[..=found.step], &mut fails)?;
            let what = play(&mut kernel, &scene, &small, 1)?.err().map_or(found.what, |found| found.what);
            let done = done + found.step;
            let report = format!(
                "after {done} packets: {what}\nBALANCER_MODEL_SEED={seeds:#x} BALANCER_MODEL_PACKETS={count} shows it at \
                 once\n{}",
                case(&scene, &small)
            );
            return Ok(Some(report));
        }
        done += count;
        // The sequence (a Weyl sequence) gives every scene a different seed, from which a developer can repeat the
        // scene.
        seeds = seeds.wrapping_add(0x9e37_79b9_7f4a_7c15);
    }
    println!("{packets} packets in {:.1?}: {:#?}", start.elapsed(), total.0);
    Ok((packets >= ENOUGH).then(|| total.missing(packets)).filter(|missing| !missing.is_empty()))
}

/// Formats a failing case for the error message.
fn case(scene: &Scene, steps: &[Step]) -> String {
    let mut text = String::new();
    for step in steps {
        if let Step::Packet { frame, ingress, .. } = step {
            text += &format!("packet in by {ingress}: {}\n", hex(frame));
        } else {
            text += &format!("{step:?}\n");
        }
    }
    for service in &scene.services {
        text += &format!("{:?}, tick {}, {:?}\n", service.spec, service.tick, service.rules);
    }
    for backend in &scene.backends {
        text += &format!("{backend:?}\n");
    }
    text
}

/// The total number of observed events of each kind in all scenes. If an event hardly ever occurred, the comparison
/// would prove nothing about that event.
#[derive(Debug, Default)]
struct Total(BTreeMap<String, u64>);

impl Total {
    fn count(&mut self, what: impl Into<String>, times: u64) {
        *self.0.entry(what.into()).or_default() += times;
    }

    fn add(&mut self, scene: &Scene, counters: &Counters) {
        let mut sent = counters.watched;
        for verdicts in counters.verdicts.values() {
            // Scenes have no backend on the balancer's machine; `e2e/local.rs` tests local backends.
            let unseen = [Verdict::Aborted, Verdict::Local];
            for &verdict in Verdict::ALL.iter().filter(|verdict| !unseen.contains(verdict)) {
                self.count(verdict.label(), verdicts[verdict.index()]);
            }
            sent += [Verdict::Tx, Verdict::Redirect, Verdict::Handed]
                .map(|verdict| verdicts[verdict.index()])
                .iter()
                .sum::<u64>();
        }
        // In the contest, frames always have headroom, the test renews budgets, and every neighbour answers. No packet
        // makes the program suspect a backend; `packets/signs.rs` tests suspected backends.
        let unseen = [
            DropReason::NoHeadroom,
            DropReason::EchoLimited,
            DropReason::NoNeighbour,
            DropReason::Withheld,
            // The following drop reasons occur only with `snat`, which no scene has.
            DropReason::FlowUnknown,
            DropReason::NoPort,
            DropReason::FlowTableFull,
        ];
        for &reason in DropReason::ALL.iter().filter(|reason| !unseen.contains(reason)) {
            self.count(reason.label(), counters.drops[reason.index()]);
        }
        for backend in &scene.backends {
            let stats = counters.backends.get(&backend.id.0).copied().unwrap_or_default();
            sent -= stats.packets;
            let of_clients = scene.services.iter().find(|service| service.spec.id == backend.service);
            let v4 = of_clients.is_some_and(|service| service.spec.family == Family::V4);
            let families = (v4, backend.address.is_ipv4());
            for mode in [Forwarding::Dsr, Forwarding::Nat, Forwarding::Ipip, Forwarding::Gue] {
                for (v4, backend_v4) in [(false, false), (false, true), (true, false), (true, true)] {
                    let tunnel = matches!(mode, Forwarding::Ipip | Forwarding::Gue);
                    if tunnel || v4 == backend_v4 {
                        let of = mode == backend.forwarding && families == (v4, backend_v4);
                        let family = |v4| if v4 { 4 } else { 6 };
                        let name = format!("{mode:?}, IPv{} to IPv{}", family(v4), family(backend_v4));
                        self.count(name, if of { stats.packets } else { 0 });
                    }
                }
            }
            for &decision in Decision::ALL {
                self.count(decision.label(), stats.decisions[decision.index()]);
            }
            // Only the controller can cause moves because of `forgotten`, since it forgets clients on request.
            for &cause in MoveCause::ALL.iter().filter(|&&cause| cause != MoveCause::Forgotten) {
                self.count(format!("moved: {}", cause.label()), stats.moves[cause.index()]);
            }
        }
        for (of, ruled) in ["packets", "errors and fragments"].into_iter().zip(counters.ruled) {
            for (what, times) in [
                ("pinned", ruled.pinned),
                ("pinned in vain", ruled.fallen_back),
                ("spread", ruled.spread),
                ("denied", ruled.denied),
            ] {
                self.count(format!("{what} by a rule: {of}"), times);
            }
        }
        let memory = counters.memory;
        let quic = |of: fn(&QuicStats) -> u64| counters.quic.values().map(of).sum();
        for (what, times) in [
            ("steered by connection IDs", quic(|stats| stats.steered)),
            ("connection IDs of nobody", quic(|stats| stats.unknown)),
            ("known by their connections", quic(|stats| stats.migrated)),
            ("moved by their connections", counters.migrated.values().sum()),
            ("inserted", memory.inserted),
            ("evicted", memory.evicted),
            ("full", memory.full),
            ("limited", memory.limited),
            ("of clients that are not steered", counters.unsteered.values().sum()),
            ("watched", counters.watched),
            ("echo", counters.echo),
            ("told too big", counters.too_big),
            ("rejected", counters.rejected),
            ("nat replies and errors to clients", sent - counters.echo - counters.too_big - counters.rejected),
        ] {
            self.count(what, times);
        }
    }

    /// Lists all events that occurred too rarely.
    fn missing(&self, packets: usize) -> String {
        let (least, of) = EACH;
        let rare = self.0.iter().filter(|&(_, &times)| times * (of as u64) < least * packets as u64);
        rare.map(|(what, times)| format!("too few packets show {what:?}: {times}\n")).collect()
    }
}
