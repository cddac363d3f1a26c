//! Compares the wanted state of this machine with the actual state, and derives the steps that lead to the wanted
//! state. All functions of this module are pure.

use std::collections::{BTreeMap, BTreeSet};

use balancer_common::map_types::Mac;
use balancer_config::config::XdpMode;

use super::vips::{FoundAddress, InterfaceAddress};

/// An interface to which the program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AttachedInterface<'a> {
    pub(super) name: &'a str,
    pub(super) ifindex: u32,
}

/// The steps that attach the program to the wanted interfaces and detach it from all other interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct InterfacePlan<'a> {
    /// The indices of interfaces that no longer exist.
    pub(super) gone: Vec<u32>,
    /// The indices of attached interfaces that are no longer wanted.
    pub(super) leave: Vec<u32>,
    /// The interfaces to which the program must be attached, with their names and indices.
    pub(super) enter: Vec<AttachedInterface<'a>>,
    /// The attached interfaces that are wanted under their current names, which are new.
    pub(super) renamed: Vec<AttachedInterface<'a>>,
}

/// Derives the steps for attaching and detaching the program; `there` contains every interface of the network
/// namespace. An attached interface is identified by its index, whatever its current name is. The configured name
/// matters only when the program is attached.
pub(super) fn interfaces<'a>(
    wanted: &'a [String],
    on: &[AttachedInterface<'_>],
    there: &[(String, u32)],
) -> InterfacePlan<'a> {
    let mut plan = InterfacePlan::default();
    let exists = |ifindex: u32| there.iter().any(|&(_, other)| other == ifindex);
    let by_index = |ifindex: u32| on.iter().find(|on| on.ifindex == ifindex);
    let mut stays = BTreeSet::new();
    for name in wanted {
        if let Some(known) = on.iter().find(|on| on.name == name && exists(on.ifindex)) {
            stays.insert(known.ifindex);
            continue;
        }
        let Some(ifindex) = there.iter().find(|(other, _)| other == name).map(|&(_, ifindex)| ifindex) else {
            continue;
        };
        match by_index(ifindex) {
            None => plan.enter.push(AttachedInterface { name, ifindex }),
            Some(known) if wanted.iter().any(|name| name == known.name) => {
                // The interface is also wanted under its earlier name.
            }
            Some(known) => {
                stays.insert(known.ifindex);
                plan.renamed.push(AttachedInterface { name, ifindex: known.ifindex });
            }
        }
    }
    for on in on {
        if !exists(on.ifindex) {
            plan.gone.push(on.ifindex);
        } else if !stays.contains(&on.ifindex) {
            plan.leave.push(on.ifindex);
        }
    }
    plan
}

/// The addresses to add, and the addresses to remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) add: Vec<InterfaceAddress>,
    pub(super) remove: Vec<InterfaceAddress>,
}

/// Derives the addresses to add and remove; `own` contains the interfaces that this balancer uses or has used. AttachedInterface other
/// interfaces, marked addresses belong to another balancer; unmarked addresses belong to the operator on all
/// interfaces.
pub(super) fn addresses(wanted: &BTreeSet<InterfaceAddress>, found: &[FoundAddress], own: &BTreeSet<u32>) -> Addresses {
    let there: BTreeSet<InterfaceAddress> = found.iter().map(|found| found.place).collect();
    let unwanted =
        found.iter().filter(|found| found.ours && own.contains(&found.place.ifindex) && !wanted.contains(&found.place));
    Addresses { add: wanted.difference(&there).copied().collect(), remove: unwanted.map(|found| found.place).collect() }
}

/// The `wanted` addresses that a balancer has added.
pub(super) fn ours(wanted: &BTreeSet<InterfaceAddress>, found: &[FoundAddress]) -> BTreeSet<InterfaceAddress> {
    found.iter().filter(|found| found.ours && wanted.contains(&found.place)).map(|found| found.place).collect()
}

/// Facts about an interface that affect its neighbours. When one of these facts changes, the balancer must announce
/// addresses again, because neighbours use an outdated MAC address, or because a switch has forgotten the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sign {
    pub(super) mac: Mac,
    /// The number of times that the interface's carrier came up.
    pub(super) carrier_ups: u32,
    /// Whether the driver runs the program in native mode; a change of the mode may take the link down for a moment.
    pub(super) native: Option<bool>,
}

/// Returns the addresses to announce, because they are new or because their sign differs from the sign in `told`.
///
/// The balancer announces an address in `ours` as soon as the address is new. The addresses in `others` belong to the
/// operator, and the kernel or another program has already announced them. The balancer announces `others` only after a
/// change of the MAC address, because the kernel does not announce such a change. `signs` contains the signs of those
/// interfaces whose link is up.
pub(super) fn announcements(
    told: &BTreeMap<InterfaceAddress, Sign>,
    ours: &BTreeSet<InterfaceAddress>,
    others: &BTreeSet<InterfaceAddress>,
    signs: &BTreeMap<u32, Sign>,
) -> BTreeSet<InterfaceAddress> {
    let sign = |place: &InterfaceAddress| signs.get(&place.ifindex);
    let new = ours.iter().filter(|place| sign(place).is_some_and(|sign| told.get(place) != Some(sign)));
    let moved = others.iter().filter(|place| {
        let before = told.get(place);
        sign(place).zip(before).is_some_and(|(now, before)| now.mac != before.mac)
    });
    new.chain(moved).copied().collect()
}

/// Whether the program must be reattached to get the mode `mode`, if the previous mode was `before`.
pub(super) fn wrong_mode(native: bool, mode: XdpMode, before: XdpMode) -> bool {
    match mode {
        XdpMode::Native => !native,
        XdpMode::Generic => native,
        // With a driver that has no native mode, an earlier attempt to attach in native mode has failed.
        XdpMode::Auto => !native && before == XdpMode::Generic,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there(interfaces: &[(&str, u32)]) -> Vec<(String, u32)> {
        interfaces.iter().map(|&(name, ifindex)| (name.to_owned(), ifindex)).collect()
    }

    #[test]
    fn when_interfaces_come_go_return_or_are_renamed_then_the_plan_follows() {
        type Case<'a> = (&'a str, &'a [&'a str], &'a [(&'a str, u32)], &'a [(&'a str, u32)], [&'a [u32]; 4]);
        // The fields of each case: name, wanted, attached, existing, [gone, leave, enter, renamed].
        let cases: &[Case<'_>] = &[
            ("the first time", &["a", "b"], &[], &[("lo", 1), ("a", 2), ("b", 3)], [&[], &[], &[2, 3], &[]]),
            ("nothing to do", &["a"], &[("a", 2)], &[("a", 2), ("b", 3)], [&[], &[], &[], &[]]),
            ("one more", &["a", "b"], &[("a", 2)], &[("a", 2), ("b", 3)], [&[], &[], &[3], &[]]),
            ("another", &["b"], &[("a", 2)], &[("a", 2), ("b", 3)], [&[], &[2], &[3], &[]]),
            ("went away", &["a"], &[("a", 2)], &[("b", 3)], [&[2], &[], &[], &[]]),
            ("is away", &["a"], &[], &[("b", 3)], [&[], &[], &[], &[]]),
            ("made anew", &["a"], &[("a", 2)], &[("a", 9)], [&[2], &[], &[9], &[]]),
            ("renamed", &["a"], &[("a", 2)], &[("c", 2)], [&[], &[], &[], &[]]),
            ("renamed, wanted by the new name", &["c"], &[("a", 2)], &[("c", 2)], [&[], &[], &[], &[2]]),
            ("names swapped", &["a", "b"], &[("a", 2), ("b", 3)], &[("b", 2), ("a", 3)], [&[], &[], &[], &[]]),
            ("another goes by its name", &["a"], &[("a", 2)], &[("c", 2), ("a", 3)], [&[], &[], &[], &[]]),
            ("wanted by both names", &["a", "c"], &[("a", 2)], &[("c", 2)], [&[], &[], &[], &[]]),
            ("gone, and another has its name", &["a"], &[("a", 2)], &[("a", 3)], [&[2], &[], &[3], &[]]),
        ];
        for (what, wanted, on, found, expected) in cases {
            let wanted: Vec<String> = wanted.iter().map(|&name| name.to_owned()).collect();
            let on: Vec<AttachedInterface<'_>> =
                on.iter().map(|&(name, ifindex)| AttachedInterface { name, ifindex }).collect();
            let plan = interfaces(&wanted, &on, &there(found));
            let indices = |on: &[AttachedInterface<'_>]| on.iter().map(|on| on.ifindex).collect::<Vec<_>>();
            let done = [plan.gone.clone(), plan.leave.clone(), indices(&plan.enter), indices(&plan.renamed)];
            assert_eq!(done, expected.map(<[u32]>::to_vec), "{what}");
        }
    }

    fn place(text: &str) -> InterfaceAddress {
        let (ifindex, address) = text.split_once(' ').unwrap();
        InterfaceAddress { ifindex: ifindex.parse().unwrap(), address: address.parse().unwrap() }
    }

    #[test]
    fn when_addresses_are_planned_then_only_marked_ones_on_own_interfaces_are_removed() {
        type Case<'a> = (&'a str, &'a [&'a str], &'a [(&'a str, bool)], &'a [&'a str], &'a [&'a str]);
        // The fields of each case: name, wanted, found (marked?), added, removed. Interfaces 2 and 3 belong to the
        // balancer.
        let cases: &[Case<'_>] = &[
            ("new", &["2 192.0.2.1", "2 2001:db8::1"], &[], &["2 192.0.2.1", "2 2001:db8::1"], &[]),
            ("there", &["2 192.0.2.1"], &[("2 192.0.2.1", true)], &[], &[]),
            ("an operator's", &["2 192.0.2.1"], &[("2 192.0.2.1", false)], &[], &[]),
            ("an operator's, not wanted any more", &[], &[("2 192.0.2.1", false)], &[], &[]),
            ("an operator's beside ours", &[], &[("2 192.0.2.1", false), ("2 192.0.2.1", true)], &[], &["2 192.0.2.1"]),
            ("not wanted any more", &[], &[("2 192.0.2.1", true)], &[], &["2 192.0.2.1"]),
            ("to another interface", &["3 192.0.2.1"], &[("2 192.0.2.1", true)], &["3 192.0.2.1"], &["2 192.0.2.1"]),
            ("elsewhere it is somebody else's", &["2 192.0.2.1"], &[("7 192.0.2.1", true)], &["2 192.0.2.1"], &[]),
        ];
        for (what, wanted, found, added, removed) in cases {
            let wanted = wanted.iter().map(|text| place(text)).collect();
            let found: Vec<_> = found
                .iter()
                .map(|&(text, ours)| FoundAddress { place: place(text), ours, settled: true, subnet: false })
                .collect();
            let plan = addresses(&wanted, &found, &[2, 3].into());
            let places = |texts: &[&str]| texts.iter().map(|text| place(text)).collect();
            assert_eq!(plan, Addresses { add: places(added), remove: places(removed) }, "{what}");
        }
    }

    #[test]
    fn when_an_address_is_new_or_its_link_changes_then_neighbours_are_told() {
        let sign = |mac, carrier_ups, native| Sign { mac: [2, 0, 0, 0, 0, mac], carrier_ups, native };
        let first = sign(1, 1, Some(true));
        let (ours, others) = ([place("2 192.0.2.1")].into(), [place("2 192.0.2.9")].into());
        for (what, told, now, expected) in [
            ("new", None, Some(first), &["2 192.0.2.1"][..]),
            ("the link is down", None, None, &[]),
            ("told", Some(first), Some(first), &[]),
            ("another MAC address", Some(first), Some(sign(2, 1, Some(true))), &["2 192.0.2.1", "2 192.0.2.9"]),
            ("the carrier was away", Some(first), Some(sign(1, 2, Some(true))), &["2 192.0.2.1"]),
            ("another mode", Some(first), Some(sign(1, 1, Some(false))), &["2 192.0.2.1"]),
            ("down since", Some(first), None, &[]),
        ] {
            let told: BTreeMap<InterfaceAddress, Sign> = told
                .into_iter()
                .flat_map(|sign| [(place("2 192.0.2.1"), sign), (place("2 192.0.2.9"), sign)])
                .collect();
            let signs = now.into_iter().map(|sign| (2, sign)).collect();
            let expected: BTreeSet<InterfaceAddress> = expected.iter().map(|text| place(text)).collect();
            assert_eq!(announcements(&told, &ours, &others, &signs), expected, "{what}");
        }
    }

    #[test]
    fn when_a_mode_is_refused_or_a_better_one_is_possible_then_it_is_wrong() {
        use XdpMode::{Auto, Generic, Native};
        for (native, mode, before, wrong) in [
            (true, Native, Auto, false),
            (false, Native, Auto, true),
            (true, Generic, Auto, true),
            (false, Generic, Native, false),
            (true, Auto, Native, false),
            (false, Auto, Generic, true),
            (false, Auto, Auto, false),
        ] {
            assert_eq!(wrong_mode(native, mode, before), wrong, "{native} {mode:?} {before:?}");
        }
    }
}
