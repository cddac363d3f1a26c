//! The loaded program that strips tunnel headers.

use std::{
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
};

use ipnet::IpNet;

use crate::prog_run::{self, Ran};

/// The loaded program that strips tunnel headers on a backend.
pub struct Decap {
    dataplane: balancer_dataplane::Decap,
    program: OwnedFd,
}

impl Decap {
    /// Loads the program for the local VIPs `vips`, and for tunnels from the prefixes `from` to the addresses `own`.
    ///
    /// # Errors
    /// Fails if the process is not root, or if the kernel returns an error.
    pub fn new(vips: &[IpAddr], own: &[IpAddr], from: &[IpNet]) -> anyhow::Result<Self> {
        let mut dataplane = balancer_dataplane::Decap::load(from)?;
        dataplane.set_addresses(&vips.iter().copied().collect(), &own.iter().copied().collect())?;
        let program = dataplane.program()?.fd()?.as_fd().try_clone_to_owned()?;
        Ok(Self { dataplane, program })
    }

    /// Runs the program on one frame.
    ///
    /// # Errors
    /// Fails if the kernel refuses to run the program.
    pub fn run(&self, frame: &[u8]) -> anyhow::Result<Ran> {
        Ok(prog_run::run(self.program.as_fd(), frame, 1, 1)?)
    }

    /// The counters of stripped, refused, malformed and passed packets.
    ///
    /// # Errors
    /// Fails if the kernel refuses the read.
    pub fn counters(&self) -> anyhow::Result<[u64; 4]> {
        let stats = self.dataplane.stats()?;
        Ok([stats.stripped, stats.refused, stats.malformed, stats.passed])
    }
}
