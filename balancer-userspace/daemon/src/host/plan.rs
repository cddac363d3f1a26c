//! From what is wanted of this machine and what is found to what is to be done. Pure.

use std::collections::BTreeSet;

use balancer_model::config::XdpMode;

use super::vips::{Found, Place};

/// An interface that the program is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct On<'a> {
    pub(super) name: &'a str,
    pub(super) ifindex: u32,
}

/// What is to be done about interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct InterfacePlan<'a> {
    /// Indices that nobody has any more.
    pub(super) gone: Vec<u32>,
    /// Indices of those that are not wanted.
    pub(super) leave: Vec<u32>,
    /// Names of those that the program is not on, with their indices.
    pub(super) enter: Vec<On<'a>>,
    /// Those that go by another name now.
    pub(super) renamed: Vec<On<'a>>,
}

/// `there`: every interface of the network namespace.
pub(super) fn interfaces<'a>(wanted: &'a [String], on: &[On<'_>], there: &[(String, u32)]) -> InterfacePlan<'a> {
    let mut plan = InterfacePlan::default();
    let exists = |ifindex: u32| there.iter().any(|&(_, other)| other == ifindex);
    let mut stays = BTreeSet::new();
    for name in wanted {
        let found = there.iter().find(|(other, _)| other == name).map(|&(_, ifindex)| ifindex);
        // One that was renamed away from its name stays, as long as nobody else goes by it.
        let known = on.iter().find(|on| match found {
            Some(ifindex) => on.ifindex == ifindex,
            None => on.name == name && exists(on.ifindex),
        });
        match (known, found) {
            (Some(known), _) => {
                stays.insert(known.ifindex);
                if known.name != name {
                    plan.renamed.push(On { name, ifindex: known.ifindex });
                }
            }
            (None, Some(ifindex)) => plan.enter.push(On { name, ifindex }),
            (None, None) => {}
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

/// What is to be done about addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) add: Vec<Place>,
    pub(super) remove: Vec<Place>,
}

/// `own`: the interfaces that this balancer is on or was on. What is marked elsewhere is another balancer's, and what is
/// not marked is the operator's.
pub(super) fn addresses(wanted: &BTreeSet<Place>, found: &[Found], own: &BTreeSet<u32>) -> Addresses {
    let there: BTreeSet<Place> = found.iter().map(|found| found.place).collect();
    let unwanted =
        found.iter().filter(|found| found.ours && own.contains(&found.place.ifindex) && !wanted.contains(&found.place));
    Addresses { add: wanted.difference(&there).copied().collect(), remove: unwanted.map(|found| found.place).collect() }
}

/// Those of `wanted` that a balancer has added.
pub(super) fn ours(wanted: &BTreeSet<Place>, found: &[Found]) -> BTreeSet<Place> {
    found.iter().filter(|found| found.ours && wanted.contains(&found.place)).map(|found| found.place).collect()
}

/// Whether the program must go off an interface and on again for `mode`, which was `before`.
pub(super) fn wrong_mode(native: bool, mode: XdpMode, before: XdpMode) -> bool {
    match mode {
        XdpMode::Native => !native,
        XdpMode::Generic => native,
        // Where the driver has no native mode, that was tried before.
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
    fn interfaces_come_go_return_and_change_their_names() {
        type Case<'a> = (&'a str, &'a [&'a str], &'a [(&'a str, u32)], &'a [(&'a str, u32)], [&'a [u32]; 4]);
        // What it is, wanted, the program is on, there are, [gone, leave, enter, renamed].
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
            ("names swapped", &["a", "b"], &[("a", 2), ("b", 3)], &[("b", 2), ("a", 3)], [&[], &[], &[], &[3, 2]]),
            ("another goes by its name", &["a"], &[("a", 2)], &[("c", 2), ("a", 3)], [&[], &[2], &[3], &[]]),
        ];
        for (what, wanted, on, found, expected) in cases {
            let wanted: Vec<String> = wanted.iter().map(|&name| name.to_owned()).collect();
            let on: Vec<On<'_>> = on.iter().map(|&(name, ifindex)| On { name, ifindex }).collect();
            let plan = interfaces(&wanted, &on, &there(found));
            let indices = |on: &[On<'_>]| on.iter().map(|on| on.ifindex).collect::<Vec<_>>();
            let done = [plan.gone.clone(), plan.leave.clone(), indices(&plan.enter), indices(&plan.renamed)];
            assert_eq!(done, expected.map(<[u32]>::to_vec), "{what}");
        }
    }

    fn place(text: &str) -> Place {
        let (ifindex, address) = text.split_once(' ').unwrap();
        Place { ifindex: ifindex.parse().unwrap(), address: address.parse().unwrap() }
    }

    #[test]
    fn only_addresses_with_the_mark_on_own_interfaces_are_removed() {
        type Case<'a> = (&'a str, &'a [&'a str], &'a [(&'a str, bool)], &'a [&'a str], &'a [&'a str]);
        // What it is, wanted, found (marked?), added, removed. Interfaces 2 and 3 are ours.
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
            let found: Vec<_> = found.iter().map(|&(text, ours)| Found { place: place(text), ours }).collect();
            let plan = addresses(&wanted, &found, &[2, 3].into());
            let places = |texts: &[&str]| texts.iter().map(|text| place(text)).collect();
            assert_eq!(plan, Addresses { add: places(added), remove: places(removed) }, "{what}");
        }
    }

    #[test]
    fn a_mode_is_wrong_where_it_is_refused_or_better_may_be_had() {
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
