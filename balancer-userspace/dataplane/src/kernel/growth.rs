//! The data path of the kernel while its maps grow: see [`crate::growth`].

use balancer_control::{io::ServiceId, room::Need};

use super::KernelDataplane;
use crate::{
    growth::{Growth, Larger},
    mirrored::Grows,
};

impl KernelDataplane {
    /// The trait method is [`Dataplane::growth`](crate::Dataplane::growth).
    pub(super) fn growth_for(&self, need: &Need) -> Option<Growth> {
        self.capacity.grown_for(need).map(|capacity| Growth::new(&self.capacity, capacity))
    }

    /// The trait method is [`Dataplane::make_room`](crate::Dataplane::make_room).
    pub(super) fn make_room_for(&mut self, need: &Need) -> anyhow::Result<()> {
        let Some(growth) = self.growth_for(need) else { return Ok(()) };
        let Some(programs) = &self.programs else {
            let lack = need.beyond(&self.capacity.room());
            anyhow::bail!(lack.unwrap_or_else(|| format!("the services need room for {} ranges of ports", need.ranges)))
        };
        let richer = programs.larger(&growth, false)?;
        self.write_to_both(richer.larger_maps(growth)?)?;
        if let Some(programs) = &mut self.programs {
            programs.adopt(richer);
        }
        self.write_to_one(true);
        Ok(())
    }

    /// The trait method is [`Dataplane::begin_growth`](crate::Dataplane::begin_growth).
    pub(super) fn write_to_both(&mut self, mut larger: Larger) -> anyhow::Result<()> {
        anyhow::ensure!(self.growing.is_none(), "an earlier replacement of the kernel program has failed: restart");
        let (slots, services) = (larger.take("SLOTS")?, larger.take("SERVICES")?);
        let (listeners, ranges, returns) = (larger.take("LISTENERS")?, larger.take("RANGES")?, larger.take("RETURNS")?);
        let (shares, pools) = (larger.take("SHARE_STATS")?, larger.take("FLOW_POOLS")?);
        let histories = larger.take("SERVICE_HISTORY")?;
        self.flag_what_the_program_flags();
        slots.into_iter().for_each(|map| self.stickiness.tables.begin(map));
        services.into_iter().for_each(|map| self.services.begin(map));
        listeners.into_iter().for_each(|map| self.listeners.begin(map));
        ranges.into_iter().for_each(|map| self.ranges.begin(map));
        returns.into_iter().for_each(|map| self.returns.begin(map));
        shares.into_iter().for_each(|map| self.counters.begin_growth(map));
        pools.into_iter().for_each(|map| self.flows.pools.begin(map));
        histories.into_iter().for_each(|map| self.kept.services.begin(map));
        self.growing = Some(larger.growth);
        Ok(())
    }

    /// The trait method is [`Dataplane::end_growth`](crate::Dataplane::end_growth).
    pub(super) fn write_to_one(&mut self, is_used: bool) {
        let Some(growth) = self.growing.take() else { return };
        for maps in self.maps_that_grow() {
            if is_used { maps.end() } else { maps.give_up() }
        }
        if is_used {
            self.capacity = growth.capacity;
            self.map_bytes += growth.bytes;
            self.flag_what_the_program_flags();
        }
    }

    fn maps_that_grow(&mut self) -> [&mut dyn Grows; 8] {
        let Self { stickiness, services, listeners, ranges, returns, counters, flows, kept, .. } = self;
        [&mut stickiness.tables, services, listeners, ranges, returns, counters, &mut flows.pools, &mut kept.services]
    }

    /// Flags all slots in which the program may set flags. While there are two maps of slots, the program sets a flag in
    /// only one of them.
    fn flag_what_the_program_flags(&mut self) {
        let quic: Vec<ServiceId> =
            self.directory.iter().filter(|spec| spec.quic.is_some()).map(|spec| spec.id).collect();
        quic.into_iter().for_each(|service| self.stickiness.flag_all(service));
    }
}
