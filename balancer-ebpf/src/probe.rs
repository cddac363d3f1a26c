//! Looks up a key in the active half of an open-addressed array.

use core::ops::ControlFlow;

use aya_ebpf::maps::Array;
use balancer_common::{
    map_types::ServiceKey,
    service_table::{Home, KeyWords, PublishedView},
};

/// The rows of a table, each of which contains its key.
pub(crate) trait Keyed: Sized + 'static {
    /// The map that contains the table.
    fn rows() -> &'static Array<Self>;

    fn key(&self) -> &ServiceKey;

    /// Calls [`index_apart`] as a global function, so the verifier checks the lookup only once.
    fn apart(home: u64, low: u64, high: u64, rest: u64) -> u64;
}

/// A flag of [`Keyed::apart`]: the lookup includes the first pair of rows.
const BOTH_PAIRS: u64 = 1 << 32;

#[inline(always)]
pub(crate) fn find<Row: Keyed>(view: PublishedView, key: &ServiceKey) -> Option<&'static Row> {
    let home = view.home(key);
    match pair::<Row>(home.first(), |row| is_same(row, key)) {
        ControlFlow::Break(found) => found.map(|(_, row)| row),
        ControlFlow::Continue(()) => apart(home.word().into(), KeyWords::of(key)),
    }
}

/// Like [`find`], but inlined as a whole, because some callers leave little room on the stack.
#[inline(always)]
pub(crate) fn find_whole<Row: Keyed>(view: PublishedView, key: KeyWords) -> Option<&'static Row> {
    let home = view.home_of(key);
    match pair::<Row>(home.first(), |row| KeyWords::of(row) == key) {
        ControlFlow::Break(found) => found.map(|(_, row)| row),
        ControlFlow::Continue(()) => in_second_pair::<Row>(home, key).map(|(_, row)| row),
    }
}

/// Like [`find`], but as a separate function, for rare lookups.
#[inline(always)]
pub(crate) fn find_apart<Row: Keyed>(view: PublishedView, key: &ServiceKey) -> Option<&'static Row> {
    let key = KeyWords::of(key);
    apart(u64::from(view.home_of(key).word()) | BOTH_PAIRS, key)
}

#[inline(always)]
fn apart<Row: Keyed>(home: u64, KeyWords { low, high, rest }: KeyWords) -> Option<&'static Row> {
    let place = Row::apart(home, low, high, rest.into()) as u32;
    Row::rows().get(place.checked_sub(1)?)
}

/// The index of the row with this key, plus one, or 0 if the table does not contain the key.
#[inline(always)]
pub(crate) fn index_apart<Row: Keyed>(home: u64, low: u64, high: u64, rest: u64) -> u64 {
    let key = KeyWords { low, high, rest: rest as u32 };
    let both = home & BOTH_PAIRS != 0;
    let home = Home::of_word(home as u32);
    if both && let ControlFlow::Break(found) = pair::<Row>(home.first(), |row| KeyWords::of(row) == key) {
        return found.map_or(0, |(index, _)| u64::from(index) + 1);
    }
    in_second_pair::<Row>(home, key).map_or(0, |(index, _)| u64::from(index) + 1)
}

#[inline(always)]
fn in_second_pair<Row: Keyed>(home: Home, key: KeyWords) -> Option<(u32, &'static Row)> {
    pair::<Row>(home.third(key), |row| KeyWords::of(row) == key).break_value().flatten()
}

/// Looks for a key in a row and in the neighbouring row. Breaks as soon as it is clear whether the table contains the
/// key.
#[inline(always)]
fn pair<Row: Keyed>(first: u32, is_wanted: impl Fn(&ServiceKey) -> bool) -> ControlFlow<Option<(u32, &'static Row)>> {
    for index in [first, first ^ 1] {
        let Some(row) = Row::rows().get(index) else { return ControlFlow::Break(None) };
        if is_wanted(row.key()) {
            return ControlFlow::Break(Some((index, row)));
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
