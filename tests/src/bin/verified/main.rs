//! `cargo xtask verified`: loads the kernel program, and prints how many instructions the verifier needs for it.

mod log;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use balancer_common::features::Features;
use balancer_dataplane::KernelDataplane;
use balancer_tests::verified::{capacity, features, sets};
use clap::Parser;
use nix::sys::utsname::uname;

/// Print the instructions that the kernel's verifier examines: totals of the sets in balancer-ebpf/verified.txt, or
/// the functions of the program with some features.
#[derive(Parser)]
struct Options {
    /// Print the functions of the program with these features, such as v4,nat, or with all.
    features: Option<String>,
}

fn main() -> ExitCode {
    match perform(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(options: &Options) -> Result<()> {
    let release = uname()?.release().to_string_lossy().into_owned();
    println!("Linux {release}");
    let Some(names) = &options.features else { return totals(&release) };
    let features = features(names)?;
    let log = log::of_next_load(|| verified(features).map(drop))?;
    println!("{:>9} {:>6} {:>6}  function", "verified", "own", "ratio");
    for function in log::functions(&log) {
        let ratio = function.verified as f64 / function.own as f64;
        println!("{:>9} {:>6} {ratio:>6.1}  {}", function.verified, function.own, function.name);
    }
    println!("{:>9} in total, with states that the verifier has examined before", verified(features)?);
    Ok(())
}

fn totals(release: &str) -> Result<()> {
    println!("{:<12} {:>9} {:>9}", "set", "verified", "expected");
    for set in sets()? {
        let expected = set.expected(release).map_or_else(|| "-".to_owned(), |expected| expected.to_string());
        println!("{:<12} {:>9} {expected:>9}", set.name, verified(set.features)?);
    }
    Ok(())
}

/// Loads the program, and returns the number of verified instructions.
fn verified(features: Features) -> Result<u32> {
    let mut dataplane = KernelDataplane::load_with_features(capacity(), &[1], features)?;
    dataplane.program()?.info()?.verified_instruction_count().context("this kernel does not count")
}
