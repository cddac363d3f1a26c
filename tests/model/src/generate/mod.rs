//! Random scenes, and random packets through them, from one seed.

mod changes;
mod clients;
mod frames;
mod icmp;
mod mutate;
mod quic;
mod rules;
mod scene;

use balancer_common::{
    client_table::BUCKET_ENTRIES,
    map_types::{Mac, TableSlot},
};
use balancer_core::io::{BackendSpec, RuleSpec};
use fastrand::Rng;

use crate::model::Seen;
pub use scene::{BACKEND_ROWS, Interfaces, Scene};

/// Something that happens in a scene.
#[derive(Clone, Debug)]
pub enum Step {
    /// A frame comes in.
    Packet {
        /// The bytes of the frame.
        frame: Vec<u8>,
        /// The bytes before somebody broke them.
        unbroken: Vec<u8>,
        /// By which interface it comes in.
        ingress: u32,
    },
    /// The live table of a service is replaced.
    Table {
        /// Index of the service.
        service: usize,
        /// The new table.
        slots: Vec<TableSlot>,
    },
    /// A backend's row is replaced.
    Backend(BackendSpec),
    /// The clock of a service moves.
    Tick {
        /// Index of the service.
        service: usize,
        /// To this.
        tick: u16,
    },
    /// The rules of a service are replaced.
    Rules {
        /// Index of the service.
        service: usize,
        /// The new rules.
        rules: Vec<RuleSpec>,
    },
    /// Newcomers may be recorded again.
    Epoch,
    /// The client table is replaced.
    Clients(Vec<[u64; BUCKET_ENTRIES]>),
    /// Other clients than before have been seen.
    Seen(Seen),
}

/// The scene with this seed, and `packets` packets in it.
#[must_use]
pub fn scene(seed: u64, packets: usize, interfaces: Interfaces) -> (Scene, Vec<Step>) {
    let mut rng = Rng::with_seed(seed);
    let scene = Scene::random(&mut rng, interfaces);
    let mut source = frames::Source::new(&scene);
    let mut steps = Vec::with_capacity(packets + packets / 50);
    for _ in 0..packets {
        if once_in(&mut rng, 60) {
            steps.push(changes::random(&mut rng, &scene));
        }
        let mut unbroken = source.frame(&mut rng);
        let ingress = if once_in(&mut rng, 6) { interfaces.other } else { interfaces.usual };
        address(&mut rng, &mut unbroken, scene.stations()[&ingress]);
        let frame = mutate::perhaps(&mut rng, &unbroken);
        steps.push(Step::Packet { frame, unbroken, ingress });
    }
    (scene, steps)
}

/// Sends a frame to `station`, unless it is for several; once in a while to somebody else.
fn address(rng: &mut Rng, frame: &mut [u8], station: Mac) {
    if frame[0] & 1 == 0 {
        frame[..6].copy_from_slice(&station);
        if once_in(rng, 40) {
            let byte = rng.usize(..6);
            frame[byte] ^= 2 << rng.u32(..7);
        }
    }
}

/// One of `choices`, which are not none.
fn one_of<T: Copy>(rng: &mut Rng, choices: &[T]) -> T {
    choices[rng.usize(..choices.len())]
}

/// Whether something that happens once in `times` happens.
fn once_in(rng: &mut Rng, times: u32) -> bool {
    rng.u32(..times) == 0
}
