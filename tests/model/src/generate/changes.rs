//! Makes random changes that happen between packets.

use balancer_common::client_table::TICK_MASK;
use fastrand::Rng;

use super::{
    Scene, Step, one_of, rules,
    scene::{self, table},
};

pub(super) fn random(rng: &mut Rng, scene: &Scene) -> Step {
    let index = rng.usize(..scene.services.len());
    let service = &scene.services[index];
    match rng.u32(..14) {
        0 | 1 => Step::Table { service: index, slots: table(rng, &service.spec, service.slots.len()) },
        2..=4 => Step::Tick {
            service: index,
            tick: service
                .tick
                .wrapping_add(one_of(rng, &[0, 1, 1, 2, 3, 29, 31, 60, 650, 700, 700, 700, 800, 4000, 9000]))
                & TICK_MASK,
        },
        5 | 6 => match rng.choice(&scene.backends) {
            Some(backend) => Step::Backend(scene.change_of(rng, backend)),
            None => Step::Epoch,
        },
        7 => Step::Epoch,
        8 | 9 => Step::Seen(scene::random_seen(rng)),
        10 | 11 if service.spec.rules => Step::Rules { service: index, rules: rules::random(rng, &service.spec) },
        _ => Step::Clients(scene.random_clients(rng)),
    }
}
