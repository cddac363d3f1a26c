//! Tests of the amount of kernel memory that the maps use.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result, ensure};
use balancer_dataplane::{Capacity, KernelDataplane};

/// Returns the size of every map that the test's process has open, as the kernel reports it, by the id of the map.
fn counted() -> Result<BTreeMap<u64, u64>> {
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fdinfo")? {
        // The descriptor may already be closed, like the descriptor that read this directory.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        if let (Some(id), Some(bytes)) = (field("map_id:"), field("memlock:")) {
            maps.insert(id, bytes);
        }
    }
    Ok(maps)
}

#[test]
fn when_maps_are_made_then_the_kernel_counts_the_memory_that_was_computed() -> Result<()> {
    for (backends, counted_each, clients) in [(16_384, 4096, 262_144), (65_536, 65_536, 1)] {
        let capacity = Capacity {
            slots: 1 << 20,
            services: 128,
            listeners: 256,
            ranges: 256,
            returns: 512,
            backends,
            counted: counted_each,
            clients,
            flows: 0,
        };
        let before = counted()?;
        let dataplane = KernelDataplane::load(capacity, &[1])?;
        let maps = counted()?;
        let kernels: u64 = maps.iter().filter(|(id, _)| !before.contains_key(id)).map(|(_, bytes)| bytes).sum();
        let computed = dataplane.map_bytes();
        println!("{backends} backends, {clients} clients: computed {computed}, the kernel counts {kernels} bytes");
        let largest = maps.values().max().context("no map")?;
        ensure!(*largest < kernels);
        ensure!(kernels.abs_diff(computed) * 20 < kernels, "computed {computed}, the kernel counts {kernels} bytes");
    }
    Ok(())
}
