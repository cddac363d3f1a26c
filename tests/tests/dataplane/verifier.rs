//! Tests of what the programs cost in the kernel's verifier, which allows a million instructions per program. The
//! verifier counts an instruction once for every path to the instruction; old kernels examine more paths than new
//! kernels.

use anyhow::{Context as _, Result, ensure};
use aya::programs::Xdp;
use balancer_dataplane::{Capacity, Decap, KernelDataplane};
use nix::sys::utsname::uname;

const BUDGET: u32 = 650_000;
/// The verifier limit of the tracing program, which is the normal program with reports about each packet.
const TELLING_BUDGET: u32 = 720_000;

#[test]
fn when_the_programs_are_verified_then_they_stay_within_their_budgets() -> Result<()> {
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
    let mut counts =
        vec![("balancer", verified(balancer.program()?)?, BUDGET), ("decap", verified(decap.program()?)?, BUDGET)];
    match balancer.load_telling() {
        Ok(program) => counts.push(("tell_and_steer", verified(program)?, TELLING_BUDGET)),
        // Linux 6.1 cannot load the tracing program; in that case, the balancer reports the failure.
        Err(refused) if uname()?.release().as_encoded_bytes().starts_with(b"6.1.") => println!("{refused:#}"),
        Err(refused) => return Err(refused),
    }
    for (name, count, budget) in counts {
        println!("{name}: {count} verified instructions");
        ensure!(count <= budget, "{name}: {count} verified instructions, more than {budget}");
    }
    Ok(())
}

fn verified(program: &Xdp) -> Result<u32> {
    program.info()?.verified_instruction_count().context("this kernel does not count")
}
