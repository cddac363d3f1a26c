//! Looking up a key in the active half of an open-addressed array.

use aya_ebpf::maps::Array;
use balancer_common::{
    map_types::{ListenerRow, ReturnRow, ServiceKey},
    service_table::{PROBES, PublishedView},
};

pub(crate) trait Keyed {
    fn key(&self) -> &ServiceKey;
}

impl Keyed for ListenerRow {
    #[inline(always)]
    fn key(&self) -> &ServiceKey {
        &self.key
    }
}

impl Keyed for ReturnRow {
    #[inline(always)]
    fn key(&self) -> &ServiceKey {
        &self.key
    }
}

#[inline(always)]
pub(crate) fn find<Row: Keyed>(
    rows: &'static Array<Row>,
    view: PublishedView,
    key: &ServiceKey,
) -> Option<&'static Row> {
    let home = view.home_row(key);
    for probe in 0..PROBES {
        let row = rows.get(home + probe)?;
        if is_same(row.key(), key) {
            return Some(row);
        }
        // The controller puts a key into the first free row from its home on.
        if row.key().family == 0 {
            return None;
        }
    }
    None
}

/// Whether a row's key is the one looked for.
#[inline(always)]
fn is_same(row: &ServiceKey, key: &ServiceKey) -> bool {
    row.rest() == key.rest() && row.address == key.address
}
