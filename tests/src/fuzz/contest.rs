//! Fuzzes the kernel program against the model; the input selects the scene and the steps.

use std::cell::RefCell;

use arbitrary::{Result, Unstructured};
use balancer_common::features::Features;

use balancer_packet_model::{
    contest::{Kernel, play},
    generate::{self, Interfaces, Scene, Step},
};

/// The number of different scenes that inputs can select.
const SCENES: usize = 32;
/// The number of steps that a scene has; the input selects some of these steps.
const STEPS: usize = 256;
/// The largest number of steps that an input can select.
const LONGEST: usize = 24;

thread_local! {
    // Each thread loads the program once, because loading takes longer than running a thousand packets.
    static STAGE: RefCell<Option<Stage>> = const { RefCell::new(None) };
}

struct Stage {
    kernel: Kernel,
    /// The scenes that earlier runs have used, with all steps of the scenes.
    scenes: [Option<(Scene, Vec<Step>)>; SCENES],
}

/// Plays a scene on the kernel program and on the model. The calling thread moves into a new network namespace.
pub fn contest(bytes: &[u8]) {
    STAGE.with_borrow_mut(|stage| {
        let Stage { kernel, scenes } = stage.get_or_insert_with(|| {
            let kernel = Kernel::new(Features::ALL);
            let kernel = kernel.unwrap_or_else(|error| unreachable!("the kernel program cannot be loaded: {error:#}"));
            Stage { kernel, scenes: [const { None }; SCENES] }
        });
        // An empty input selects no scene.
        let Some((&seed, bytes)) = bytes.split_first() else { return };
        let seed = usize::from(seed) % SCENES;
        let (scene, all) = scenes[seed].get_or_insert_with(|| scene(seed, kernel.interfaces));
        let Ok(steps) = story(&mut Unstructured::new(bytes), all) else { return };
        let played = play(kernel, scene, &steps, steps.len().max(1));
        let played = played.unwrap_or_else(|error| unreachable!("the kernel refuses: {error:#}"));
        assert!(played.is_ok(), "seed {seed}: {}", played.err().map(|found| found.what).unwrap_or_default());
    });
}

fn scene(seed: usize, interfaces: Interfaces) -> (Scene, Vec<Step>) {
    generate::scene(seed as u64, STEPS, interfaces, Features::ALL)
}

fn story(bytes: &mut Unstructured<'_>, all: &[Step]) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    while !bytes.is_empty() && steps.len() < LONGEST {
        let mut step = bytes.choose(all)?.clone();
        if let Step::Packet { frame, .. } = &mut step {
            change(bytes, frame)?;
        }
        steps.push(step);
    }
    Ok(steps)
}

/// Changes up to seven bytes of a frame, and possibly shortens the frame.
fn change(bytes: &mut Unstructured<'_>, frame: &mut Vec<u8>) -> Result<()> {
    let how: u8 = bytes.arbitrary()?;
    for _ in 0..how & 7 {
        let at = bytes.choose_index(frame.len())?;
        let value = bytes.arbitrary()?;
        if let Some(byte) = frame.get_mut(at) {
            *byte = value;
        }
    }
    if how & 0x80 != 0 {
        // The kernel accepts no frame shorter than a link-layer header.
        frame.truncate(bytes.int_in_range(14..=frame.len().max(14))?);
    }
    Ok(())
}
