//! The kernel program against the model: generated packets through both must come out the same, be counted the same, and
//! leave the same client table behind.
//!
//! `BALANCER_MODEL_SEED` chooses other packets, `BALANCER_MODEL_PACKETS` more or fewer of them.

#![expect(clippy::expect_used, clippy::panic, reason = "the helpers of tests fail like tests")]

use std::{env, fmt::Write as _, time::Instant};

use balancer_tests::{
    contest::{Kernel, play, shown, shrink},
    generate::{self, Step},
    model::Fate,
};

const SEED: u64 = 0x0062_616c_616e_6365;
const PACKETS: usize = 1_000_000;
/// Packets of one scene.
const SCENE: usize = 4000;
/// Steps between two looks at the counters.
const LOOK: usize = 64;

fn setting(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    let number = text.strip_prefix("0x").map_or_else(|| text.parse(), |hex| u64::from_str_radix(hex, 16));
    Some(number.unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

#[test]
fn kernel_and_model_agree() {
    let seed = setting("BALANCER_MODEL_SEED").unwrap_or(SEED);
    let packets = setting("BALANCER_MODEL_PACKETS").map_or(PACKETS, |packets| packets as usize);
    // A thread of its own: it moves into another namespace.
    let report = std::thread::spawn(move || contest(seed, packets)).join().expect("the thread of the contest panicked");
    if let Some(report) = report.expect("the contest could not be held") {
        panic!("{report}");
    }
}

fn contest(seed: u64, packets: usize) -> anyhow::Result<Option<String>> {
    let mut kernel = Kernel::new()?;
    let start = Instant::now();
    let mut seeds = seed;
    let mut done = 0;
    while done < packets {
        let count = SCENE.min(packets - done);
        let (scene, steps) = generate::scene(seeds, count, kernel.interfaces);
        if let Some(found) = play(&mut kernel, &scene, &steps, LOOK)? {
            let mut fails = |steps: &[Step]| Ok(play(&mut kernel, &scene, steps, 1)?.is_some());
            let small = shrink(&steps[..=found.step], &mut fails)?;
            let what = play(&mut kernel, &scene, &small, 1)?.map_or(found.what, |found| found.what);
            let mut report = format!(
                "after {} packets: {what}\nBALANCER_MODEL_SEED={seeds:#x} BALANCER_MODEL_PACKETS={count} shows it at once\n",
                done + found.step
            );
            for step in &small {
                let _infallible = match step {
                    Step::Packet { frame, ingress, .. } => {
                        writeln!(report, "packet in by {ingress}: {}", shown(&Fate::Tx(frame.clone())))
                    }
                    change => writeln!(report, "{change:?}"),
                };
            }
            for service in &scene.services {
                writeln!(report, "{:?}, tick {}", service.spec, service.tick)?;
            }
            for backend in &scene.backends {
                writeln!(report, "{backend:?}")?;
            }
            return Ok(Some(report));
        }
        done += count;
        // Weyl's sequence: every scene has a seed of its own, and each is found by that alone.
        seeds = seeds.wrapping_add(0x9e37_79b9_7f4a_7c15);
    }
    println!("{packets} packets in {:.1?}", start.elapsed());
    Ok(None)
}
