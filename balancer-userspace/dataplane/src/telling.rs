//! The tracing program, which steers packets and also reports them on arrival and departure. This program replaces the
//! plain program while a user traces or captures packets.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    ops::ControlFlow,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use aya::{
    Ebpf,
    maps::{
        Array, HashMap, Map, MapData, PerfEventArray,
        perf::{PerfEvent, PerfEventArrayBuffer},
    },
    programs::Xdp,
    util::online_cpus,
};
use balancer_common::tracing::{Address, Head, LEFT, MAX_KEPT, MAX_VIPS, MAX_WATCHED, Settings};
use ipnet::IpNet;
use nix::time::{ClockId, clock_gettime};

use crate::rows::{address_words, family};

/// The name of the tracing program in the object and in the kernel.
pub const PROGRAM: &str = "tell_and_steer";
/// The maximum number of bytes that the program reports of a frame.
pub const MAX_SNAPLEN: u32 = MAX_KEPT;
/// The maximum number of backends whose counters the program compares before and after a packet.
pub const WATCHED: usize = MAX_WATCHED as usize;
/// The number of pages in the ring buffer of each CPU: one MiB.
const PAGES: usize = 256;
/// The time for which the program continues to report packets if the controller does not extend it.
const LEASE: Duration = Duration::from_secs(5);

/// The packets that the program must report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The program reports only packets of these clients.
    pub client: Option<IpNet>,
    /// The virtual addresses of all services, or of the only service whose packets the program must report.
    pub vips: BTreeSet<IpAddr>,
    /// If set, the program reports only packets from or to one of `vips`; otherwise it reports all packets that it
    /// handles.
    pub only_vips: bool,
    /// The number of bytes that the program reports of each frame.
    pub snaplen: u32,
}

/// A packet with its report on arrival and its report on departure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The report of the packet on arrival.
    pub came: (Head, Vec<u8>),
    /// The report of the packet on departure, with the packet's outcome.
    pub left: (Head, Vec<u8>),
}

/// The packets that one CPU reports.
pub struct Ring {
    buffer: PerfEventArrayBuffer<MapData>,
    /// A packet that has arrived and has not departed yet.
    came: Option<(Head, Vec<u8>)>,
}

/// The settings of the tracing program, which the controller can change.
pub struct Knobs {
    settings: Array<MapData, Settings>,
    value: Settings,
    watched: Array<MapData, u32>,
    watching: Vec<u16>,
}

impl Ring {
    /// Reads the packet reports that are waiting. Returns the number of frames that were lost because the caller did
    /// not read fast enough.
    pub fn take(&mut self, mut told: impl FnMut(Told)) -> u64 {
        let came = &mut self.came;
        let taken = self.buffer.try_fold(0, |lost, event| match event {
            PerfEvent::Sample { head, tail } => {
                if let Some(frame) = frame(head, tail) {
                    let before = came.take();
                    if frame.0.stage == LEFT {
                        before.into_iter().for_each(|came| told(Told { came, left: frame.clone() }));
                    } else {
                        *came = Some(frame);
                    }
                }
                ControlFlow::<u64, u64>::Continue(lost)
            }
            PerfEvent::Lost { count } => {
                // The next record may belong to a packet whose arrival was lost.
                *came = None;
                ControlFlow::Continue(lost + count)
            }
        });
        match taken {
            ControlFlow::Continue(lost) | ControlFlow::Break(lost) => lost,
        }
    }
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.buffer.as_raw_fd()
    }
}

impl Knobs {
    /// Lets the program report packets for some more seconds from now on.
    ///
    /// # Errors
    /// Fails if the kernel refuses the write.
    pub fn go_on(&mut self) -> anyhow::Result<()> {
        let now: Duration = clock_gettime(ClockId::CLOCK_MONOTONIC)?.into();
        self.value.until = u64::try_from((now + LEASE).as_nanos())?;
        Ok(self.settings.set(0, self.value, 0)?)
    }

    /// Makes the program stop reporting.
    ///
    /// # Errors
    /// Fails if the kernel refuses the write.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.value.until = 0;
        Ok(self.settings.set(0, self.value, 0)?)
    }

    /// Adds backends to the watched backends, as far as the map has room.
    ///
    /// # Errors
    /// Fails if the kernel refuses a write.
    pub fn watch(&mut self, backends: impl IntoIterator<Item = u16>) -> anyhow::Result<()> {
        // The positions of watched backends stay the same, because the program may be processing a packet.
        for id in backends {
            if self.watching.len() < WATCHED && !self.watching.contains(&id) {
                self.watched.set(self.watching.len() as u32, u32::from(id), 0)?;
                self.watching.push(id);
            }
        }
        self.value.watched = self.watching.len() as u32;
        Ok(self.settings.set(0, self.value, 0)?)
    }
}

/// Prepares the maps of the tracing program for `filter`. Returns a ring buffer for each CPU, and the settings of the
/// program.
pub(super) fn prepare(ebpf: &Ebpf, filter: &Filter) -> anyhow::Result<(Vec<Ring>, Knobs)> {
    let mut vips: HashMap<MapData, Address, u32> = again(ebpf, "TRACE_VIPS")?.try_into()?;
    put_vips(&mut vips, &filter.vips)?;
    let mut knobs = Knobs {
        settings: again(ebpf, "TRACE_SETTINGS")?.try_into()?,
        value: settings(filter),
        watched: again(ebpf, "TRACE_WATCHED")?.try_into()?,
        watching: Vec::new(),
    };
    knobs.stop()?;
    let mut events: PerfEventArray<MapData> = again(ebpf, "TRACE_EVENTS")?.try_into()?;
    let cpus = online_cpus().map_err(|(file, error)| anyhow!("{file}: {error}"))?;
    let ring = |cpu| -> anyhow::Result<Ring> {
        let buffer = events.open(cpu, Some(PAGES)).context("the kernel opens no ring of events (perf_event_open)")?;
        Ok(Ring { buffer, came: None })
    };
    Ok((cpus.into_iter().map(ring).collect::<anyhow::Result<_>>()?, knobs))
}

/// The tracing program in the loaded object.
///
/// # Errors
/// Fails if the object contains no such program, which would be a broken build.
pub(super) fn program(ebpf: &mut Ebpf) -> anyhow::Result<&mut Xdp> {
    Ok(ebpf
        .program_mut(PROGRAM)
        .with_context(|| format!("the kernel object holds no program {PROGRAM}"))?
        .try_into()?)
}

fn settings(filter: &Filter) -> Settings {
    let (client, mask, of) = match filter.client {
        Some(client) => {
            (address_words(client.addr()), address_words(client.netmask()), u32::from(family(client.addr())))
        }
        None => Default::default(),
    };
    Settings {
        until: 0,
        client,
        mask,
        family: of,
        only_vips: u32::from(filter.only_vips),
        snaplen: filter.snaplen.min(MAX_SNAPLEN),
        watched: 0,
    }
}

fn put_vips(map: &mut HashMap<MapData, Address, u32>, vips: &BTreeSet<IpAddr>) -> anyhow::Result<()> {
    if vips.len() > MAX_VIPS as usize {
        bail!("{} virtual addresses: at most {MAX_VIPS} can be told apart; name a service", vips.len());
    }
    let before = map.keys().collect::<Result<Vec<_>, _>>()?;
    before.iter().try_for_each(|address| map.remove(address))?;
    for &vip in vips {
        let address = Address { words: address_words(vip), family: u32::from(family(vip)), reserved: 0 };
        map.insert(address, 1, 0)?;
    }
    Ok(())
}

/// Splits a record into its head and the bytes of the frame, without padding. `None`: the record is invalid.
fn frame(first: &[u8], second: &[u8]) -> Option<(Head, Vec<u8>)> {
    let mut bytes = first.to_vec();
    bytes.extend_from_slice(second);
    let head: Head = bytemuck::pod_read_unaligned(bytes.get(..size_of::<Head>())?);
    let frame = bytes.get(size_of::<Head>()..)?.get(..head.kept as usize)?.to_vec();
    Some((head, frame))
}

/// A second file descriptor of a map.
fn again(ebpf: &Ebpf, name: &str) -> anyhow::Result<Map> {
    let missing = || anyhow!("the kernel object holds no map {name}");
    let map = ebpf.map(name).ok_or_else(missing)?;
    let copy = |data: &MapData| Ok::<_, anyhow::Error>(MapData::from_fd(data.fd().as_fd().try_clone_to_owned()?)?);
    if let Map::Array(data) = map {
        Ok(Map::Array(copy(data)?))
    } else if let Map::HashMap(data) = map {
        Ok(Map::HashMap(copy(data)?))
    } else if let Map::PerfEventArray(data) = map {
        Ok(Map::PerfEventArray(copy(data)?))
    } else {
        Err(missing())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_frame_wraps_in_its_ring_then_it_is_whole_and_without_padding() {
        let head = Head { stage: LEFT, kept: 5, ..Head::default() };
        let mut bytes = bytemuck::bytes_of(&head).to_vec();
        bytes.extend_from_slice(b"frame\0\0\0");
        for cut in [0, 20, 50, bytes.len()] {
            let (first, second) = bytes.split_at(cut);
            assert_eq!(frame(first, second), Some((head, b"frame".to_vec())), "{cut}");
        }
        assert_eq!(frame(&bytes[..50], &[]), None, "it is cut off");
        assert_eq!(frame(&bytes[..20], &[]), None);
    }

    #[test]
    fn when_a_prefix_of_clients_is_asked_for_then_its_bits_alone_count() {
        let filter = |client: &str| Filter {
            client: Some(client.parse().unwrap()),
            vips: BTreeSet::new(),
            only_vips: true,
            snaplen: u32::MAX,
        };
        let of = settings(&filter("192.0.2.0/24"));
        assert_eq!(of.client[0].to_ne_bytes(), [192, 0, 2, 0]);
        assert_eq!((of.mask[0].to_ne_bytes(), of.mask[1]), ([255, 255, 255, 0], 0));
        assert_eq!((of.snaplen, of.until), (MAX_SNAPLEN, 0));
        let of = settings(&filter("2001:db8::/32"));
        assert_eq!((of.mask, of.family), ([u32::MAX, 0, 0, 0], u32::from(family("::1".parse().unwrap()))));
    }
}
