//! The kernel's forwarding switches. `nat` replies ask its routing tables for the way to the client, and they answer
//! only for interfaces that may forward.

use std::{
    fs, io,
    path::{Path, PathBuf},
    slice,
};

use anyhow::{Context as _, anyhow};

use serde::{Deserialize, Serialize};

use super::interfaces::Interface;

const PROC_SYS: &str = "/proc/sys";

/// Forwarding, switched on for some interfaces. What was changed is put back when this is dropped.
#[derive(Debug)]
#[must_use = "dropping this switches forwarding off again"]
pub struct IpForwarding {
    root: PathBuf,
    /// In the order made.
    changes: Vec<Change>,
}

/// A switch that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Below the root, e.g. `net/ipv4/conf/eth0/forwarding`.
    key: String,
    before: String,
    after: String,
}

impl IpForwarding {
    /// Switches forwarding on for `interfaces`, IPv4 (`v4`) or IPv6 (`v6`) or both. With IPv6, interfaces that accept
    /// router advertisements go on doing so, so that the host keeps its routers.
    ///
    /// # Errors
    /// When a switch cannot be read or written; the error gives the command to run by hand. What was changed before is
    /// put back.
    pub fn ensure(interfaces: &[Interface], v4: bool, v6: bool) -> anyhow::Result<Self> {
        Self::ensure_in(PROC_SYS.into(), interfaces, v4, v6)
    }

    /// What was changed, in the order made.
    #[must_use]
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Leaves everything switched as it is.
    pub fn leave(mut self) {
        self.changes.clear();
    }

    /// Has the changes of an earlier process put back when this is dropped.
    pub fn inherited(changes: Vec<Change>) -> Self {
        Self { root: PROC_SYS.into(), changes }
    }

    fn ensure_in(root: PathBuf, interfaces: &[Interface], v4: bool, v6: bool) -> anyhow::Result<Self> {
        let mut forwarding = Self { root, changes: Vec::new() };
        forwarding.switch_all_on(interfaces, v4, v6)?;
        Ok(forwarding)
    }

    /// The same for an interface that was made anew, whose switches are as in the beginning.
    ///
    /// # Errors
    /// As in [`ensure`](Self::ensure).
    pub fn ensure_anew(&mut self, interface: &Interface, v4: bool, v6: bool) -> anyhow::Result<()> {
        let own = format!("/conf/{}/", interface.name);
        self.changes.retain(|change| !change.key.contains(&own));
        self.switch_all_on(slice::from_ref(interface), v4, v6)
    }

    fn switch_all_on(&mut self, interfaces: &[Interface], v4: bool, v6: bool) -> anyhow::Result<()> {
        let before = self.changes.len();
        if v4 {
            for interface in interfaces {
                self.switch_on(&format!("net/ipv4/conf/{}/forwarding", interface.name))?;
            }
        }
        if v6 {
            self.ensure_v6(interfaces)?;
        }
        for change in self.changes.iter().skip(before) {
            tracing::info!("{} set to {} (was {}) until exit", sysctl(&change.key), change.after, change.before);
        }
        Ok(())
    }

    fn ensure_v6(&mut self, interfaces: &[Interface]) -> anyhow::Result<()> {
        for interface in interfaces {
            self.keep_accepting_routers(&interface.name)?;
        }
        let switches: Vec<String> =
            interfaces.iter().map(|interface| format!("net/ipv6/conf/{}/forwarding", interface.name)).collect();
        let mut off = Vec::new();
        for key in switches {
            if self.read(&key)? == "0" {
                off.push(key);
            }
        }
        if off.is_empty() {
            return Ok(());
        }
        // Switching it on for any interface makes the kernel forget the advertised routers of all interfaces, except
        // where accept_ra is 2. So the others are at 2 for that moment.
        let mut bystanders = Self { root: self.root.clone(), changes: Vec::new() };
        for name in self.interfaces_v6() {
            if !interfaces.iter().any(|interface| interface.name == name)
                && let Err(error) = bystanders.keep_accepting_routers(&name)
            {
                tracing::warn!("interface {name} may lose its IPv6 router until the next advertisement: {error:#}");
            }
        }
        off.iter().try_for_each(|key| self.switch_on(key))
    }

    fn keep_accepting_routers(&mut self, interface: &str) -> anyhow::Result<()> {
        let key = format!("net/ipv6/conf/{interface}/accept_ra");
        if self.read(&key)? == "1" { self.write(&key, "1", "2") } else { Ok(()) }
    }

    fn switch_on(&mut self, key: &str) -> anyhow::Result<()> {
        let before = self.read(key)?;
        if before == "0" { self.write(key, &before, "1") } else { Ok(()) }
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

    fn write(&mut self, key: &str, before: &str, after: &str) -> anyhow::Result<()> {
        let path = self.root.join(key);
        fs::write(&path, after).map_err(|error| {
            anyhow!(
                "cannot write {}: {error}; run `sysctl -w {}={after}` before the start",
                path.display(),
                sysctl(key)
            )
        })?;
        self.changes.push(Change { key: key.to_owned(), before: before.to_owned(), after: after.to_owned() });
        Ok(())
    }

    fn restore(&self, change: &Change) -> anyhow::Result<()> {
        let path: &Path = &self.root.join(&change.key);
        if !path.exists() {
            return Ok(());
        }
        // Somebody else's later change stays.
        if self.read(&change.key)? == change.after {
            fs::write(path, &change.before).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }
}

impl Drop for IpForwarding {
    fn drop(&mut self) {
        for change in self.changes.iter().rev() {
            if let Err(error) = self.restore(change) {
                let name = sysctl(&change.key);
                tracing::warn!("{name} stays {} (was {}): {error:#}", change.after, change.before);
            }
        }
    }
}

/// The name of a switch for sysctl(8), where an interface name's own dots are written as slashes.
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
        /// Switches of eth0, eth1.100 and wan0, with forwarding off and advertisements accepted.
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
            tree
        }

        fn set(&self, key: &str, value: &str) {
            fs::write(self.0.path().join(key), value).unwrap();
        }

        fn get(&self, key: &str) -> String {
            fs::read_to_string(self.0.path().join(key)).unwrap().trim().to_owned()
        }

        /// forwarding (v4), forwarding (v6), accept_ra.
        fn state(&self, name: &str) -> [String; 3] {
            ["ipv4/conf/NAME/forwarding", "ipv6/conf/NAME/forwarding", "ipv6/conf/NAME/accept_ra"]
                .map(|key| self.get(&format!("net/{}", key.replace("NAME", name))))
        }

        fn ensure(&self, names: &[&str], v4: bool, v6: bool) -> anyhow::Result<IpForwarding> {
            let interfaces: Vec<Interface> = names
                .iter()
                .map(|&name| Interface { name: name.to_owned(), ifindex: 2, mac: [0; 6], mtu: 1500, up: true })
                .collect();
            IpForwarding::ensure_in(self.0.path().to_owned(), &interfaces, v4, v6)
        }
    }

    #[test]
    fn switches_on_and_puts_back() {
        let tree = Tree::new();
        let forwarding = tree.ensure(&["eth0", "eth1.100"], true, true).unwrap();
        assert_eq!(tree.state("eth0"), ["1", "1", "2"]);
        assert_eq!(tree.state("eth1.100"), ["1", "1", "2"]);
        assert_eq!(tree.state("wan0"), ["0", "0", "1"]);
        drop(forwarding);
        assert_eq!(tree.state("eth0"), ["0", "0", "1"]);
        assert_eq!(tree.state("eth1.100"), ["0", "0", "1"]);
    }

    #[test]
    fn an_interface_made_anew_is_switched_on_and_put_back_like_the_first() {
        let tree = Tree::new();
        let mut forwarding = tree.ensure(&["eth0"], true, true).unwrap();
        for (key, value) in [("ipv4/conf/eth0/forwarding", "0"), ("ipv6/conf/eth0/forwarding", "0")] {
            tree.set(&format!("net/{key}"), value);
        }
        tree.set("net/ipv6/conf/eth0/accept_ra", "1");
        let anew = Interface { name: "eth0".to_owned(), ifindex: 9, mac: [0; 6], mtu: 1500, up: true };
        forwarding.ensure_anew(&anew, true, true).unwrap();
        assert_eq!(tree.state("eth0"), ["1", "1", "2"]);
        drop(forwarding);
        assert_eq!(tree.state("eth0"), ["0", "0", "1"]);
    }

    #[test]
    fn touches_only_the_families_asked_for() {
        let tree = Tree::new();
        let _v4 = tree.ensure(&["eth0"], true, false).unwrap();
        assert_eq!(tree.state("eth0"), ["1", "0", "1"]);
        let _v6 = tree.ensure(&["wan0"], false, true).unwrap();
        assert_eq!(tree.state("wan0"), ["0", "1", "2"]);
    }

    #[test]
    fn leaves_alone_what_was_right_or_was_changed_since() {
        let tree = Tree::new();
        tree.set("net/ipv4/conf/eth0/forwarding", "1");
        tree.set("net/ipv6/conf/eth0/accept_ra", "0");
        let forwarding = tree.ensure(&["eth0"], true, true).unwrap();
        assert_eq!(tree.state("eth0"), ["1", "1", "0"]);
        tree.set("net/ipv6/conf/eth0/forwarding", "2");
        drop(forwarding);
        assert_eq!(tree.state("eth0"), ["1", "2", "0"]);
    }

    #[test]
    fn a_failure_puts_everything_back_and_gives_the_command() {
        let tree = Tree::new();
        // A directory cannot be written to, whoever asks.
        let key = tree.0.path().join("net/ipv6/conf/eth1.100/forwarding");
        fs::remove_file(&key).unwrap();
        let error = format!("{:#}", tree.ensure(&["eth0", "eth1.100"], true, true).unwrap_err());
        assert!(error.contains("is IPv6 switched off"), "{error}");
        assert_eq!(tree.state("eth0"), ["0", "0", "1"]);
        assert_eq!(tree.get("net/ipv4/conf/eth1.100/forwarding"), "0");
        assert_eq!(sysctl("net/ipv4/conf/eth1.100/forwarding"), "net.ipv4.conf.eth1/100.forwarding");

        let mut forwarding = IpForwarding { root: tree.0.path().to_owned(), changes: Vec::new() };
        let error = forwarding.write("net/ipv4/conf/eth0", "0", "1").unwrap_err().to_string();
        assert!(error.contains("sysctl -w net.ipv4.conf.eth0=1"), "{error}");
        assert!(forwarding.changes.is_empty());
    }
}
