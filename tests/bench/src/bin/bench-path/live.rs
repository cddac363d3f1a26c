//! Measures the kernel program with real frames. Each frame goes from one end of a veth pair to a program at the other
//! end. The program sends the frame back to the first end, which counts the frame.

mod programs;
mod report;
mod wire;

use std::{
    os::fd::{AsFd as _, OwnedFd},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use balancer_bench::asm::Map;
use balancer_testkit::{namespace::Namespace, prog_run};

use self::{
    programs::{bare, generator},
    report::Measured,
    wire::Wire,
};
use crate::{
    go_first,
    paths::{self, Path},
    scene::Scene,
    yardsticks::floor_by_arrays,
};

/// The number of frames in one run. Each of a million clients sends two frames.
const FRAMES: u32 = 2_000_000;
/// The largest number of frames that the kernel may drop in a run.
const LOST: u32 = FRAMES / 1000;

/// Measures all programs and prints the results. After the function, the calling thread stays in the last namespace.
pub(crate) fn perform(rounds: u32) -> Result<()> {
    let far = Namespace::new("far")?;
    let near = Namespace::new("near")?;
    let of_bare = Wire::new(&far, &near, "bare")?;
    let of_arrays = Wire::new(&far, &near, "arrays")?;
    let of_balancer = Wire::new(&far, &near, "balancer")?;
    near.enter()?;
    let scene = Scene::settled(of_balancer.near_index)?;
    let bare = bare().load_frags().context("the bare program")?;
    let arrays = floor_by_arrays().context("the yardstick")?;
    let of_bare = of_bare.attach(&near, bare.as_fd())?;
    let of_arrays = of_arrays.attach(&near, arrays.as_fd())?;
    let of_balancer = of_balancer.attach(&near, scene.program())?;
    // The far namespace generates the frames, and counts the frames that return.
    far.enter()?;
    let yardstick = "yardstick: arrays";
    let mut lanes = vec![
        Lane::new("bare: MAC addresses swapped", paths::known(), &of_bare, None)?,
        Lane::new(yardstick, paths::of_a_million_clients(yardstick), &of_arrays, None)?,
    ];
    for path in paths::live() {
        lanes.push(Lane::new(&path.name.clone(), path, &of_balancer, Some(&scene))?);
    }
    let mut measured: Vec<_> = lanes.iter().map(|lane| Measured::new(&lane.name)).collect();
    go_first();
    // The first round only makes the program find every client's row, so the benchmark ignores the first results.
    for round in 0..=rounds {
        for (lane, measured) in lanes.iter().zip(&mut measured) {
            let rate = lane.run().with_context(|| lane.name.clone())?;
            if round > 0 {
                measured.rates.push(rate);
            }
        }
    }
    report::print(&measured)
}

/// Frames of one kind, and the program that receives these frames.
struct Lane<'a> {
    name: String,
    generator: OwnedFd,
    frame: Vec<u8>,
    path: Path,
    wire: &'a Wire,
    /// The scene, if the lane measures the balancer's program.
    scene: Option<&'a Scene>,
}

impl<'a> Lane<'a> {
    fn new(name: &str, path: Path, wire: &'a Wire, scene: Option<&'a Scene>) -> Result<Self> {
        let frame = path.frame();
        // The value in the map selects the next client.
        let turn = Map::array(4, 1)?;
        turn.set(0, &(path.clients.first - 1))?;
        let generator = generator(&frame, path.clients, &turn, wire.far_index);
        let generator = generator.load_xdp().with_context(|| format!("{name}: the generator"))?;
        Ok(Self { name: name.to_owned(), generator, frame, path, wire, scene })
    }

    /// Sends [`FRAMES`] frames and returns how many frames per second came back.
    fn run(&self) -> Result<f64> {
        let counted = || self.scene.map_or(Ok(0), |scene| scene.counted(&self.path));
        let (before, steered) = (self.wire.received()?, counted()?);
        let start = Instant::now();
        prog_run::run_live(self.generator.as_fd(), &self.frame, FRAMES).context("making real frames")?;
        let took = start.elapsed();
        let arrived = self.wire.wait_for(before + u64::from(FRAMES))? - before;
        let least = u64::from(FRAMES - LOST);
        ensure!(arrived >= least, "only {arrived} of {FRAMES} frames came back");
        let steered = counted()? - steered;
        ensure!(
            self.scene.is_none() || steered >= least,
            "only {steered} of {FRAMES} frames took the path that is measured"
        );
        Ok(arrived as f64 / took.as_secs_f64())
    }
}
