//! A chart of the lookup table, which shows the backend of each slot.

use std::{collections::HashMap, fmt::Write as _};

use balancer_config::words::grouped;
use balancer_control::snapshot::{ServiceSnapshot, TableSnapshot};
use maud::{Markup, html};

use super::colours::Colours;

/// The number of squares in a row.
const ROW: usize = 64;
/// The maximum number of squares; of a larger lookup table, the chart shows a sample.
const SQUARES: usize = 16 * ROW;

/// A chart for the lookup table of each address family.
pub(super) fn slot_maps(service: &ServiceSnapshot, colours: &Colours<'_>) -> Markup {
    let owners: HashMap<u16, usize> = service
        .backends
        .iter()
        .flat_map(|backend| backend.ids.iter().map(|id| (id.0, colours.place(&backend.name))))
        .collect();
    html! {
        @for table in &service.tables {
            @let squares = squares(table, &owners);
            figure {
                figcaption {
                    "Lookup table" @if service.tables.len() > 1 { " of " (table.family) }
                    ": who owns " (shown(table.live.len()))
                    @if squares.iter().any(|square| square.owner.is_none()) { "; grey: nobody" }
                    @if squares.iter().any(|square| square.stands_in) {
                        "; small: stands in for a backend that takes no new clients"
                    }
                }
                (picture(&squares, colours))
            }
        }
    }
}

fn every(slots: usize) -> usize {
    slots.div_ceil(SQUARES).max(1)
}

/// Describes how many of the lookup table's slots the chart shows.
fn shown(slots: usize) -> String {
    let every = every(slots);
    let part = slots.div_ceil(every);
    match every {
        1 => format!("its {} slots", grouped(slots as u64)),
        _ => format!("{} of its {} slots, one in {every}", grouped(part as u64), grouped(slots as u64)),
    }
}

/// A square of the chart, which represents a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Square {
    /// The index of the colour of the backend that owns the slot.
    owner: Option<usize>,
    /// Whether the slot would belong to another backend if all backends took new clients.
    stands_in: bool,
}

fn squares(table: &TableSnapshot, owners: &HashMap<u16, usize>) -> Vec<Square> {
    let every = every(table.live.len());
    let live = table.live.iter().enumerate().step_by(every);
    let squares = live.map(|(slot, id)| Square {
        owner: owners.get(id).copied(),
        stands_in: table.base.as_ref().and_then(|base| base.get(slot)).is_some_and(|base| base != id),
    });
    squares.collect()
}

fn picture(squares: &[Square], colours: &Colours<'_>) -> Markup {
    let rows = squares.len().div_ceil(ROW).max(1);
    let colour = |owner: Option<usize>| owner.map_or_else(|| "nobody".to_owned(), |place| colours.class(place));
    html! {
        svg.slots viewBox=(format!("0 0 {ROW} {rows}")) aria-hidden="true" focusable="false" {
            @for owner in std::iter::once(None).chain((0..colours.count()).map(Some)) {
                @let path = path(squares, owner);
                @if !path.is_empty() { path.(colour(owner)) d=(path) {} }
            }
        }
    }
}

/// The SVG path with the squares of one owner.
fn path(squares: &[Square], owner: Option<usize>) -> String {
    let mut path = String::new();
    for (index, square) in squares.iter().enumerate().filter(|(_, square)| square.owner == owner) {
        let (x, y) = (index % ROW, index / ROW);
        // Writing to a string cannot fail.
        let _ = match square.stands_in {
            true => write!(path, "M{x}.2 {y}.2h.5v.5h-.5z"),
            false => write!(path, "M{x} {y}h.9v.9h-.9z"),
        };
    }
    path
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use balancer_common::map_types::ALL_DOWN;
    use balancer_config::listeners::Family;

    use super::*;
    use crate::metrics::render_test::snapshot;

    fn table(live: impl IntoIterator<Item = u16>, base: Option<&[u16]>) -> TableSnapshot {
        TableSnapshot { family: Family::V4, live: live.into_iter().collect(), base: base.map(Arc::from) }
    }

    fn drawn(tables: Vec<TableSnapshot>) -> String {
        let mut service = snapshot().services.remove(0);
        service.tables = tables;
        slot_maps(&service, &Colours::of(&service)).into_string()
    }

    #[test]
    fn when_slots_are_drawn_then_squares_have_their_owners_colours() {
        let text = drawn(vec![table([0, 1, 2, 1, 9], Some(&[0, 1, 2, 0, 9]))]);
        assert!(text.contains("<path class=\"c0\" d=\"M0 0h.9v.9h-.9z\">"), "{text}");
        assert!(text.contains("<path class=\"c1\" d=\"M1 0h.9v.9h-.9zM3.2 0.2h.5v.5h-.5z\">"), "{text}");
        assert!(text.contains("<path class=\"nobody\" d=\"M4 0h.9v.9h-.9z\">"), "{text}");
        assert!(text.contains("who owns its 5 slots; grey: nobody; small: stands in"), "{text}");
    }

    #[test]
    fn when_a_table_is_large_then_a_sample_of_slots_is_shown() {
        let text = drawn(vec![table((0..65_537u32).map(|slot| (slot % 3) as u16), None)]);
        assert!(text.contains("1,009 of its 65,537 slots, one in 65"), "{text}");
        assert_eq!(text.matches('M').count(), 1009, "a square for each");
        assert!(!text.contains("small") && !text.contains("nobody"), "{text}");
        assert!(text.len() < 20_000, "{}", text.len());
    }

    #[test]
    fn when_a_service_has_both_families_then_each_table_is_shown_even_if_all_are_down() {
        let both = vec![table([0, 1], None), TableSnapshot { family: Family::V6, ..table([ALL_DOWN, ALL_DOWN], None) }];
        let text = drawn(both);
        assert!(text.contains("of IPv4: who owns its 2 slots<") && text.contains("of IPv6: who owns"), "{text}");
        assert!(text.contains("<path class=\"nobody\" d=\"M0 0h.9v.9h-.9zM1 0"), "{text}");
        assert!(drawn(vec![table([], None)]).contains("its 0 slots"));
    }
}
