//! The room in the maps of data paths, and the room that services need.

use std::{collections::HashSet, sync::Arc};

use balancer_common::map_types::{Forwarding, MOST_BACKEND_ROWS, SLOTS_PER_LINE};
use balancer_config::{
    config::ServiceConfig,
    words::{counted, grouped},
};
use serde::{Deserialize, Serialize};

/// The maximum number of a `snat` service's backends whose address belongs to this machine.
const MOST_LOCAL: usize = 64;

/// The room in the maps of a data path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// The number of lines in the map of slots.
    pub lines: u32,
    /// The number of services, one for each family of a configured service.
    pub services: u32,
    /// The number of listeners and VIP addresses.
    pub listeners: u32,
    /// The number of return rows, including those that mark addresses.
    pub returns: u32,
    /// The number of rows for backends, a power of two.
    pub backends: u32,
    /// Whether there is a table of connections, which `snat` services need.
    pub flows: bool,
    /// Whether the maps grow while the program runs; the numbers of lines, services, listeners and return rows are then
    /// the largest possible numbers.
    #[serde(default)]
    pub grows: bool,
}

/// The room that services need in the maps of a data path while the services change, and afterwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// The number of lines in the map of slots; 0 if no lookup table grows.
    pub lines: u64,
    /// The number of services, one for each family of a configured service; every service id is below this number.
    pub services: u32,
    /// The number of listeners and VIP addresses.
    pub listeners: u32,
    /// The number of disjoint port ranges.
    pub ranges: u32,
    /// The number of return rows, including those that mark addresses.
    pub returns: u32,
}

impl Need {
    pub(crate) fn of(tables: Lines, rows: Rows) -> Self {
        let number = |rows: usize| u32::try_from(rows).unwrap_or(u32::MAX);
        Self {
            lines: if tables.grows { tables.all() } else { 0 },
            services: number(rows.services),
            listeners: number(rows.listeners),
            ranges: number(rows.ranges),
            returns: number(rows.returns),
        }
    }

    /// The same need, for services whose ids are all below `services`.
    pub(crate) fn with_ids_below(self, services: u32) -> Self {
        Self { services: self.services.max(services), ..self }
    }
}

/// The number of lines of a table with this number of slots.
#[must_use]
pub const fn lines(slots: u32) -> u32 {
    slots.div_ceil(SLOTS_PER_LINE)
}

/// The number of return rows for this number of backends of a service, one for each listener and one for each address.
#[must_use]
pub fn returns(service: &ServiceConfig, backends: usize) -> usize {
    let come_back = match service.forwarding {
        Forwarding::Nat => backends,
        Forwarding::Snat => backends.min(MOST_LOCAL),
        Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue => 0,
    };
    come_back * (service.listen.len() + 1)
}

/// The rows that services need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rows {
    services: usize,
    listeners: usize,
    ranges: usize,
    returns: usize,
    snat: bool,
}

/// The room that the data path lacks for a change.
struct Lack {
    /// The need, as the beginning of a sentence.
    what: String,
    /// The room of the data path.
    has: String,
    /// Whether the room cannot be larger.
    is_most: bool,
}

impl Lack {
    /// The sentence about the data path that is called `whose`, without advice.
    fn told(&self, whose: &str) -> String {
        let Self { what, has, is_most } = self;
        format!("{what}, and {whose} {} {has}", if *is_most { "takes at most" } else { "has" })
    }

    /// The same sentence, with advice.
    fn advised(&self, whose: &str) -> String {
        self.told(whose) + if self.is_most { "" } else { "; a restart makes room" }
    }
}

impl Rows {
    fn of(services: &[Arc<ServiceConfig>]) -> Self {
        let mut rows = Self::default();
        services.iter().for_each(|service| rows.add(service, service.backends.len()));
        rows
    }

    pub(crate) fn add(&mut self, service: &ServiceConfig, backends: usize) {
        self.services += service.families().len();
        // Each listener may have a VIP address of its own.
        self.listeners += 2 * service.listen.len();
        // Nested ranges are split into at most twice as many disjoint ranges.
        self.ranges += 2 * service.listen.iter().filter(|listener| listener.ports.single().is_none()).count();
        self.returns += returns(service, backends);
        self.snat |= service.forwarding == Forwarding::Snat;
    }

    /// The need of these rows, if it exceeds both the rows `now` and the `room`.
    fn lack(self, room: &Room, now: Self) -> Option<Lack> {
        let rows = [
            (now.services, self.services, "service", room.services),
            (now.listeners, self.listeners, "listener row", room.listeners),
            (now.returns, self.returns, "return row", room.returns),
        ];
        let short = rows.into_iter().find(|&(now, wanted, _, room)| wanted > now && wanted > room as usize);
        if let Some((_, wanted, what, has)) = short {
            let what = format!("the services need room for {}", counted(wanted, what));
            return Some(Lack { what, has: grouped(has), is_most: room.grows });
        }
        (self.snat && !now.snat && !room.flows).then(|| {
            let what = "forwarding = \"snat\" needs a table of connections (a snat service, or service = [] with \
                        [flow_table], in the configuration file at the start)";
            Lack { what: what.to_owned(), has: "none".to_owned(), is_most: false }
        })
    }
}

/// The lines that the lookup tables need during a change and afterwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lines {
    /// Each table at its larger size before or after the change.
    tables: u64,
    /// The longest table: so many lines must stay free, because a swap writes the new table beside the old one.
    longest: u32,
    /// The longest of the tables that grow: these lines are needed beside those of the old table.
    beside: u32,
    grows: bool,
}

impl Lines {
    /// Adds a table with the numbers of slots before and after the change; `None`: there is no such table.
    pub(crate) fn add(&mut self, before: Option<u32>, after: Option<u32>) {
        let [before, after] = [before, after].map(|slots| slots.map(lines));
        let larger = before.max(after).unwrap_or(0);
        self.tables += u64::from(larger);
        self.longest = self.longest.max(larger);
        // A table that becomes smaller needs no more room than a table that stays the same.
        let Some(after) = after.filter(|after| before < Some(*after)) else { return };
        self.grows = true;
        if before.is_some() {
            self.beside = self.beside.max(after);
        }
    }

    /// The lines after a table of `before` slots, which counts already, has become a table of `after` slots.
    fn with(mut self, before: Option<u32>, after: u32) -> Self {
        let (before, after) = (before.map(lines), lines(after));
        self.tables += u64::from(after.saturating_sub(before.unwrap_or(0)));
        self.longest = self.longest.max(after);
        self.grows |= before < Some(after);
        if before.is_some_and(|before| before < after) {
            self.beside = self.beside.max(after);
        }
        self
    }

    fn all(self) -> u64 {
        self.tables + u64::from(self.beside) + u64::from(self.longest)
    }

    /// The need of these lines, if a table grows and the lines exceed the `room`.
    fn lack(self, room: &Room) -> Option<Lack> {
        (self.grows && self.all() > u64::from(room.lines)).then(|| {
            let all = slots(self.all());
            Lack {
                what: format!("the lookup tables, with the free slots by which they are replaced, need {all} slots"),
                has: format!("{} slots", slots(room.lines.into())),
                is_most: room.grows,
            }
        })
    }
}

/// A service in a state of a fleet, with the number of its backends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SizedService<'a> {
    pub(crate) settings: &'a ServiceConfig,
    pub(crate) backends: usize,
}

impl SizedService<'_> {
    fn slots(self) -> u32 {
        self.settings.table_size.slots(self.backends)
    }
}

/// A data path that gets one service of a state after the other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filling<'a> {
    tables: Lines,
    rows: Rows,
    /// The services whose rows count already: a service with both address families is there twice in a state.
    counted: HashSet<&'a str>,
}

impl<'a> Filling<'a> {
    /// A data path that has the tables of these services.
    pub(crate) fn new<'b>(before: impl Iterator<Item = SizedService<'b>>) -> Self {
        let mut filling = Self::default();
        before.for_each(|service| filling.tables.add(Some(service.slots()), Some(service.slots())));
        filling
    }

    /// Counts the rows of a service that stays the same.
    pub(crate) fn keep(&mut self, service: SizedService<'a>) {
        if self.counted.insert(&service.settings.name) {
            self.rows.add(service.settings, service.backends);
        }
    }

    /// Adds a service, or changes the service that was `before`. Otherwise, the function returns what the data path
    /// lacks, and adds nothing.
    pub(crate) fn add(
        &mut self,
        before: Option<SizedService<'_>>,
        service: SizedService<'a>,
        room: &Room,
    ) -> Option<String> {
        let with = self.tables.with(before.map(SizedService::slots), service.slots());
        if let Some(lack) = with.lack(room) {
            return Some(lack.told(OWN));
        }
        let mut rows = self.rows;
        if !self.counted.contains(service.settings.name.as_str()) {
            rows.add(service.settings, service.backends);
        }
        // A service that needs no more rows than before has its rows.
        let mut least = self.rows;
        before.into_iter().for_each(|before| least.add(before.settings, before.backends));
        if let Some(lack) = rows.lack(room, least) {
            return Some(lack.told(OWN));
        }
        (self.tables, self.rows) = (with, rows);
        self.counted.insert(&service.settings.name);
        None
    }
}

/// The room of this balancer, or of the members of a fleet; empty if the room is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rooms(Vec<(String, Room)>);

impl Rooms {
    /// The room of a single balancer.
    #[must_use]
    pub fn own(room: Room) -> Self {
        Self(vec![(String::new(), room)])
    }

    /// The room of each member of a fleet, by the member's name.
    #[must_use]
    pub fn of_members(members: impl Iterator<Item = (String, Room)>) -> Self {
        Self(members.collect())
    }

    /// The number of rows for backends that every data path has, a power of two; `None`: the number is not known.
    pub(crate) fn backend_rows(&self) -> Option<u32> {
        // The rooms of members come from outside, and may contain any number.
        let rows = |room: &Room| 1_u32 << room.backends.clamp(2, MOST_BACKEND_ROWS).ilog2();
        self.0.iter().map(|(_, room)| rows(room)).min()
    }

    /// The room that a change from the services `before` to the services `after` needs in every data path.
    ///
    /// # Errors
    /// Fails with the reason, which is about a need that the change increases.
    pub(crate) fn hold(
        &self,
        tables: Lines,
        before: impl FnOnce() -> Vec<Arc<ServiceConfig>>,
        after: &[Arc<ServiceConfig>],
    ) -> Result<Need, String> {
        let wanted = Rows::of(after);
        let lack = |room: &Room, now: Rows| tables.lack(room).or_else(|| wanted.lack(room, now));
        let need = Need::of(tables, wanted);
        if self.0.iter().all(|(_, room)| lack(room, Rows::default()).is_none()) {
            return Ok(need);
        }
        let now = Rows::of(&before());
        let short = self.0.iter().find_map(|(of, room)| Some((of, lack(room, now)?)));
        short.map_or(Ok(need), |(of, lack)| {
            Err(lack.advised(&if of.is_empty() { OWN.to_owned() } else { format!("{OWN} of {of}") }))
        })
    }
}

/// The name of a balancer's maps and program in messages.
const OWN: &str = "the data path";

impl Need {
    /// The need that exceeds this room, as a sentence.
    #[must_use]
    pub fn beyond(self, room: &Room) -> Option<String> {
        let Self { lines, services, listeners, ranges: _, returns } = self;
        let tables = Lines { tables: lines, grows: lines > 0, ..Lines::default() };
        let rows = [services, listeners, returns].map(|rows| rows as usize);
        let rows = Rows { services: rows[0], listeners: rows[1], returns: rows[2], ..Rows::default() };
        let lack = tables.lack(room).or_else(|| rows.lack(room, Rows::default()))?;
        Some(lack.told(OWN))
    }
}

/// The number of slots in this number of lines, for a message.
fn slots(lines: u64) -> String {
    grouped(lines * u64::from(SLOTS_PER_LINE))
}
