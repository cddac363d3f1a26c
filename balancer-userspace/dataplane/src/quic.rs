//! The formats and the server IDs of QUIC connection IDs in the kernel's maps. The controller never rewrites a row that
//! the program may read: a service whose formats change gets another row.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::Context as _;
use aya::{
    Ebpf,
    maps::{HashMap as HashTable, MapData, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use balancer_common::quic::{QUIC_LEARNS, QUIC_ROWS, QUIC_SECRET, QuicFormat, QuicRow, QuicServer, QuicStats};
use balancer_config::quic::{Format, Keyed, QuicConfig, ServerId};
use balancer_control::io::{BackendId, QuicSpec, ServiceId, ServiceSpec};
use bytemuck::Zeroable as _;

use super::{mapped::MappedArray, object::take};

/// The QUIC maps; see the [module](self).
pub(super) struct QuicTable {
    rows: MappedArray<QuicRow>,
    servers: HashTable<MapData, QuicServer, u32>,
    stats: PerCpuArray<MapData, QuicStats>,
    /// The row of each service in the directory, and the contents of this row.
    of: BTreeMap<ServiceId, (u8, QuicRow)>,
    written: HashMap<QuicServer, BackendId>,
    /// The number of known clients that QUIC connections have moved away, by backend.
    migrated: MappedArray<u64>,
}

impl QuicTable {
    /// Makes a value that contains no services.
    ///
    /// # Errors
    /// Fails if the object does not contain the maps, which would be a broken build.
    pub(super) fn new(ebpf: &mut Ebpf) -> anyhow::Result<Self> {
        let servers = ebpf.take_map("QUIC_SERVERS").context("the kernel object holds no map QUIC_SERVERS")?;
        let stats = ebpf.take_map("QUIC_STATS").context("the kernel object holds no map QUIC_STATS")?;
        Ok(Self {
            rows: MappedArray::new(take(ebpf, "QUIC")?)?,
            servers: servers.try_into()?,
            stats: stats.try_into()?,
            of: BTreeMap::new(),
            written: HashMap::new(),
            migrated: MappedArray::new(take(ebpf, "MIGRATED")?)?,
        })
    }

    /// Writes the rows that the program will read after `services` are published. When the caller calls this function,
    /// the program must no longer read the rows from before the last publication. Returns the rows for each service.
    ///
    /// # Errors
    /// Fails if the map has no room, or if the kernel refuses a write; in this case, the rows that the program reads
    /// stay unchanged.
    pub(super) fn prepare(&mut self, services: &[ServiceSpec]) -> anyhow::Result<Prepared> {
        let mut taken: HashSet<u8> = self.of.values().map(|(row, _)| *row).collect();
        let listed: HashSet<ServiceId> = quics(services).map(|(id, _)| id).collect();
        let kept = self.of.iter().filter(|(id, _)| listed.contains(id));
        let mut counters: HashSet<u32> = kept.map(|(_, (_, row))| row.counters).collect();
        let (mut of, mut servers) = (BTreeMap::new(), HashMap::new());
        for (id, spec) in quics(services) {
            let before = self.of.get(&id).copied();
            let counted = match before {
                Some((_, row)) => row.counters,
                None => self.new_counters(&mut counters)?,
            };
            let row = QuicRow { counters: counted, ..row(&spec.config) };
            let place = match before {
                Some((place, before)) if before == row => place,
                _ => {
                    let free = (1..=u8::MAX).find(|place| !taken.contains(place));
                    let place = free.context("there is no room for more services with quic; remove some")?;
                    taken.insert(place);
                    self.rows.store(usize::from(place), row);
                    place
                }
            };
            of.insert(id, (place, row));
            let key = |server: &ServerId| key(id, server);
            servers.extend(spec.servers.iter().map(|(backend, server)| (key(server), *backend)));
        }
        for (server, backend) in &servers {
            if self.written.get(server) != Some(backend) {
                self.servers.insert(server, u32::from(backend.0), 0).context("writing a server ID of quic")?;
                self.written.insert(*server, *backend);
            }
        }
        Ok(Prepared { of, servers })
    }

    /// Records that the prepared rows are now published.
    ///
    /// # Errors
    /// Fails if the kernel refuses to remove a server ID.
    pub(super) fn published(&mut self, Prepared { of, servers }: Prepared) -> anyhow::Result<()> {
        self.of = of;
        let gone: Vec<QuicServer> =
            self.written.keys().filter(|server| !servers.contains_key(server)).copied().collect();
        for server in gone {
            self.servers.remove(&server).context("removing a server ID of quic")?;
            self.written.remove(&server);
        }
        Ok(())
    }

    /// The trait method is `Dataplane::quic_stats`.
    pub(super) fn stats(&self, id: ServiceId) -> anyhow::Result<QuicStats> {
        let mut sum = QuicStats::default();
        if let Some((_, row)) = self.of.get(&id) {
            let values = self.stats.get(&row.counters, 0).context("reading counters of quic")?;
            values.iter().for_each(|value| sum += value);
        }
        Ok(sum)
    }

    /// The trait method is `Dataplane::migrated`.
    pub(super) fn migrated(&self, id: BackendId) -> u64 {
        self.migrated.load(usize::from(id.0))
    }

    /// Starts to count clients for the backend with this id.
    pub(super) fn begin(&mut self, id: BackendId) {
        self.migrated.store(usize::from(id.0), 0);
    }

    fn new_counters(&mut self, taken: &mut HashSet<u32>) -> anyhow::Result<u32> {
        let free = (0..QUIC_ROWS / 2).find(|counters| !taken.contains(counters));
        let free = free.context("there is no room for more services with quic; remove some")?;
        let cpus = nr_cpus().map_err(|(_, error)| error).context("the number of CPUs")?;
        self.stats.set(free, PerCpuValues::try_from(vec![QuicStats::default(); cpus])?, 0)?;
        taken.insert(free);
        Ok(free)
    }
}

/// Rows and server IDs that the program will use after the publication of services.
pub(super) struct Prepared {
    of: BTreeMap<ServiceId, (u8, QuicRow)>,
    servers: HashMap<QuicServer, BackendId>,
}

impl Prepared {
    /// The row of a service; 0: the service has none.
    pub(super) fn row(&self, id: ServiceId) -> u8 {
        self.of.get(&id).map_or(0, |(place, _)| *place)
    }
}

fn quics(services: &[ServiceSpec]) -> impl Iterator<Item = (ServiceId, &QuicSpec)> {
    services.iter().filter_map(|spec| Some((spec.id, spec.quic.as_ref()?)))
}

fn key(service: ServiceId, server: &ServerId) -> QuicServer {
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(server.bytes()).for_each(|(byte, of)| *byte = *of);
    let all = u128::from_be_bytes(bytes);
    let length = server.bytes().len() as u16;
    QuicServer { id: [(all >> 64) as u64, all as u64], service: service.0, length, reserved: 0 }
}

fn row(config: &QuicConfig) -> QuicRow {
    let learns = if config.learns() { QUIC_LEARNS } else { 0 };
    let secret = if config.is_secret() { QUIC_SECRET } else { 0 };
    let mut row = QuicRow { flags: learns | secret, ..QuicRow::zeroed() };
    for ((number, Keyed { config: bits, key }), format) in (1..).zip(config.live()).zip(&mut row.formats) {
        *format = QuicFormat::new(config.server_id_length, config.nonce_length, key.map(|key| key.0));
        match config.format {
            // In this format, the first byte of a connection ID is arbitrary.
            Format::Nlb => row.format_of = [number; 8],
            Format::Draft => row.format_of[usize::from(*bits % 8)] = number,
        }
    }
    row
}
