//! Tests of what the programs cost in the kernel's verifier, which allows a million instructions per program. The
//! verifier counts an instruction once for every path to the instruction; old kernels examine more paths than new
//! kernels.

use anyhow::{Context as _, Result, ensure};
use aya::programs::Xdp;
use balancer_dataplane::{Decap, KernelDataplane};
use balancer_tests::verified::{capacity, sets};
use nix::sys::utsname::uname;

const BUDGET: u32 = 650_000;
/// The verifier limit of the tracing program, which is the normal program with reports about each packet.
const TELLING_BUDGET: u32 = 720_000;

#[test]
fn when_the_programs_are_verified_then_they_stay_within_their_budgets() -> Result<()> {
    let mut balancer = KernelDataplane::load(capacity(), &[1])?;
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

/// A change that needs more instructions than this part of the present number changes the table on purpose.
const TOLERANCE_PERCENT: u32 = 5;

#[test]
fn when_a_set_of_features_is_verified_then_it_takes_as_many_instructions_as_the_table_says() -> Result<()> {
    let release = uname()?.release().to_string_lossy().into_owned();
    let mut grown = Vec::new();
    for set in sets()? {
        let mut balancer = KernelDataplane::load_with_features(capacity(), &[1], set.features)?;
        let count = verified(balancer.program()?)?;
        let expected = set.expected(&release);
        println!("{}: {count} verified instructions, expected {expected:?}", set.name);
        if let Some(expected) = expected.filter(|expected| count > expected + expected * TOLERANCE_PERCENT / 100) {
            grown.push(format!("{}: {count} verified instructions instead of {expected}", set.name));
        }
    }
    ensure!(grown.is_empty(), "{}; if that is wanted, change balancer-ebpf/verified.txt", grown.join(", "));
    Ok(())
}

fn verified(program: &Xdp) -> Result<u32> {
    program.info()?.verified_instruction_count().context("this kernel does not count")
}
