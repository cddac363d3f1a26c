//! The rows of backends in the kernel's map. The kernel program reads the rows while the controller changes them.

use std::{
    collections::HashMap,
    mem::offset_of,
    sync::{Arc, atomic::Ordering},
};

use aya::maps::MapData;
use balancer_common::{
    map_types::{
        BACKEND_KEEPS_KNOWN, BACKEND_REACHABLE, BACKEND_SECOND, BACKEND_V6, BackendRow, BackendRows, BackendStanding,
    },
    verdict::{CauseIndex, MoveCause},
};
use balancer_control::io::BackendId;

use super::{
    grace::{Grace, GracePeriods},
    mapped::MappedArray,
};

/// Two rows for each backend; the kernel program uses one of them.
pub(super) struct Backends {
    rows: MappedArray<BackendRows>,
    grace_periods: Arc<GracePeriods>,
    /// For each backend, the grace period after which the kernel program no longer reads the unused row.
    replaced: HashMap<BackendId, Grace>,
}

impl Backends {
    pub(super) fn new(map: MapData, grace_periods: Arc<GracePeriods>) -> anyhow::Result<Self> {
        Ok(Self { rows: MappedArray::new(map)?, grace_periods, replaced: HashMap::new() })
    }

    /// Replaces a backend's row and its `standing`: for each packet, the program sees either the old row with the old
    /// standing or the new row with the new standing.
    pub(super) fn write(&mut self, id: BackendId, standing: BackendStanding, row: BackendRow) {
        let index = usize::from(id.0);
        let rows = self.rows.load(index).rows;
        let second = BackendStanding::from_word(rows[0].standing).flags & BACKEND_SECOND != 0;
        if (BackendRow { standing: 0, ..rows[usize::from(second)] }) == row {
            self.stand(id, standing, second);
            return;
        }
        if let Some(replaced) = self.replaced.get(&id) {
            // This call waits only if a next hop changes twice within milliseconds.
            self.grace_periods.wait(*replaced);
        }
        let first = usize::from(!second) * size_of::<BackendRow>();
        let words: [u32; size_of::<BackendRow>() / size_of::<u32>()] = bytemuck::cast(row);
        for (place, word) in words.into_iter().enumerate() {
            let offset = place * size_of::<u32>();
            if offset != offset_of!(BackendRow, standing) {
                self.rows.word32(index, first + offset).store(word, Ordering::Relaxed);
            }
        }
        self.stand(id, standing, !second);
        self.replaced.insert(id, self.grace_periods.begin());
    }

    /// Whether the row in use says that a backend keeps its known clients.
    pub(super) fn keeps_known(&self, id: u16) -> bool {
        self.standing(id).flags & BACKEND_KEEPS_KNOWN != 0
    }

    /// The cause that the kernel program counts when clients leave a backend.
    pub(super) fn cause_of_moves(&self, id: u16) -> CauseIndex {
        if self.keeps_known(id) { MoveCause::Failback.into() } else { CauseIndex(self.standing(id).cause) }
    }

    fn standing(&self, id: u16) -> BackendStanding {
        let word = self.rows.word32(usize::from(id), offset_of!(BackendRow, standing)).load(Ordering::Relaxed);
        BackendStanding::from_word(word)
    }

    /// Replaces the row of each backend with the result of `of`.
    pub(super) fn rewrite(&mut self, of: impl Fn(BackendRow) -> BackendRow) {
        for id in (0..self.rows.len()).filter_map(|index| u16::try_from(index).ok()).map(BackendId) {
            let rows = self.rows.load(usize::from(id.0)).rows;
            let mut standing = BackendStanding::from_word(rows[0].standing);
            let row = BackendRow { standing: 0, ..rows[usize::from(standing.flags & BACKEND_SECOND != 0)] };
            let new = of(row);
            if new != row {
                standing.flags &= !BACKEND_SECOND;
                self.write(id, standing, new);
            }
        }
    }

    /// Marks a backend to which nothing refers any more. For packets whose backend the program has already chosen, the
    /// program still finds the row.
    pub(super) fn retire(&mut self, id: BackendId) {
        let before = self.standing(id.0);
        let kept = BACKEND_SECOND | BACKEND_REACHABLE | BACKEND_V6;
        self.stand(id, BackendStanding { flags: before.flags & kept, ..before }, before.flags & BACKEND_SECOND != 0);
        self.replaced.insert(id, self.grace_periods.begin());
    }

    fn stand(&self, id: BackendId, mut standing: BackendStanding, second: bool) {
        standing.flags |= if second { BACKEND_SECOND } else { 0 };
        let word = self.rows.word32(usize::from(id.0), offset_of!(BackendRow, standing));
        word.store(standing.to_word(), Ordering::Release);
    }
}
