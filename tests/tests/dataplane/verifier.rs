//! Tests of the cost of both programs in the kernel's verifier. Its limit is a million instructions for each, counted
//! once for every way that leads to them; old kernels count more of them than new ones.

use anyhow::{Context as _, Result, ensure};
use aya::programs::Xdp;
use balancer_dataplane::{Capacity, Decap, KernelDataplane};

const BUDGET: u32 = 500_000;

#[test]
fn both_programs_are_verified_within_the_budget() -> Result<()> {
    let capacity = Capacity {
        slots: 1 << 16,
        services: 16,
        listeners: 16,
        ranges: 16,
        returns: 16,
        backends: 16,
        counted: 16,
        clients: 1024,
        flows: 0,
    };
    let mut balancer = KernelDataplane::load(capacity, &[1])?;
    let mut decap = Decap::load(&[])?;
    for (name, program) in [("balancer", balancer.program()?), ("decap", decap.program()?)] {
        let count = verified(program)?;
        println!("{name}: {count} verified instructions");
        ensure!(count <= BUDGET, "{name}: {count} verified instructions, more than {BUDGET}");
    }
    Ok(())
}

fn verified(program: &Xdp) -> Result<u32> {
    program.info()?.verified_instruction_count().context("this kernel does not count")
}
