//! Reduces a failing case: first the steps of the case, then the packets of the remaining steps.

use crate::generate::Step;

/// The largest number of times that `shrink` runs a case. After the last run, `shrink` returns the most reduced case so
/// far.
const RUNS: usize = 1500;

/// Finds the shortest and simplest selection of `steps` with which `fail` still returns an error. With the given steps,
/// `fail` must return an error.
///
/// # Errors
/// Returns the first error of `fail`.
pub fn shrink(steps: &[Step], mut fail: impl FnMut(&[Step]) -> anyhow::Result<bool>) -> anyhow::Result<Vec<Step>> {
    let mut left = RUNS;
    let mut fails = |steps: &[Step]| {
        if left == 0 {
            return Ok(false);
        }
        left -= 1;
        fail(steps)
    };
    let mut steps = fewer(steps, &mut fails)?;
    for index in 0..steps.len() {
        simpler(&mut steps, index, &mut fails)?;
    }
    Ok(steps)
}

type Fails<'a> = dyn FnMut(&[Step]) -> anyhow::Result<bool> + 'a;

/// Removes sequences of steps, the longest sequences first, while the case still fails (delta debugging).
fn fewer(steps: &[Step], fails: &mut Fails<'_>) -> anyhow::Result<Vec<Step>> {
    let mut steps = steps.to_vec();
    let mut size = steps.len();
    while size > 0 {
        let mut start = 0;
        let mut found = false;
        while start < steps.len() {
            let end = (start + size).min(steps.len());
            let without = [&steps[..start], &steps[end..]].concat();
            if !without.is_empty() && fails(&without)? {
                steps = without;
                found = true;
            } else {
                start = end;
            }
        }
        if size > 1 {
            size = size.div_ceil(2).min(size - 1);
        } else if !found {
            size = 0;
        }
    }
    Ok(steps)
}

/// Undoes the mutation of the packet at `index`, then shortens the packet and clears its bytes.
fn simpler(steps: &mut [Step], index: usize, fails: &mut Fails<'_>) -> anyhow::Result<()> {
    let Step::Packet { frame, unbroken, .. } = &steps[index] else { return Ok(()) };
    let (mut best, unbroken) = (frame.clone(), unbroken.clone());
    let mut take = |best: &mut Vec<u8>, candidate: Vec<u8>| -> anyhow::Result<bool> {
        if candidate == *best {
            return Ok(false);
        }
        replace(&mut steps[index], &candidate);
        let better = fails(steps)?;
        if better {
            *best = candidate;
        } else {
            replace(&mut steps[index], best);
        }
        Ok(better)
    };
    if !take(&mut best, unbroken.clone())? && best.len() == unbroken.len() {
        for at in 0..best.len() {
            let mut candidate = best.clone();
            candidate[at] = unbroken[at];
            take(&mut best, candidate)?;
        }
    }
    let mut by = best.len() / 2;
    while by > 0 {
        if best.len() >= 14 + by {
            let shorter = best[..best.len() - by].to_vec();
            if take(&mut best, shorter)? {
                continue;
            }
        }
        by /= 2;
    }
    for at in (0..best.len()).rev() {
        if best[at] != 0 {
            let mut candidate = best.clone();
            candidate[at] = 0;
            take(&mut best, candidate)?;
        }
    }
    Ok(())
}

fn replace(step: &mut Step, with: &[u8]) {
    if let Step::Packet { frame, .. } = step {
        *frame = with.to_vec();
    }
}

#[cfg(test)]
mod tests {
    use balancer_common::{client_table::BUCKET_ENTRIES, features::Features};

    use super::*;
    use crate::{
        contest::{Player, play},
        generate::{self, Interfaces, Scene},
        model::{Counters, Fate, Routes, SEEN_WORDS, State},
    };

    const INTERFACES: Interfaces = Interfaces { usual: 2, other: 3 };

    /// A model with a deliberate fault.
    struct Faulty {
        state: State,
        /// Selects the fault: `true` stops the clocks; `false` puts a wrong bit into frames that leave by an interface
        /// other than their ingress interface.
        clocks_stand: bool,
    }

    impl Player for Faulty {
        fn begin(&mut self, scene: &Scene) -> anyhow::Result<()> {
            self.state = scene.state(self.routes());
            Ok(())
        }

        fn change(&mut self, step: &Step) -> anyhow::Result<()> {
            if !(self.clocks_stand && matches!(step, Step::Tick { .. })) {
                self.state.change(step);
            }
            Ok(())
        }

        fn packet(&mut self, frame: &[u8], ingress: u32) -> anyhow::Result<Fate> {
            Ok(match self.state.packet(frame, ingress) {
                Fate::Redirect(mut frame) if !self.clocks_stand => {
                    frame[20] ^= 1;
                    Fate::Redirect(frame)
                }
                fate @ (Fate::Pass | Fate::Tx(_) | Fate::Redirect(_) | Fate::Handed(_) | Fate::Drop(_)) => fate,
            })
        }

        fn clients(&self) -> Vec<[u64; BUCKET_ENTRIES]> {
            self.state.clients.clone()
        }

        fn seen(&self) -> [u64; SEEN_WORDS] {
            self.state.seen.words
        }

        fn counters(&mut self) -> anyhow::Result<Counters> {
            Ok(self.state.counters.clone())
        }

        fn routes(&self) -> Routes {
            Routes::default()
        }
    }

    /// Returns the reduced case of the first scene that shows the fault.
    fn small(clocks_stand: bool) -> Vec<Step> {
        for seed in 8..100 {
            let (scene, steps) = generate::scene(seed, 1000, INTERFACES, Features::ALL);
            let mut faulty = Faulty { state: scene.state(Routes::default()), clocks_stand };
            let mut fails = |steps: &[Step]| Ok(play(&mut faulty, &scene, steps, 1)?.is_err());
            if fails(&steps).unwrap() {
                let small = shrink(&steps, &mut fails).unwrap();
                assert!(fails(&small).unwrap(), "it is not noticed any more");
                return small;
            }
        }
        panic!("the fault is not noticed");
    }

    #[test]
    fn when_single_packets_are_wrong_then_the_case_is_one_short_packet() {
        let small = small(false);
        let [Step::Packet { frame, .. }] = small.as_slice() else { panic!("{small:?}") };
        // The nonzero bytes are types, lengths, an address and a port, and perhaps the same fields of a quoted packet.
        assert!(frame.iter().filter(|&&byte| byte != 0).count() <= 40, "{frame:x?}");
    }

    #[test]
    fn when_clocks_stand_still_then_the_case_is_one_tick_and_one_packet() {
        let small = small(true);
        // The case may also keep a step that makes the required clients known.
        let is_other = |step: &&Step| !matches!(step, Step::Clients(_));
        let steps: Vec<&Step> = small.iter().filter(is_other).collect();
        assert!(matches!(steps.as_slice(), [Step::Tick { .. }, Step::Packet { .. }]), "{small:?}");
    }
}
