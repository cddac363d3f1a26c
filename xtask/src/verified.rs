//! `cargo xtask verified`.

use anyhow::Result;

use crate::{
    build::{Aim, programs},
    command::{built, ensure_root, program, run},
    setup::{Purpose, setup},
};

/// The program that loads the kernel program and reads the verifier's log.
const PROGRAM: &str = "verified";

/// Prints the instructions that the verifier of this machine's kernel examines: the totals of the sets of features in
/// `balancer-ebpf/verified.txt`, or the functions of the program with `features`.
pub(crate) fn verified(features: Option<&str>) -> Result<()> {
    ensure_root("loading the kernel program", "verified")?;
    setup(Purpose::Run)?;
    programs(&[PROGRAM], Aim::Test)?;
    run(program(built("debug")?.join(PROGRAM)).args(features))
}
