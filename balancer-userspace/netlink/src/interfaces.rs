//! The network interfaces of the machine, read through rtnetlink.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, bail};
use balancer_common::map_types::Mac;
use balancer_config::names::nearest;
use futures_util::TryStreamExt as _;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use nix::net::if_::if_indextoname;
use rtnetlink::Handle;

/// The maximum time to wait for the kernel's answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// An Ethernet interface to which a program can be attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The name of the interface.
    pub name: String,
    /// The index of the interface.
    pub ifindex: u32,
    /// The interface's Ethernet address.
    pub mac: Mac,
    /// The interface's MTU, in bytes.
    pub mtu: u32,
    /// Whether the interface is administratively up.
    pub up: bool,
}

/// A link of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub ifindex: u32,
    pub name: String,
    /// The Ethernet address of the link; `None` for the loopback interface, and for links without Ethernet frames.
    pub mac: Option<Mac>,
    pub mtu: u32,
    pub loopback: bool,
    /// Whether the link is administratively up.
    pub up: bool,
    /// Whether the link is operationally up; also true if the driver does not report this.
    pub running: bool,
    /// The kind of virtual device; `None` for hardware.
    pub kind: Option<InfoKind>,
    /// The lower device or the peer of the link, if that device is in this network namespace.
    pub lower: Option<u32>,
    /// The bridge, bond or similar device that has the link as a member.
    pub master: Option<u32>,
    /// The number of times that the link's carrier came up.
    pub carrier_ups: u32,
}

impl Link {
    pub(crate) fn from_message(message: &LinkMessage) -> Self {
        let flags = message.header.flags;
        let loopback = flags.contains(LinkFlags::Loopback);
        let ethernet = message.header.link_layer_type == LinkLayerType::Ether && !loopback;
        let mut link = Self {
            ifindex: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            loopback,
            up: flags.contains(LinkFlags::Up),
            running: flags.contains(LinkFlags::Running),
            kind: None,
            lower: None,
            master: None,
            carrier_ups: 0,
        };
        let mut elsewhere = false;
        for attribute in &message.attributes {
            if let LinkAttribute::IfName(name) = attribute {
                link.name.clone_from(name);
            } else if let LinkAttribute::Mtu(mtu) = attribute {
                link.mtu = *mtu;
            } else if let LinkAttribute::Address(address) = attribute
                && ethernet
            {
                link.mac = Mac::try_from(address.as_slice()).ok();
            } else if let LinkAttribute::Link(lower) = attribute {
                link.lower = Some(*lower);
            } else if let LinkAttribute::CarrierUpCount(count) = attribute {
                link.carrier_ups = *count;
            } else if let LinkAttribute::LinkNetNsId(_) = attribute {
                elsewhere = true;
            } else if let LinkAttribute::Controller(master) = attribute {
                link.master = Some(*master);
            } else if let LinkAttribute::LinkInfo(infos) = attribute {
                link.kind = infos
                    .iter()
                    .find_map(|info| if let LinkInfo::Kind(kind) = info { Some(kind.clone()) } else { None });
            }
        }
        // An index from another network namespace has no meaning in this namespace.
        link.lower = link.lower.filter(|_| !elsewhere);
        link
    }
}

/// The name of an interface; the index as text if the interface was removed.
pub fn name(ifindex: u32) -> String {
    let name = if_indextoname(ifindex).ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| ifindex.to_string())
}

/// All links of the network namespace.
pub async fn links(handle: &Handle) -> anyhow::Result<Vec<Link>> {
    let dump = handle.link().get().execute().map_ok(|message| Link::from_message(&message)).try_collect();
    tokio::time::timeout(TIMEOUT, dump)
        .await
        .context("listing the network interfaces: no answer from the kernel")?
        .context("listing the network interfaces")
}

/// Finds the interfaces with the names `names`, and returns the interfaces in the order of the names.
///
/// # Errors
/// Fails if the kernel does not answer, or if a name does not exist, occurs twice, or belongs to an interface without
/// Ethernet frames, such as the loopback interface. The error about a missing name suggests the most similar name and
/// lists all existing names.
pub async fn resolve(names: &[String]) -> anyhow::Result<Vec<Interface>> {
    let (connection, handle, _) = rtnetlink::new_connection().context("opening a netlink socket")?;
    let connection = tokio::spawn(connection);
    let links = links(&handle).await;
    connection.abort();
    select(names, &links?)
}

/// The result of a search for wanted interfaces.
pub enum Search {
    /// The indices of the existing interfaces and of their members.
    Found(Vec<u32>),
    /// None of the wanted interfaces exists; the error names the most similar interface and lists all existing
    /// interfaces.
    Absent(anyhow::Error),
}

/// Searches for the interfaces with these names.
///
/// # Errors
/// Fails in the same cases as [`resolve`], except that missing interfaces are not an error.
pub async fn search(names: &[String]) -> anyhow::Result<Search> {
    let (connection, handle, _) = rtnetlink::new_connection().context("opening a netlink socket")?;
    let connection = tokio::spawn(connection);
    let links = links(&handle).await;
    connection.abort();
    let links = links?;
    let there: Vec<String> =
        names.iter().filter(|name| links.iter().any(|link| link.name == **name)).cloned().collect();
    if there.is_empty() {
        return Ok(select(names, &links).map_or_else(Search::Absent, |_| Search::Found(Vec::new())));
    }
    let with_parts = |interface: &Interface| -> Vec<u32> {
        let parts = parts(interface.ifindex, &links).map(|part| part.ifindex);
        std::iter::once(interface.ifindex).chain(parts).collect()
    };
    Ok(Search::Found(select(&there, &links)?.iter().flat_map(with_parts).collect()))
}

/// The members of a bond or team device. The driver runs the attached program for packets of each member, with the
/// member's own index.
pub fn parts(ifindex: u32, links: &[Link]) -> impl Iterator<Item = &Link> {
    let is_made_of_others =
        links.iter().any(|link| link.ifindex == ifindex && matches!(link.kind, Some(InfoKind::Bond | InfoKind::Team)));
    links.iter().filter(move |link| is_made_of_others && link.master == Some(ifindex))
}

/// The index and name of those devices, among the interface and its lower devices, that carry VLANs and therefore
/// receive tagged frames.
pub fn tagged(ifindex: u32, links: &[Link]) -> BTreeMap<u32, String> {
    let carries = links.iter().any(|link| link.kind == Some(InfoKind::Vlan) && link.lower == Some(ifindex));
    let own = links.iter().filter(|link| link.ifindex == ifindex);
    let all = own.chain(parts(ifindex, links)).filter(|_| carries);
    all.map(|link| (link.ifindex, link.name.clone())).collect()
}

/// Does the same as [`resolve`], but only for interfaces in `links`.
pub fn select(names: &[String], links: &[Link]) -> anyhow::Result<Vec<Interface>> {
    let mut interfaces: Vec<Interface> = Vec::with_capacity(names.len());
    for name in names {
        let Some(link) = links.iter().find(|link| link.name == *name) else {
            bail!("interface {name} does not exist{}", suggestion(name, links));
        };
        if interfaces.iter().any(|interface| interface.ifindex == link.ifindex) {
            bail!("interface {name} is named twice: name each interface once");
        }
        if link.loopback {
            bail!("interface {name} is the loopback: name the interface that clients' packets come in by");
        }
        let Some(mac) = link.mac else {
            bail!("interface {name} carries no Ethernet frames: name an Ethernet interface");
        };
        interfaces.push(Interface { name: name.clone(), ifindex: link.ifindex, mac, mtu: link.mtu, up: link.up });
    }
    Ok(interfaces)
}

/// Checks that an interface of any kind with this name exists.
pub fn find(name: &str, links: &[Link]) -> anyhow::Result<()> {
    if links.iter().any(|link| link.name == name) {
        return Ok(());
    }
    let names: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
    bail!("interface {name} does not exist: there are {}", names.join(", "))
}

fn suggestion(name: &str, links: &[Link]) -> String {
    let mut usable: Vec<&str> = links.iter().filter(|link| link.mac.is_some()).map(|link| link.name.as_str()).collect();
    usable.sort_unstable();
    match nearest(name, usable.iter().copied()) {
        _ if usable.is_empty() => ": this machine has no Ethernet interface".to_owned(),
        Some(nearest) => format!(": did you mean {nearest}? There are: {}", usable.join(", ")),
        None => format!(": there are: {}", usable.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::neighbours::test_link;

    fn link(ifindex: u32, name: &str) -> Link {
        Link { mac: Some([2, 0, 0, 0, 0, ifindex as u8]), ..test_link(ifindex, name) }
    }

    fn links() -> Vec<Link> {
        vec![
            Link { loopback: true, mac: None, ..link(1, "lo") },
            link(2, "eth0"),
            link(3, "eth1"),
            Link { mac: None, ..link(4, "tun0") },
        ]
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn error(wanted: &[&str]) -> String {
        select(&names(wanted), &links()).unwrap_err().to_string()
    }

    #[test]
    fn when_interfaces_are_named_then_they_are_found_in_that_order() {
        let found = select(&names(&["eth1", "eth0"]), &links()).unwrap();
        assert_eq!(found.iter().map(|interface| interface.ifindex).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(found[0].mac, [2, 0, 0, 0, 0, 3]);
    }

    #[test]
    fn when_an_interface_is_refused_then_the_error_says_what_would_be_right() {
        assert_eq!(error(&["eht0"]), "interface eht0 does not exist: did you mean eth0? There are: eth0, eth1");
        assert_eq!(error(&["wlp3s0"]), "interface wlp3s0 does not exist: there are: eth0, eth1");
        assert!(error(&["eth0", "eth0"]).contains("named twice"));
        assert!(error(&["lo"]).contains("is the loopback"));
        assert!(error(&["tun0"]).contains("no Ethernet frames"));
        let none = select(&names(&["eth0"]), &[]).unwrap_err().to_string();
        assert_eq!(none, "interface eth0 does not exist: this machine has no Ethernet interface");
    }

    #[test]
    fn when_a_device_is_a_bond_or_team_then_it_has_members_and_a_bridge_has_none() {
        for (kind, expected) in [(InfoKind::Bond, &[2, 3][..]), (InfoKind::Team, &[2, 3]), (InfoKind::Bridge, &[])] {
            let part = |ifindex, name| Link { master: Some(9), ..link(ifindex, name) };
            let links = [
                part(2, "eth0"),
                part(3, "eth1"),
                Link { kind: Some(kind.clone()), ..link(9, "one0") },
                Link { master: Some(10), ..link(4, "eth2") },
                Link { kind: Some(InfoKind::Vlan), lower: Some(9), ..link(11, "one0.7") },
            ];
            assert_eq!(parts(9, &links).map(|part| part.ifindex).collect::<Vec<_>>(), expected, "{kind:?}");
            let tagged: Vec<u32> = tagged(9, &links).into_keys().collect();
            assert_eq!(tagged, [expected, &[9]].concat(), "{kind:?}: a VLAN lies upon it");
            assert_eq!(parts(11, &links).count() + parts(10, &links).count() + parts(2, &links).count(), 0);
        }
    }

    #[tokio::test]
    async fn when_the_kernel_is_asked_then_the_loopback_and_unknown_names_are_refused() {
        let error = resolve(&names(&["lo"])).await.unwrap_err().to_string();
        assert!(error.contains("is the loopback"), "{error}");
        assert!(resolve(&names(&["no-such-if"])).await.unwrap_err().to_string().contains("does not exist"));
    }
}
