//! The program that removes tunnel headers on a backend.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::{Context as _, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{
        HashMap, MapData, MapError, PerCpuArray,
        lpm_trie::{Key, LpmTrie},
    },
    programs::Xdp,
};
use balancer_common::map_types::{
    DECAP_OWN, DECAP_PREFIX_BASE, DECAP_VIP, DecapKey, DecapPrefix, DecapStats, MAX_DECAP_ADDRESSES, MAX_DECAP_PREFIXES,
};
use balancer_config::config::XdpMode;
use ipnet::IpNet;

use super::{
    OBJECT,
    attach::{self, Attached},
    counters::per_cpu,
    load::{load_program, not_loaded},
    rows::{address_words, family},
};

/// The loaded program, with its maps. If this value is dropped, the kernel detaches the program from its interfaces.
pub struct Decap {
    map: HashMap<MapData, DecapKey, u32>,
    addresses: BTreeMap<IpAddr, u32>,
    stats: PerCpuArray<MapData, DecapStats>,
    attached: Vec<Attached>,
    ebpf: Ebpf,
}

impl Decap {
    /// Loads the program; the program is not attached yet and has no addresses. The program accepts tunnel packets from
    /// the prefixes `from`, or from everywhere if `from` is empty.
    ///
    /// # Errors
    /// Fails if there are too many prefixes, or if the kernel refuses the program or a map.
    pub fn load(from: &[IpNet]) -> anyhow::Result<Self> {
        if from.len() > MAX_DECAP_PREFIXES as usize {
            bail!("{} prefixes: tunnels may come from at most {MAX_DECAP_PREFIXES}", from.len());
        }
        let some = u32::from(!from.is_empty());
        let mut ebpf = EbpfLoader::new()
            .override_global(aya_log::LEVEL, &0u8, true)
            .override_global("DECAP_FROM_SOME", &some, true)
            .load(OBJECT)
            .map_err(|error| not_loaded(error, &[]))?;
        let taken = |ebpf: &mut Ebpf, name| {
            ebpf.take_map(name).with_context(|| format!("the kernel object holds no map {name}"))
        };
        let map = taken(&mut ebpf, "DECAP_ADDRESSES")?.try_into()?;
        let mut prefixes: LpmTrie<MapData, DecapPrefix, u32> = taken(&mut ebpf, "DECAP_FROM")?.try_into()?;
        for prefix in from {
            prefixes.insert(&prefix_key(*prefix), 1, 0).with_context(|| format!("adding the prefix {prefix}"))?;
        }
        let stats = per_cpu(&mut ebpf, "DECAP_STATS")?;
        let mut this = Self { map, addresses: BTreeMap::new(), stats, attached: Vec::new(), ebpf };
        load_program("decap", this.program()?)?;
        Ok(this)
    }

    /// The program in the loaded object.
    ///
    /// # Errors
    /// Fails if the object contains no such program, which would be a broken build.
    pub fn program(&mut self) -> anyhow::Result<&mut Xdp> {
        Ok(self.ebpf.program_mut("decap").context("the kernel object holds no program decap")?.try_into()?)
    }

    /// The VIPs for whose packets the program removes tunnel headers.
    #[must_use]
    pub fn vips(&self) -> BTreeSet<IpAddr> {
        let vips = self.addresses.iter().filter(|(_, kinds)| **kinds & DECAP_VIP != 0);
        vips.map(|(&address, _)| address).collect()
    }

    /// From now on, accepts packets for exactly the addresses `vips`, in tunnels that end at `own`. The change does not
    /// affect packets for addresses that were already accepted.
    ///
    /// # Errors
    /// Fails if there are too many addresses (in this case, nothing has changed), or if the kernel refuses a write.
    pub fn set_addresses(&mut self, vips: &BTreeSet<IpAddr>, own: &BTreeSet<IpAddr>) -> anyhow::Result<()> {
        let mut wanted: BTreeMap<IpAddr, u32> = BTreeMap::new();
        for (addresses, kind) in [(vips, DECAP_VIP), (own, DECAP_OWN)] {
            for &address in addresses {
                *wanted.entry(address).or_default() |= kind;
            }
        }
        if wanted.len() > MAX_DECAP_ADDRESSES as usize {
            bail!("{} local addresses: tunnel headers can be stripped for at most {MAX_DECAP_ADDRESSES}", wanted.len());
        }
        let gone: Vec<IpAddr> =
            self.addresses.keys().filter(|address| !wanted.contains_key(address)).copied().collect();
        for address in gone {
            match self.map.remove(&key(address)) {
                Ok(()) | Err(MapError::KeyNotFound) => self.addresses.remove(&address),
                Err(error) => return Err(error).with_context(|| format!("taking back the address {address}")),
            };
        }
        for (address, kinds) in wanted {
            if self.addresses.get(&address) != Some(&kinds) {
                self.map.insert(key(address), kinds, 0).with_context(|| format!("adding the address {address}"))?;
                self.addresses.insert(address, kinds);
            }
        }
        Ok(())
    }

    /// Attaches the program to an interface.
    ///
    /// # Errors
    /// Fails if another program is attached, or if no allowed mode works; the error is one line that tells the user
    /// what to do.
    pub fn attach(&mut self, name: &str, ifindex: u32, mode: XdpMode) -> anyhow::Result<&Attached> {
        let attached = attach::attach(self.program()?, name, ifindex, mode, None)?;
        self.attached.push(attached);
        self.attached.last().context("just attached")
    }

    /// Detaches the program from every interface.
    ///
    /// # Errors
    /// Returns the first failure, after it has tried to detach the program from each interface.
    pub fn detach(&mut self) -> anyhow::Result<()> {
        attach::detach_all(&mut self.attached)
    }

    /// The counters of the program, added up over the CPUs.
    ///
    /// # Errors
    /// Fails if the kernel refuses the read.
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

fn prefix_key(prefix: IpNet) -> Key<DecapPrefix> {
    let address = prefix.network();
    let data = DecapPrefix { family: family(address).into(), address: address_words(address) };
    Key::new(DECAP_PREFIX_BASE + u32::from(prefix.prefix_len()), data)
}
