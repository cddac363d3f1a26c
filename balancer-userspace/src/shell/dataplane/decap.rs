//! The program that strips tunnel headers, on a backend.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Context as _, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, MapData, MapError, PerCpuArray},
    programs::Xdp,
};
use balancer_common::map_types::{DecapKey, DecapStats, MAX_DECAP_VIPS};

use super::{
    OBJECT,
    attach::{self, Attached},
    counters::per_cpu,
    load::load_program,
    rows::{address_words, family},
};
use crate::config::model::XdpMode;

/// The loaded program and its maps. It goes off its interfaces when this is dropped.
pub struct Decap {
    vips: HashMap<MapData, DecapKey, u32>,
    served: BTreeSet<IpAddr>,
    stats: PerCpuArray<MapData, DecapStats>,
    attached: Vec<Attached>,
    ebpf: Ebpf,
}

impl Decap {
    /// Loads the program. It is attached nowhere yet, and has no VIPs.
    ///
    /// # Errors
    /// When the kernel refuses the program or a map.
    pub fn load() -> anyhow::Result<Self> {
        let mut ebpf = EbpfLoader::new()
            .override_global(aya_log::LEVEL, &0u8, true)
            .load(OBJECT)
            .context("loading the kernel program")?;
        let vips = ebpf.take_map("DECAP_VIPS").context("the kernel object holds no map DECAP_VIPS")?.try_into()?;
        let stats = per_cpu(&mut ebpf, "DECAP_STATS")?;
        let mut this = Self { vips, served: BTreeSet::new(), stats, attached: Vec::new(), ebpf };
        load_program("decap", this.program()?)?;
        Ok(this)
    }

    /// The loaded program.
    ///
    /// # Errors
    /// When the object holds none, which would be a broken build.
    pub fn program(&mut self) -> anyhow::Result<&mut Xdp> {
        Ok(self.ebpf.program_mut("decap").context("the kernel object holds no program decap")?.try_into()?)
    }

    /// The VIPs whose packets are stripped.
    #[must_use]
    pub const fn vips(&self) -> &BTreeSet<IpAddr> {
        &self.served
    }

    /// Strips packets for exactly `vips` from now on. Packets for a VIP that stays are not disturbed.
    ///
    /// # Errors
    /// When there are too many, and nothing has changed then; or when the kernel refuses a write.
    pub fn set_vips(&mut self, vips: &BTreeSet<IpAddr>) -> anyhow::Result<()> {
        if vips.len() > MAX_DECAP_VIPS as usize {
            bail!("{} local addresses: tunnel headers can be stripped for at most {MAX_DECAP_VIPS}", vips.len());
        }
        let gone: Vec<IpAddr> = self.served.difference(vips).copied().collect();
        for vip in gone {
            match self.vips.remove(&key(vip)) {
                Ok(()) | Err(MapError::KeyNotFound) => self.served.remove(&vip),
                Err(error) => return Err(error).with_context(|| format!("taking back the VIP {vip}")),
            };
        }
        let new: Vec<IpAddr> = vips.difference(&self.served).copied().collect();
        for vip in new {
            self.vips.insert(key(vip), 1, 0).with_context(|| format!("adding the VIP {vip}"))?;
            self.served.insert(vip);
        }
        Ok(())
    }

    /// Attaches the program to an interface.
    ///
    /// # Errors
    /// When another program is attached, or no allowed mode works: one line that says what to do.
    pub fn attach(&mut self, name: &str, ifindex: u32, mode: XdpMode) -> anyhow::Result<&Attached> {
        let attached = attach::attach(self.program()?, name, ifindex, mode, None)?;
        self.attached.push(attached);
        self.attached.last().context("just attached")
    }

    /// Takes the program off every interface.
    ///
    /// # Errors
    /// The first failure, after all were tried.
    pub fn detach(&mut self) -> anyhow::Result<()> {
        attach::detach_all(&mut self.attached)
    }

    /// The counters, summed over the CPUs.
    ///
    /// # Errors
    /// When the kernel refuses the read.
    pub fn stats(&self) -> anyhow::Result<DecapStats> {
        let cpus = self.stats.get(&0, 0).context("reading the counters of tunnel packets")?;
        Ok(cpus.iter().fold(DecapStats::default(), |sum, cpu| DecapStats {
            stripped: sum.stripped + cpu.stripped,
            refused: sum.refused + cpu.refused,
            malformed: sum.malformed + cpu.malformed,
            passed: sum.passed + cpu.passed,
        }))
    }
}

fn key(vip: IpAddr) -> DecapKey {
    DecapKey { address: address_words(vip), family: family(vip).into(), reserved: 0 }
}
