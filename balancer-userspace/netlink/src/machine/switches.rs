//! Switches of the kernel below `/proc/sys`: forwarding, and the reserved ports for `snat`. To send a reply of `nat` or
//! `snat`, the program looks up the route to the client in the kernel, which answers only for interfaces with
//! forwarding on.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use balancer_dataplane::SwitchChange;

const PROC_SYS: &str = "/proc/sys";
/// The switch for ports that the kernel does not assign to its own sockets, in both address families.
const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";

/// The changed switches; this value resets a switch that is no longer wanted, and resets all switches when it is
/// dropped.
#[derive(Debug)]
#[must_use = "dropping this switches forwarding off again"]
pub(super) struct Switches {
    root: PathBuf,
    /// The changes of switches, in the order in which they were made.
    changes: Vec<SwitchChange>,
    /// The number of changes by an earlier process; these changes stay until this process has [settled](Self::settle).
    inherited: usize,
    /// The reserved port ranges.
    reserved: BTreeSet<(u16, u16)>,
}

impl Switches {
    /// Continues with the changes of an earlier process.
    pub(super) fn new(inherited: Vec<SwitchChange>) -> Self {
        Self::below(PROC_SYS.into(), inherited)
    }

    fn below(root: PathBuf, inherited: Vec<SwitchChange>) -> Self {
        Self { root, inherited: inherited.len(), changes: inherited, reserved: BTreeSet::new() }
    }

    /// Keeps the kernel from assigning ports in these ranges to its own sockets; reservations by other programs stay.
    /// An empty set releases all ranges.
    ///
    /// # Errors
    /// Fails if the switch cannot be read or written; the error names the command that sets the switch by hand.
    pub(super) fn reserve(&mut self, ports: &BTreeSet<(u16, u16)>) -> anyhow::Result<()> {
        let made = self.changes.iter().position(|change| change.key == RESERVED);
        if made.is_none() && ports.is_empty() {
            return Ok(());
        }
        let present = self.read(RESERVED)?;
        let before = match made.map(|place| &self.changes[place]) {
            Some(change) if change.after == present && self.reserved == *ports => return Ok(()),
            Some(change) if change.after == present => change.before.clone(),
            // Another program has changed the switch in the meantime.
            Some(_) | None => present,
        };
        let ranges = ports.iter().map(|(first, last)| format!("{first}-{last}"));
        let wanted: Vec<_> =
            Some(before.clone()).filter(|before| !before.is_empty()).into_iter().chain(ranges).collect();
        let path = self.root.join(RESERVED);
        let wanted = wanted.join(",");
        fs::write(&path, &wanted).with_context(|| {
            format!("cannot write {}; run `sysctl -w {}={wanted}`", path.display(), sysctl(RESERVED))
        })?;
        // The kernel merges and sorts the ranges that are written.
        let after = self.read(RESERVED)?;
        match made {
            Some(place) if ports.is_empty() => {
                self.changes.remove(place);
                self.inherited -= usize::from(place < self.inherited);
            }
            Some(place) => (self.changes[place].before, self.changes[place].after) = (before, after),
            None => {
                tracing::info!("{} set to {after} (was {before:?}) while snat needs it", sysctl(RESERVED));
                self.changes.push(SwitchChange { key: RESERVED.to_owned(), before, after });
            }
        }
        self.reserved.clone_from(ports);
        Ok(())
    }

    /// Switches forwarding on for `interfaces`, for IPv4 (`v4`), IPv6 (`v6`) or both, and resets switches that are no
    /// longer wanted. If the kernel forwards IPv6, interfaces that accept router advertisements continue to accept
    /// them, so that the host keeps its routers.
    ///
    /// # Errors
    /// Fails if a switch cannot be read or written; the error names the command that sets the switch by hand. After a
    /// failure, the function resets the switches that this call has changed.
    pub(super) fn set(&mut self, interfaces: &[&str], v4: bool, v6: bool) -> anyhow::Result<()> {
        let wanted = interfaces.iter().flat_map(|name| keys(name, v4, v6)).chain([RESERVED.to_owned()]);
        let wanted: Vec<String> = wanted.collect();
        let own = self.changes.split_off(self.inherited);
        let (kept, gone): (Vec<_>, Vec<_>) = own.into_iter().partition(|change| wanted.contains(&change.key));
        self.changes.extend(kept);
        for change in gone.iter().rev() {
            self.put_back(change);
            tracing::info!("{} set back to {}", sysctl(&change.key), change.before);
        }
        let before = self.changes.len();
        let switched = self.switch_all_on(interfaces, v4, v6);
        let fresh = self.changes.iter().skip(before);
        if switched.is_err() {
            fresh.rev().for_each(|change| self.put_back(change));
            self.changes.truncate(before);
        } else {
            for change in fresh {
                tracing::info!(
                    "{} set to {} (was {}) while nat needs it",
                    sysctl(&change.key),
                    change.after,
                    change.before
                );
            }
        }
        switched
    }

    /// Returns the changes, in the order in which they were made.
    pub(super) fn changes(&self) -> &[SwitchChange] {
        &self.changes
    }

    /// Allows this value to reset changes by an earlier process as well.
    pub(super) const fn settle(&mut self) {
        self.inherited = 0;
    }

    /// Drops the value without resetting any switch.
    pub(super) fn leave(mut self) {
        self.changes.clear();
    }

    /// Records the new names of renamed interfaces (pairs of old and new name) for their switches.
    pub(super) fn follow(&mut self, renamed: &[(String, String)]) {
        let parts = renamed.iter().map(|(before, now)| (format!("/conf/{before}/"), format!("/conf/{now}/")));
        let parts: Vec<_> = parts.collect();
        for change in &mut self.changes {
            if let Some((before, now)) = parts.iter().find(|(before, _)| change.key.contains(before)) {
                change.key = change.key.replace(before, now);
            }
        }
    }

    fn switch_all_on(&mut self, interfaces: &[&str], v4: bool, v6: bool) -> anyhow::Result<()> {
        let mut due = Vec::new();
        if v4 {
            for name in interfaces {
                due.extend(self.due(forwarding("ipv4", name), "0", "1")?);
            }
        }
        let mut keeps_routers = Vec::new();
        if v6 {
            let mut off = Vec::new();
            for name in interfaces {
                due.extend(self.due(accept_ra(name), "1", "2")?);
                off.extend(self.due(forwarding("ipv6", name), "0", "1")?);
            }
            // When forwarding is switched on for any interface, the kernel forgets the advertised routers of all
            // interfaces, except those where accept_ra is 2. To prevent this, the function temporarily sets accept_ra
            // to 2 on the other interfaces.
            if !off.is_empty() {
                keeps_routers = self.interfaces_v6();
                keeps_routers.retain(|name| !interfaces.contains(&name.as_str()));
            }
            due.extend(off);
        }
        let mut bystanders = Self::below(self.root.clone(), Vec::new());
        for name in keeps_routers {
            let kept = bystanders
                .due(accept_ra(&name), "1", "2")
                .and_then(|due| bystanders.write_all(due.into_iter().collect()));
            if let Err(error) = kept {
                tracing::warn!(
                    "interface {name} may lack its IPv6 router until the next router advertisement: \
                                {error:#}"
                );
            }
        }
        self.write_all(due)
    }

    /// Returns the change that sets a switch to `after`, if the present value of the switch is `before`.
    fn due(&self, key: String, before: &str, after: &str) -> anyhow::Result<Option<SwitchChange>> {
        let is_due = self.read(&key)? == before;
        Ok(is_due.then(|| SwitchChange { key, before: before.to_owned(), after: after.to_owned() }))
    }

    /// Makes all changes in the list.
    ///
    /// # Errors
    /// Fails if a change cannot be made; the error names the commands that make all changes by hand.
    fn write_all(&mut self, changes: Vec<SwitchChange>) -> anyhow::Result<()> {
        let mut first = None;
        let mut by_hand = String::new();
        for change in changes {
            let path = self.root.join(&change.key);
            if let Err(error) = fs::write(&path, &change.after) {
                first.get_or_insert((path, error));
                by_hand += &format!(" {}={}", sysctl(&change.key), change.after);
            } else if self.changes.iter().any(|made| made.key == change.key) {
                // The interface was recreated, or another program has reset the switch.
                tracing::info!("{} set to {} again", sysctl(&change.key), change.after);
            } else {
                self.changes.push(change);
            }
        }
        let Some((path, error)) = first else { return Ok(()) };
        bail!("cannot write {}: {error}; run `sysctl -w{by_hand}` before the start", path.display())
    }

    fn interfaces_v6(&self) -> Vec<String> {
        let directory = fs::read_dir(self.root.join("net/ipv6/conf"));
        let names = directory.into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name != "all" && name != "default").collect()
    }

    fn read(&self, key: &str) -> anyhow::Result<String> {
        let path = self.root.join(key);
        match fs::read_to_string(&path) {
            Ok(value) => Ok(value.trim().to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound && key.starts_with("net/ipv6") => Err(error)
                .with_context(|| format!("{}: is IPv6 switched off on this machine or interface?", path.display())),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    fn put_back(&self, change: &SwitchChange) {
        if let Err(error) = restore(&self.root, change) {
            let name = sysctl(&change.key);
            tracing::warn!("{name} is still {} and cannot be set back to {}: {error:#}", change.after, change.before);
        }
    }
}

impl Drop for Switches {
    fn drop(&mut self) {
        self.changes.iter().skip(self.inherited).rev().for_each(|change| self.put_back(change));
    }
}

fn restore(root: &Path, change: &SwitchChange) -> anyhow::Result<()> {
    let path = root.join(&change.key);
    if !path.exists() {
        return Ok(());
    }
    // If another program has changed a switch later, the function leaves the switch unchanged.
    let present = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    if present.trim() == change.after {
        fs::write(&path, &change.before).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn forwarding(family: &str, interface: &str) -> String {
    format!("net/{family}/conf/{interface}/forwarding")
}

fn accept_ra(interface: &str) -> String {
    format!("net/ipv6/conf/{interface}/accept_ra")
}

/// The switches of an interface that `nat` and `snat` need for these address families.
fn keys(interface: &str, v4: bool, v6: bool) -> impl Iterator<Item = String> {
    let v4 = v4.then(|| forwarding("ipv4", interface));
    let v6 = v6.then(|| [forwarding("ipv6", interface), accept_ra(interface)]);
    v4.into_iter().chain(v6.into_iter().flatten())
}

/// The name of a switch for sysctl(8), in which a slash replaces each dot of an interface name.
fn sysctl(key: &str) -> String {
    key.chars()
        .map(|c| match c {
            '/' => '.',
            '.' => '/',
            other => other,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Tree(tempfile::TempDir);

    impl Tree {
        /// Creates files for the switches of eth0, eth1.100 and wan0, with forwarding off and advertisements accepted.
        fn new() -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            for name in ["all", "default", "eth0", "eth1.100", "wan0"] {
                for (family, switch, value) in
                    [("ipv4", "forwarding", "0\n"), ("ipv6", "forwarding", "0\n"), ("ipv6", "accept_ra", "1\n")]
                {
                    let path = tree.0.path().join(format!("net/{family}/conf/{name}/{switch}"));
                    fs::create_dir_all(path.parent().unwrap()).unwrap();
                    fs::write(path, value).unwrap();
                }
            }
            fs::write(tree.0.path().join(RESERVED), "\n").unwrap();
            tree
        }

        fn set(&self, key: &str, value: &str) {
            fs::write(self.0.path().join(key), value).unwrap();
        }

        fn get(&self, key: &str) -> String {
            fs::read_to_string(self.0.path().join(key)).unwrap().trim().to_owned()
        }

        /// Returns the values of forwarding (v4), forwarding (v6) and accept_ra.
        fn state(&self, name: &str) -> [String; 3] {
            ["ipv4/conf/NAME/forwarding", "ipv6/conf/NAME/forwarding", "ipv6/conf/NAME/accept_ra"]
                .map(|key| self.get(&format!("net/{}", key.replace("NAME", name))))
        }

        fn switches(&self) -> Switches {
            Switches::below(self.0.path().to_owned(), Vec::new())
        }
    }

    #[test]
    fn when_forwarding_is_wanted_then_it_is_switched_on_and_put_back() {
        let tree = Tree::new();
        let mut switches = tree.switches();
        switches.set(&["eth0", "eth1.100"], true, true).unwrap();
        assert_eq!(tree.state("eth0"), ["1", "1", "2"]);
        assert_eq!(tree.state("eth1.100"), ["1", "1", "2"]);
        assert_eq!(tree.state("wan0"), ["0", "0", "1"]);
        drop(switches);
        assert_eq!(tree.state("eth0"), ["0", "0", "1"]);
        assert_eq!(tree.state("eth1.100"), ["0", "0", "1"]);
    }

    #[test]
    fn when_ports_are_reserved_then_those_of_others_stay_and_ours_are_given_back() {
        let tree = Tree::new();
        tree.set(RESERVED, "8080\n");
        let ports = |ranges: &[(u16, u16)]| ranges.iter().copied().collect();
        let mut switches = tree.switches();
        switches.reserve(&ports(&[])).unwrap();
        assert_eq!((tree.get(RESERVED), switches.changes().len()), ("8080".to_owned(), 0));
        switches.reserve(&ports(&[(20_000, 20_999)])).unwrap();
        assert_eq!(tree.get(RESERVED), "8080,20000-20999");
        // Every few seconds, the task resets unwanted switches and sets wanted switches.
        switches.set(&["eth0"], true, false).unwrap();
        assert_eq!(tree.get(RESERVED), "8080,20000-20999");
        switches.reserve(&ports(&[(30_000, 30_999)])).unwrap();
        assert_eq!(tree.get(RESERVED), "8080,30000-30999");
        // An earlier controller has reserved these ports.
        let inherited = switches.changes().to_vec();
        switches.leave();
        let mut switches = Switches::below(tree.0.path().to_owned(), inherited);
        switches.reserve(&ports(&[(30_000, 30_999)])).unwrap();
        assert_eq!(tree.get(RESERVED), "8080,30000-30999");
        switches.settle();
        drop(switches);
        assert_eq!(tree.get(RESERVED), "8080");
    }

    #[test]
    fn when_the_wanted_interfaces_change_then_switches_follow() {
        let tree = Tree::new();
        let mut switches = tree.switches();
        for (names, v4, v6, eth0, wan0) in [
            (&["eth0"][..], false, false, ["0", "0", "1"], ["0", "0", "1"]),
            (&["eth0"], true, false, ["1", "0", "1"], ["0", "0", "1"]),
            (&["eth0"], true, true, ["1", "1", "2"], ["0", "0", "1"]),
            (&["eth0", "wan0"], false, true, ["0", "1", "2"], ["0", "1", "2"]),
            (&["wan0"], true, true, ["0", "0", "1"], ["1", "1", "2"]),
            (&[], true, true, ["0", "0", "1"], ["0", "0", "1"]),
        ] {
            switches.set(names, v4, v6).unwrap();
            assert_eq!(
                (tree.state("eth0"), tree.state("wan0")),
                (eth0.map(Into::into), wan0.map(Into::into)),
                "{names:?}"
            );
            // A repeated call does not record a change twice.
            let changes = switches.changes().to_vec();
            switches.set(names, v4, v6).unwrap();
            assert_eq!(switches.changes(), changes);
        }
        assert!(switches.changes().is_empty());
    }

    #[test]
    fn when_an_interface_is_recreated_then_it_is_switched_on_and_put_back_like_the_first() {
        let tree = Tree::new();
        let mut switches = tree.switches();
        switches.set(&["eth0"], true, true).unwrap();
        for (key, value) in [("ipv4/conf/eth0/forwarding", "0"), ("ipv6/conf/eth0/forwarding", "0")] {
            tree.set(&format!("net/{key}"), value);
        }
        tree.set("net/ipv6/conf/eth0/accept_ra", "1");
        switches.set(&["eth0"], true, true).unwrap();
        assert_eq!(tree.state("eth0"), ["1", "1", "2"]);
        assert_eq!(switches.changes().len(), 3);
        drop(switches);
        assert_eq!(tree.state("eth0"), ["0", "0", "1"]);
    }

    #[test]
    fn when_a_switch_was_right_or_has_changed_since_then_it_is_left_alone() {
        let tree = Tree::new();
        tree.set("net/ipv4/conf/eth0/forwarding", "1");
        tree.set("net/ipv6/conf/eth0/accept_ra", "0");
        let mut switches = tree.switches();
        switches.set(&["eth0"], true, true).unwrap();
        assert_eq!(tree.state("eth0"), ["1", "1", "0"]);
        tree.set("net/ipv6/conf/eth0/forwarding", "2");
        drop(switches);
        assert_eq!(tree.state("eth0"), ["1", "2", "0"]);
    }

    #[test]
    fn when_a_start_fails_then_changes_of_an_earlier_process_stay() {
        let tree = Tree::new();
        let mut first = tree.switches();
        first.set(&["eth0"], true, false).unwrap();
        let inherited = first.changes().to_vec();
        first.leave();
        let next = || Switches::below(tree.0.path().to_owned(), inherited.clone());
        let mut failing = next();
        failing.set(&["eth0", "wan0"], true, false).unwrap();
        drop(failing);
        assert_eq!(
            (tree.state("eth0"), tree.state("wan0")),
            (["1", "0", "1"].map(Into::into), ["0", "0", "1"].map(Into::into))
        );
        let mut settled = next();
        settled.set(&["eth0", "wan0"], true, false).unwrap();
        settled.settle();
        drop(settled);
        assert_eq!(tree.state("eth0"), ["0", "0", "1"]);
    }

    #[test]
    fn when_a_switch_cannot_be_written_then_everything_is_put_back_and_the_command_is_given() {
        let tree = Tree::new();
        let mut switches = tree.switches();
        switches.set(&["wan0"], true, false).unwrap();
        fs::remove_file(tree.0.path().join("net/ipv6/conf/eth1.100/forwarding")).unwrap();
        let error = format!("{:#}", switches.set(&["wan0", "eth0", "eth1.100"], true, true).unwrap_err());
        assert!(error.contains("is IPv6 switched off"), "{error}");
        assert_eq!(tree.state("eth0"), ["0", "0", "1"]);
        assert_eq!(tree.state("wan0"), ["1", "0", "1"]);
        assert_eq!(tree.get("net/ipv4/conf/eth1.100/forwarding"), "0");
        assert_eq!(sysctl("net/ipv4/conf/eth1.100/forwarding"), "net.ipv4.conf.eth1/100.forwarding");
    }

    #[test]
    fn when_several_switches_cannot_be_written_then_all_are_named_at_once() {
        let tree = Tree::new();
        // Writing fails because the path is a directory, even for root.
        let change = |key: &str| SwitchChange { key: key.to_owned(), before: "0".to_owned(), after: "1".to_owned() };
        let mut switches = tree.switches();
        let error = switches
            .write_all(vec![
                change("net/ipv4/conf/eth1.100"),
                change("net/ipv4/conf/wan0/forwarding"),
                change("net/ipv6/conf/eth0"),
            ])
            .unwrap_err()
            .to_string();
        assert!(error.contains("`sysctl -w net.ipv4.conf.eth1/100=1 net.ipv6.conf.eth0=1`"), "{error}");
        assert_eq!(switches.changes().len(), 1);
    }

    #[test]
    fn when_an_interface_is_renamed_then_its_switches_are_put_back_under_the_new_name() {
        let tree = Tree::new();
        let mut switches = tree.switches();
        switches.set(&["eth0"], true, true).unwrap();
        for family in ["ipv4", "ipv6"] {
            let conf = tree.0.path().join(format!("net/{family}/conf"));
            fs::rename(conf.join("eth0"), conf.join("lan0")).unwrap();
        }
        switches.follow(&[("eth0".to_owned(), "lan0".to_owned())]);
        switches.set(&["lan0"], true, true).unwrap();
        assert_eq!(tree.state("lan0"), ["1", "1", "2"]);
        drop(switches);
        assert_eq!(tree.state("lan0"), ["0", "0", "1"]);
    }
}
