//! Plays a scene on the kernel program and on the model.

use std::fmt::Write as _;

use balancer_common::client_table::BUCKET_ENTRIES;

use crate::{
    generate::{Scene, Step},
    model::{Counters, Fate, Routes, SEEN_WORDS, State},
};

/// A program that receives packets, and whose results the test compares with the results of the model.
pub trait Player {
    /// Starts a new scene with the given initial state.
    ///
    /// # Errors
    /// Fails if the kernel returns an error.
    fn begin(&mut self, scene: &Scene) -> anyhow::Result<()>;

    /// Applies a change of the scene between two packets.
    ///
    /// # Errors
    /// Fails if the kernel returns an error.
    fn change(&mut self, step: &Step) -> anyhow::Result<()>;

    /// Returns the fate of a frame that arrives on the interface `ingress`.
    ///
    /// # Errors
    /// Fails if the kernel refuses to run the program.
    fn packet(&mut self, frame: &[u8], ingress: u32) -> anyhow::Result<Fate>;

    /// Returns the current client table.
    fn clients(&self) -> Vec<[u64; BUCKET_ENTRIES]>;

    /// The filter of recently seen clients.
    fn seen(&self) -> [u64; SEEN_WORDS];

    /// Returns the counters since the beginning of the scene, and renews the limits that depend on the clock.
    ///
    /// # Errors
    /// Fails if the kernel refuses the read.
    fn counters(&mut self) -> anyhow::Result<Counters>;

    /// Returns the routes that the kernel uses for replies.
    fn routes(&self) -> Routes;
}

/// A difference between the results of the program and of the model.
#[derive(Clone, Debug)]
pub struct Disagreement {
    /// The index of the last step before the test noticed the difference.
    pub step: usize,
    /// A description of the difference, as text.
    pub what: String,
}

impl State {
    /// Applies a change of the scene between two packets.
    pub(super) fn change(&mut self, step: &Step) {
        match step {
            Step::Packet { .. } => {}
            Step::Table { service, slots } => self.services[*service].slots.clone_from(slots),
            Step::Backend(backend) => self.set_backend(backend.clone()),
            Step::Tick { service, tick } => self.services[*service].tick = *tick,
            Step::Rules { service, rules } => self.set_rules(*service, rules),
            Step::Epoch => self.next_epoch(),
            Step::Clients(clients) => self.clients.clone_from(clients),
            Step::Seen(seen) => self.seen = *seen,
        }
    }
}

/// Plays `steps` on the program and on the model. Compares, between program and model, the fate of each packet and the
/// client table after each packet. Compares the counters after every `every` steps and at the end. Returns the counters
/// if program and model agree.
///
/// # Errors
/// Fails if the kernel returns an error.
pub fn play(
    player: &mut impl Player,
    scene: &Scene,
    steps: &[Step],
    every: usize,
) -> anyhow::Result<Result<Counters, Disagreement>> {
    player.begin(scene)?;
    let mut model = scene.state(player.routes());
    for (index, step) in steps.iter().enumerate() {
        let disagreement = |what| Ok(Err(Disagreement { step: index, what }));
        if let Step::Packet { frame, ingress, .. } = step {
            let said = model.packet(frame, *ingress);
            let done = player.packet(frame, *ingress)?;
            if said != done {
                return disagreement(format!("the model says\n{}\nand it is\n{}", shown(&said), shown(&done)));
            }
            let clients = player.clients();
            if clients != model.clients {
                let counted = model.counters.differences(&player.counters()?).join("\n");
                return disagreement(table_difference(&model.clients, &clients) + "\n" + &counted);
            }
            let seen = player.seen();
            if seen != model.seen.words {
                return disagreement(format!("seen, of the model {:x?}, and as it is {seen:x?}", model.seen.words));
            }
        } else {
            model.change(step);
            player.change(step)?;
        }
        if (index + 1) % every == 0 || index + 1 == steps.len() {
            let lines = model.counters.differences(&player.counters()?);
            if !lines.is_empty() {
                return disagreement(format!("counters, of the model and as they are:\n{}", lines.join("\n")));
            }
        }
    }
    Ok(Ok(model.counters))
}

fn table_difference(said: &[[u64; BUCKET_ENTRIES]], done: &[[u64; BUCKET_ENTRIES]]) -> String {
    let mut text = "client table, of the model and as it is:".to_owned();
    for (index, (said, done)) in said.iter().zip(done).enumerate() {
        if said != done {
            let _infallible = write!(text, "\nbucket {index}: {said:x?}\nand {done:x?}");
        }
    }
    text
}

/// Formats a packet's fate for people.
fn shown(fate: &Fate) -> String {
    match fate {
        Fate::Pass => "pass".to_owned(),
        Fate::Drop(reason) => format!("drop {}", reason.label()),
        Fate::Tx(frame) => format!("tx {}", hex(frame)),
        Fate::Redirect(frame) => format!("redirect {}", hex(frame)),
        Fate::Handed(frame) => format!("handed over {}", hex(frame)),
    }
}

/// Formats bytes in rows of sixteen for people.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let mut text = format!("{} bytes", bytes.len());
    for (row, bytes) in bytes.chunks(16).enumerate() {
        let _infallible = write!(text, "\n  {:04x} ", row * 16);
        for byte in bytes {
            let _infallible = write!(text, " {byte:02x}");
        }
    }
    text
}
