//! Makes random scenes, and random packets for the scenes, from a seed.

mod changes;
mod clients;
mod dress;
mod frames;
mod icmp;
mod mixture;
mod mutate;
mod quic;
mod rules;
mod scene;

use balancer_common::{
    client_table::BUCKET_ENTRIES,
    features::Features,
    map_types::{Mac, TableSlot},
};
use balancer_control::io::{BackendSpec, RuleSpec};
use fastrand::Rng;

use crate::model::Seen;
pub use scene::{BACKEND_ROWS, Interfaces, Scene};

#[derive(Clone, Debug)]
pub enum Step {
    /// Passes a frame to the program.
    Packet {
        /// The bytes of the frame that arrives.
        frame: Vec<u8>,
        /// The bytes of the frame before the mutation.
        unbroken: Vec<u8>,
        /// The interface on which the frame arrives.
        ingress: u32,
    },
    /// Replaces the live table of a service.
    Table {
        /// The index of the service whose table the step replaces.
        service: usize,
        slots: Vec<TableSlot>,
    },
    /// Replaces a backend's row.
    Backend(BackendSpec),
    /// Sets the clock of a service to the given tick.
    Tick {
        /// The index of the service whose clock the step moves.
        service: usize,
        tick: u16,
    },
    /// Replaces the rules of a service.
    Rules {
        /// The index of the service whose rules the step replaces.
        service: usize,
        rules: Vec<RuleSpec>,
    },
    /// Lets the program record new clients again, as at the beginning of a period.
    Epoch,
    /// Replaces the client table.
    Clients(Vec<[u64; BUCKET_ENTRIES]>),
    /// Replaces the filter of recently seen clients.
    Seen(Seen),
}

/// Returns the scene with the given seed, and steps with `packets` packets. The services need no more than `features`,
/// which include a mode other than `snat`, and both address families if they include tunnels.
#[must_use]
pub fn scene(seed: u64, packets: usize, interfaces: Interfaces, features: Features) -> (Scene, Vec<Step>) {
    let mut rng = Rng::with_seed(seed);
    let scene = Scene::random(&mut rng, interfaces, features);
    let mut source = frames::Source::new(&scene);
    let mut steps = Vec::with_capacity(packets + packets / 50);
    for _ in 0..packets {
        if once_in(&mut rng, 60) {
            steps.push(changes::random(&mut rng, &scene));
        }
        let mut unbroken = source.frame(&mut rng);
        let ingress = if once_in(&mut rng, 6) { interfaces.other } else { interfaces.usual };
        address(&mut rng, &mut unbroken, scene.local_macs()[&ingress]);
        let frame = mutate::perhaps(&mut rng, &unbroken);
        steps.push(Step::Packet { frame, unbroken, ingress });
    }
    (scene, steps)
}

/// Sets the frame's destination MAC address to `station`, or rarely to another address, unless the frame has a group
/// address.
fn address(rng: &mut Rng, frame: &mut [u8], station: Mac) {
    if frame[0] & 1 == 0 {
        frame[..6].copy_from_slice(&station);
        if once_in(rng, 40) {
            let byte = rng.usize(..6);
            frame[byte] ^= 2 << rng.u32(..7);
        }
    }
}

/// A random element of `choices`, which must not be empty.
fn one_of<T: Copy>(rng: &mut Rng, choices: &[T]) -> T {
    choices[rng.usize(..choices.len())]
}

/// Returns true with a probability of one in `times`.
fn once_in(rng: &mut Rng, times: u32) -> bool {
    rng.u32(..times) == 0
}
