//! Finds maps and programs in the loaded kernel object by their names.

use anyhow::{Context as _, bail};
use aya::{Ebpf, maps::MapData, programs::Xdp};

/// The name of the plain program in messages and in the object.
pub(super) const PLAIN: &str = "balancer";

/// Takes an array map out of the loaded object.
///
/// # Errors
/// Fails if the object has no array with this name, which would be a broken build, or if the array was taken before.
pub(super) fn take(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<MapData> {
    let Some(aya::maps::Map::Array(map)) = ebpf.take_map(name) else {
        bail!("the kernel object holds no array {name}")
    };
    Ok(map)
}

/// The XDP program that steers packets.
///
/// # Errors
/// Fails if the object contains no such program, which would be a broken build.
pub(super) fn program(ebpf: &mut Ebpf) -> anyhow::Result<&mut Xdp> {
    Ok(ebpf.program_mut(PLAIN).context("the kernel object holds no program")?.try_into()?)
}
