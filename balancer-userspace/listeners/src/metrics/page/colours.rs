//! Assigns colours to backends; a backend has the same colour in all charts of a service.

use std::collections::HashMap;

use balancer_control::snapshot::ServiceSnapshot;
use maud::{Markup, html};

/// The maximum number of backends that get their own colour. The backends with the largest shares get their own
/// colours, and the remaining backends share one colour.
const OWN: usize = 8;

/// The backends that have their own colour.
pub(super) struct Colours<'a> {
    /// The backends in the order of their first appearance, so that no colour changes when a backend appears or
    /// disappears.
    own: Vec<&'a str>,
    others: bool,
}

impl<'a> Colours<'a> {
    /// Chooses colours for the last hour of a service.
    pub(super) fn of(service: &'a ServiceSnapshot) -> Self {
        let mut all: Vec<(&str, f64)> = Vec::new();
        let mut places: HashMap<&str, usize> = HashMap::new();
        let past = service.statistics.shares.minutes().flat_map(|minute| minute.shares());
        let present = service.backends.iter().zip(service.shares());
        let present = present.map(|(backend, (share, _))| (backend.name.as_str(), share.unwrap_or(0.0)));
        for (name, share) in past.chain(present) {
            let place = *places.entry(name).or_insert_with(|| {
                all.push((name, 0.0));
                all.len() - 1
            });
            if let Some((_, greatest)) = all.get_mut(place) {
                *greatest = share.max(*greatest);
            }
        }
        let others = all.len() > OWN;
        let mut greatest: Vec<(usize, (&str, f64))> = all.into_iter().enumerate().collect();
        // Sorting keeps the order of backends with equal shares, so the first of several equal backends gets a colour.
        greatest.sort_by(|(_, (_, a)), (_, (_, b))| b.total_cmp(a));
        greatest.truncate(OWN);
        greatest.sort_by_key(|&(place, _)| place);
        Self { own: greatest.into_iter().map(|(_, (name, _))| name).collect(), others }
    }

    /// The number of colours in use.
    pub(super) fn count(&self) -> usize {
        self.own.len() + usize::from(self.others)
    }

    /// The index of a backend's colour in the palette.
    pub(super) fn place(&self, name: &str) -> usize {
        self.own.iter().position(|own| *own == name).unwrap_or(self.own.len())
    }

    /// The CSS class of the colour with this index.
    pub(super) fn class(&self, place: usize) -> String {
        if place < self.own.len() { format!("c{place}") } else { "others".to_owned() }
    }

    /// Lists the backends with their colours.
    pub(super) fn legend(&self, service: &ServiceSnapshot) -> Markup {
        html! {
            ul.legend {
                @for (place, name) in self.own.iter().enumerate() {
                    li {
                        (swatch(&self.class(place))) (name)
                        @if service.backends.iter().all(|backend| backend.name != *name) { span.quiet { " (removed)" } }
                    }
                }
                @if self.others { li { (swatch("others")) "all others" } }
            }
        }
    }
}

fn swatch(class: &str) -> Markup {
    html! {
        svg.swatch viewBox="0 0 1 1" aria-hidden="true" focusable="false" { rect.(class) width="1" height="1" {} } " "
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use balancer_control::shares::{Load, ShareHistory};

    use super::*;
    use crate::metrics::render_test::snapshot;

    fn service(minutes: &[&[(&str, u64)]]) -> ServiceSnapshot {
        let mut service = snapshot().services.remove(0);
        let mut shares = ShareHistory::default();
        for (minute, loads) in (1..).zip(minutes) {
            shares.keep(Duration::from_secs(60 * minute), Load::Clients, loads);
        }
        service.statistics.shares = Arc::new(shares);
        service
    }

    #[test]
    fn when_a_backend_goes_then_no_other_changes_its_colour() {
        // The backends web1 to web3 exist, and the backend old was removed.
        let service = service(&[&[("old", 5), ("web1", 5), ("web2", 5)], &[("web1", 5), ("web2", 5)]]);
        let colours = Colours::of(&service);
        assert_eq!(colours.own, ["old", "web1", "web2", "web3"]);
        assert_eq!((colours.count(), colours.class(colours.place("web2"))), (4, "c2".to_owned()));
        let legend = colours.legend(&service).into_string();
        assert!(legend.contains("old<span class=\"quiet\"> (removed)"), "{legend}");
        assert_eq!(legend.matches("removed").count(), 1, "{legend}");
    }

    #[test]
    fn when_backends_are_many_then_the_greatest_have_colours() {
        let names: Vec<String> = (0..12).map(|index| format!("b{index}")).collect();
        // The last backend has the largest share, and the backends b2 to b10 have equal shares.
        let loads: Vec<(&str, u64)> =
            names.iter().map(String::as_str).zip([0, 0, 5, 5, 5, 5, 5, 5, 5, 5, 5, 90]).collect();
        let mut service = service(&[&loads]);
        service.backends.clear();
        let colours = Colours::of(&service);
        assert_eq!(colours.own, ["b2", "b3", "b4", "b5", "b6", "b7", "b8", "b11"]);
        assert_eq!((colours.count(), colours.class(colours.place("b9"))), (9, "others".to_owned()));
        assert!(colours.legend(&service).into_string().contains("all others"));
    }

    #[test]
    fn when_there_is_no_load_then_backends_have_colours_too() {
        let mut service = service(&[]);
        service.backends.iter_mut().for_each(|backend| backend.stats.connections = 0);
        assert_eq!(Colours::of(&service).own, ["web1", "web2", "web3"]);
        service.backends.clear();
        assert_eq!(Colours::of(&service).count(), 0);
    }
}
