//! Looks up a key in the active half of an open-addressed array.

use core::ops::ControlFlow;

use aya_ebpf::maps::Array;
use balancer_common::{
    map_types::{ListenerRow, ReturnRow, ServiceKey},
    service_table::{Home, KeyWords, PublishedView},
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
    let home = view.home(key);
    match pair(rows, home.first(), |row| is_same(row, key)) {
        ControlFlow::Break(found) => found,
        ControlFlow::Continue(()) => {
            let KeyWords { low, high, rest } = KeyWords::of(key);
            second_pair(rows, home, low, high, rest)
        }
    }
}

/// Like [`find`], but the lookup in the second pair of rows is inlined, because some callers leave little room on the
/// stack.
#[inline(always)]
pub(crate) fn find_whole<Row: Keyed>(
    rows: &'static Array<Row>,
    view: PublishedView,
    key: KeyWords,
) -> Option<&'static Row> {
    let home = view.home_of(key);
    match pair(rows, home.first(), |row| KeyWords::of(row) == key) {
        ControlFlow::Break(found) => found,
        ControlFlow::Continue(()) => in_second_pair(rows, home, key),
    }
}

/// Like [`find`], but as a separate function, for rare lookups.
#[inline(always)]
pub(crate) fn find_apart<Row: Keyed>(
    rows: &'static Array<Row>,
    view: PublishedView,
    key: &ServiceKey,
) -> Option<&'static Row> {
    let KeyWords { low, high, rest } = KeyWords::of(key);
    both_pairs(rows, view, low, high, rest)
}

#[inline(never)]
fn both_pairs<Row: Keyed>(
    rows: &'static Array<Row>,
    view: PublishedView,
    low: u64,
    high: u64,
    rest: u32,
) -> Option<&'static Row> {
    find_whole(rows, view, KeyWords { low, high, rest })
}

/// This is a separate function, because its variables and those of its callers do not fit on the stack together.
#[inline(never)]
fn second_pair<Row: Keyed>(
    rows: &'static Array<Row>,
    home: Home,
    low: u64,
    high: u64,
    rest: u32,
) -> Option<&'static Row> {
    in_second_pair(rows, home, KeyWords { low, high, rest })
}

#[inline(always)]
fn in_second_pair<Row: Keyed>(rows: &'static Array<Row>, home: Home, key: KeyWords) -> Option<&'static Row> {
    pair(rows, home.third(key), |row| KeyWords::of(row) == key).break_value().flatten()
}

/// Looks for a key in a row and in the neighbouring row. Breaks as soon as it is clear whether the table contains the
/// key.
#[inline(always)]
fn pair<Row: Keyed>(
    rows: &'static Array<Row>,
    first: u32,
    is_wanted: impl Fn(&ServiceKey) -> bool,
) -> ControlFlow<Option<&'static Row>> {
    for index in [first, first ^ 1] {
        let Some(row) = rows.get(index) else { return ControlFlow::Break(None) };
        if is_wanted(row.key()) {
            return ControlFlow::Break(Some(row));
        }
        // The controller stores a key in the first free row among the key's rows.
        if row.key().family == 0 {
            return ControlFlow::Break(None);
        }
    }
    ControlFlow::Continue(())
}

/// Whether a row contains the key that the lookup wants.
#[inline(always)]
fn is_same(row: &ServiceKey, key: &ServiceKey) -> bool {
    row.rest() == key.rest() && row.address == key.address
}
