//! Observing what the XDP program does with packets, by programs that run where it is entered and left. They are attached as
//! long as an [`Observer`] lives.

mod calls;
mod target;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs, io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use anyhow::{Context as _, anyhow, bail};
use aya::maps::{Array, Map, MapData, MapInfo, RingBuf};
use aya_obj::{Object, generated::bpf_insn};
use balancer_common::{
    map_types::{BACKEND_SECOND, BACKEND_V6, BackendRow, BackendRows, BackendStanding, Mac},
    tracing::{Address, Head, MAX_KEPT, MAX_VIPS, MAX_WATCHED, Observed, Settings},
};
use ipnet::IpNet;

use self::{
    calls::{At, Function},
    target::Target,
};
use crate::{
    counter_rows::{BACKENDS as BACKEND_STATS, CounterRows, Cpus},
    kernel_types, privileges,
    rows::{address_words, family},
};

/// The compiled programs.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/balancer-observer"));

/// Maps of the observed program that are read.
const FOREIGN: [&str; 4] = ["DROP_STATS", "REPLY_STATS", "MEMORY_STATS", BACKEND_STATS];
const PROGRAMS: [(&str, At); 2] = [("left", At::Exit), ("entered", At::Entry)];

/// Bytes of a frame that can be kept, at most.
pub const MAX_SNAPLEN: u32 = MAX_KEPT as u32;

/// What is to be observed.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Only the packets of these clients.
    pub client: Option<IpNet>,
    /// All virtual addresses, or those of the only service.
    pub vips: BTreeSet<IpAddr>,
    /// Only packets from or for one of `vips`; otherwise all that the program does something with.
    pub only_vips: bool,
    /// Bytes of each frame to keep.
    pub snaplen: u32,
    /// Packets to observe, at most.
    pub limit: u64,
}

/// A packet as it came and as it left.
#[derive(Clone, Debug)]
pub struct Observation {
    /// What was found out about it.
    pub head: Head,
    /// The frame as it came, or the beginning of it.
    pub came: Vec<u8>,
    /// The frame as it left.
    pub left: Vec<u8>,
}

/// How a backend is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The backend's id.
    pub id: u16,
    /// Its address.
    pub address: IpAddr,
    /// The port that packets are given, if one is.
    pub port: Option<u16>,
    /// The interface that leads to it.
    pub ifindex: u32,
    /// The hardware address that packets are sent to.
    pub mac: Mac,
    /// Whether it is in use.
    pub in_use: bool,
}

/// The attached programs. They go when this is dropped, or with this process.
pub struct Observer {
    events: RingBuf<MapData>,
    observed: Array<MapData, Observed>,
    watched: Array<MapData, u32>,
    settings: Array<MapData, Settings>,
    setting: Settings,
    watching: Vec<u16>,
    backends: Array<MapData, BackendRows>,
    hops: Vec<Hop>,
    _own: HashMap<String, MapData>,
    _attached: Vec<OwnedFd>,
}

impl Observer {
    /// Attaches to the balancer's programs among those with these ids.
    ///
    /// # Errors
    /// When none is the balancer's, or this process may not or this kernel cannot: in words.
    pub fn attach(programs: &BTreeSet<u32>, filter: &Filter) -> anyhow::Result<Self> {
        privileges::may_observe()?;
        let mut targets = Vec::new();
        for &id in programs {
            targets.extend(Target::open(id)?);
        }
        let Some(first) = targets.first() else {
            bail!("no interface of this network namespace has the balancer's XDP program");
        };
        let stats = first.map(BACKEND_STATS)?;
        let rows = CounterRows::of(entries(&stats)?, Cpus::here()?.possible).rows;
        let setting = settings(filter, rows)?;
        let backends = array(first.map("BACKENDS")?)?;

        let object = Object::parse(OBJECT).map_err(|error| anyhow!("the observing programs: {error}"))?;
        let mut own = HashMap::new();
        for (name, map) in &object.maps {
            if !FOREIGN.contains(&name.as_str()) {
                let made = MapData::create(map.clone(), name, None);
                own.insert(name.clone(), made.with_context(|| format!("making the map {name}"))?);
            }
        }
        add_vips(&own, &filter.vips)?;
        let mut this = Self {
            events: RingBuf::try_from(Map::RingBuf(again(&own, "EVENTS")?))?,
            observed: array(again(&own, "OBSERVED")?)?,
            watched: array(again(&own, "WATCHED")?)?,
            settings: array(again(&own, "SETTINGS")?)?,
            setting,
            watching: Vec::new(),
            backends,
            hops: Vec::new(),
            _own: HashMap::new(),
            _attached: Vec::new(),
        };
        this.watch()?;
        for target in &targets {
            this._attached.extend(attach(&own, target)?);
        }
        this._own = own;
        Ok(this)
    }

    /// The next observation, if there is one.
    pub fn take(&mut self) -> Option<Observation> {
        let item = self.events.next()?;
        let (head, bytes) = item.split_at_checked(size_of::<Head>())?;
        let head: Head = bytemuck::pod_read_unaligned(head);
        let came = bytes.get(..head.came_kept as usize)?.to_vec();
        let left = bytes.get(head.came_kept as usize..)?.get(..head.left_kept as usize)?.to_vec();
        Some(Observation { head, came, left })
    }

    /// How many observations were lost because they were not taken fast enough.
    ///
    /// # Errors
    /// When the kernel refuses the read.
    pub fn lost(&self) -> anyhow::Result<u64> {
        Ok(self.observed.get(&0, 0)?.lost)
    }

    /// How backends are reached, as of the last [`watch`](Self::watch).
    #[must_use]
    pub fn hops(&self) -> &[Hop] {
        &self.hops
    }

    /// Looks which backends there are, and watches those that have come.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn watch(&mut self) -> anyhow::Result<()> {
        let mut hops = Vec::new();
        for id in 1..self.backends.len().min(u32::from(u16::MAX)) {
            let rows = self.backends.get(&id, 0).context("reading the rows of backends")?;
            hops.extend(hop(id as u16, &rows));
        }
        self.hops = hops;
        // Places stay as they are: a packet may be on its way.
        let (used, unused): (Vec<&Hop>, Vec<&Hop>) = self.hops.iter().partition(|hop| hop.in_use);
        for hop in used.into_iter().chain(unused) {
            if self.watching.len() < MAX_WATCHED as usize && !self.watching.contains(&hop.id) {
                self.watched.set(self.watching.len() as u32, u32::from(hop.id), 0)?;
                self.watching.push(hop.id);
            }
        }
        self.setting.watched = self.watching.len() as u32;
        Ok(self.settings.set(0, self.setting, 0)?)
    }
}

impl AsFd for Observer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

impl AsRawFd for Observer {
    fn as_raw_fd(&self) -> RawFd {
        self.events.as_raw_fd()
    }
}

fn settings(filter: &Filter, rows: u32) -> anyhow::Result<Settings> {
    let btf = fs::read(kernel_types::OWN)
        .with_context(|| format!("the kernel does not tell of its types ({})", kernel_types::OWN))?;
    let wanted =
        [("xdp_buff", "rxq"), ("xdp_rxq_info", "dev"), ("xdp_rxq_info", "queue_index"), ("net_device", "ifindex")];
    let [rxq, device, queue, ifindex] = kernel_types::offsets(&btf, wanted)?;
    let (client, mask, of) = match filter.client {
        Some(client) => {
            (address_words(client.addr()), address_words(client.netmask()), u32::from(family(client.addr())))
        }
        None => Default::default(),
    };
    Ok(Settings {
        limit: filter.limit,
        client,
        mask,
        family: of,
        only_vips: u32::from(filter.only_vips),
        snaplen: filter.snaplen.min(MAX_SNAPLEN),
        watched: 0,
        rows,
        rxq,
        device,
        queue,
        ifindex,
        reserved: 0,
    })
}

fn add_vips(own: &HashMap<String, MapData>, vips: &BTreeSet<IpAddr>) -> anyhow::Result<()> {
    if vips.len() > MAX_VIPS as usize {
        bail!("{} virtual addresses: at most {MAX_VIPS} can be told apart", vips.len());
    }
    let map = Map::HashMap(again(own, "VIPS")?);
    let mut map: aya::maps::HashMap<MapData, Address, u32> = map.try_into()?;
    for &vip in vips {
        let address = Address { words: address_words(vip), family: u32::from(family(vip)) };
        map.insert(address, 1, 0)?;
    }
    Ok(())
}

/// Loads and attaches both programs for one program, the one at the exit first: it does nothing by itself.
fn attach(own: &HashMap<String, MapData>, target: &Target) -> anyhow::Result<Vec<OwnedFd>> {
    let mut object = Object::parse(OBJECT).map_err(|error| anyhow!("the observing programs: {error}"))?;
    let foreign =
        FOREIGN.iter().map(|&name| Ok((name, target.map(name)?))).collect::<anyhow::Result<Vec<(&str, MapData)>>>()?;
    let maps = object.maps.clone();
    let places = own.iter().map(|(name, data)| (name.as_str(), data));
    let places = places.chain(foreign.iter().map(|(name, data)| (*name, data)));
    let placed = places.filter_map(|(name, data)| Some((name, data.fd().as_fd().as_raw_fd(), maps.get(name)?)));
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_maps(placed, &sections).context("the maps of the observing programs")?;
    object.relocate_calls(&sections).context("the observing programs")?;
    let function = Function { program: target.program.as_fd(), id: target.entry };
    let mut attached = Vec::new();
    for (name, at) in PROGRAMS {
        let program = object.programs.get(name).and_then(|program| object.functions.get(&program.function_key()));
        let code = &program.with_context(|| format!("the object holds no program {name}"))?.instructions;
        let loaded = load(name, code, at, function)?;
        let link = calls::attach(loaded.as_fd()).map_err(|error| refused("to attach to the XDP program", &error))?;
        attached.push(link);
    }
    Ok(attached)
}

fn load(name: &str, code: &[bpf_insn], at: At, function: Function<'_>) -> anyhow::Result<OwnedFd> {
    const LOG: usize = 1 << 20;
    let error = match calls::load(name, code, at, function, &mut []) {
        Ok(loaded) => return Ok(loaded),
        Err(error) => error,
    };
    let mut log = vec![0; LOG];
    match calls::load(name, code, at, function, &mut log) {
        Ok(loaded) => Ok(loaded),
        Err(_) => {
            let text = String::from_utf8_lossy(&log);
            let mut lines = text.trim_end_matches('\0').lines().rev().map(str::trim);
            let word = lines.find(|line| !line.is_empty() && !line.starts_with("processed "));
            let error = refused("to load what observes the XDP program", &error);
            Err(match word {
                Some(word) => error.context(format!("the verifier says: {word}")),
                None => error,
            })
        }
    }
}

/// The kernel's own number for what it has no support for.
const ENOTSUPP: i32 = 524;

/// The kernel's refusal in words.
fn refused(what: &str, error: &io::Error) -> anyhow::Error {
    let kernel = privileges::kernel().unwrap_or_else(|_| "of unknown version".to_owned());
    let why = match error.raw_os_error() {
        Some(ENOTSUPP | libc::EOPNOTSUPP) => {
            "; it has no trampolines for BPF programs (fentry, fexit) on this architecture, or its JIT compiler is off"
        }
        Some(libc::EBUSY) => "; another tool that cannot share the program observes it",
        Some(libc::EPERM) => "; a policy of this machine keeps programs from being attached to others (fentry, fexit)",
        _ => "",
    };
    anyhow!("Linux {kernel} refuses {what}: {error}{why}")
}

/// Another handle of one of these maps.
fn again(own: &HashMap<String, MapData>, name: &str) -> anyhow::Result<MapData> {
    let map = own.get(name).with_context(|| format!("the observing object holds no map {name}"))?;
    Ok(MapData::from_fd(map.fd().as_fd().try_clone_to_owned()?)?)
}

fn array<T: aya::Pod>(map: MapData) -> anyhow::Result<Array<MapData, T>> {
    Ok(Map::Array(map).try_into()?)
}

fn entries(map: &MapData) -> anyhow::Result<u32> {
    let info: MapInfo = map.info()?;
    Ok(info.max_entries())
}

fn hop(id: u16, rows: &BackendRows) -> Option<Hop> {
    let standing = BackendStanding::from_word(rows.rows[0].standing);
    let row = rows.rows[usize::from(standing.flags & BACKEND_SECOND != 0)];
    let address = address(&row, standing.flags & BACKEND_V6 != 0);
    let BackendRow { macs_start, ifindex, port, .. } = row;
    let [a, b, c, d, e, f, ..] = macs_start.to_ne_bytes();
    let in_use = standing.flags & !(BACKEND_SECOND | BACKEND_V6) != 0;
    (row.address != [0; 4]).then_some(Hop {
        id,
        address,
        port: (port != 0).then(|| u16::from_be(port)),
        ifindex,
        mac: [a, b, c, d, e, f],
        in_use,
    })
}

fn address(row: &BackendRow, is_v6: bool) -> IpAddr {
    let bytes: [u8; 16] = bytemuck::cast(row.address);
    if is_v6 {
        IpAddr::from(bytes)
    } else {
        let [a, b, c, d, ..] = bytes;
        IpAddr::from([a, b, c, d])
    }
}
