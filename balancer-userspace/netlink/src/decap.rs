//! The command `balancer decap`: strips tunnel headers on a backend until a signal ends the command.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use anyhow::Context as _;
use balancer_config::config::XdpMode;
use balancer_dataplane::{Decap, privileges};
use balancer_runtime::shutdown::Signals;
use futures_util::{StreamExt as _, TryStreamExt as _};
use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::{Handle, MulticastGroup};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::interfaces::{self, Interface};

/// The interval at which the task rereads the machine's addresses even without a notification, because the kernel drops
/// some notifications during bursts.
const REFRESH: Duration = Duration::from_secs(5);
/// The maximum time to wait for the kernel's answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Strips tunnel headers from packets that arrive on the interfaces `names`, until SIGTERM or SIGINT. Each inner packet
/// must be for one of `vips`, or for an address of this machine on another interface. Each outer packet must be for an
/// address of this machine, and must come from one of the prefixes `from`, unless `from` is empty. The function keeps
/// the program's set of addresses up to date. The function detaches the program from all interfaces before it returns,
/// even in case of an error.
///
/// # Errors
/// Fails with one line that gives the reason why tunnel headers cannot be stripped.
pub async fn run(names: &[String], vips: &[IpAddr], from: &[IpNet], mode: XdpMode) -> anyhow::Result<()> {
    privileges::check_to_steer()?;
    let mut signals = Signals::new().context("catching signals")?;
    let interfaces = interfaces::resolve(names).await?;
    let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, handle, mut changes) =
        rtnetlink::new_multicast_connection(&groups).context("opening a netlink socket")?;
    tokio::spawn(connection);
    let wanted = async || -> anyhow::Result<Local> {
        let mut local = local_addresses(&handle, &interfaces).await?;
        local.vips.extend(vips);
        Ok(local)
    };

    let mut decap = Decap::load(from)?;
    let Local { vips, own } = wanted().await?;
    decap.set_addresses(&vips, &own)?;
    for interface in &interfaces {
        let attached = decap.attach(&interface.name, interface.ifindex, mode)?;
        info!("attached to {} in {} mode", attached.at.name, attached.at.mode());
    }
    if from.is_empty() {
        warn!("tunnel packets are accepted from any sender: give --from PREFIX for each balancer's address");
    }
    say(&decap.vips());

    let mut refresh = interval(REFRESH);
    refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let signal = loop {
        tokio::select! {
            signal = signals.next() => break signal,
            _ = refresh.tick() => {}
            Some(_) = changes.next() => while changes.try_recv().is_ok() {},
        }
        let before = decap.vips();
        let followed = async {
            let Local { vips, own } = wanted().await?;
            decap.set_addresses(&vips, &own)
        };
        let followed = followed.await;
        if decap.vips() != before {
            say(&decap.vips());
        }
        if let Err(error) = followed {
            warn!("cannot follow this machine's addresses: {error:#}");
        }
    };
    let detached = decap.detach();
    let stats = decap.stats()?;
    info!(
        "{signal}: detached; packets: {} stripped, {} refused, {} malformed, {} passed",
        stats.stripped, stats.refused, stats.malformed, stats.passed
    );
    detached
}

fn say(vips: &BTreeSet<IpAddr>) {
    if vips.is_empty() {
        warn!(
            "every tunnel packet is refused, because this machine does not have the VIP: add it to lo (`ip addr add \
               VIP dev lo`), or give --vip"
        );
        return;
    }
    let list: Vec<String> = vips.iter().map(IpAddr::to_string).collect();
    info!("stripping tunnel headers for {}", list.join(", "));
}

/// The addresses of this machine.
struct Local {
    /// The allowed destinations of inner packets: addresses on interfaces without the program.
    vips: BTreeSet<IpAddr>,
    /// The allowed destinations of outer packets: all addresses of this machine.
    own: BTreeSet<IpAddr>,
}

async fn local_addresses(handle: &Handle, attached: &[Interface]) -> anyhow::Result<Local> {
    let dump = handle.address().get().execute().try_collect::<Vec<AddressMessage>>();
    let messages = tokio::time::timeout(TIMEOUT, dump)
        .await
        .context("listing the addresses: no answer from the kernel")?
        .context("listing the addresses")?;
    let elsewhere =
        |message: &&AddressMessage| attached.iter().all(|interface| interface.ifindex != message.header.index);
    let vips = messages.iter().filter(elsewhere).filter_map(local).filter(|&address| may_be_a_vip(address));
    let own = messages.iter().filter_map(local).filter(|address| !address.is_loopback());
    Ok(Local { vips: vips.collect(), own: own.collect() })
}

/// The local address in a netlink message: for IPv4 and on point-to-point links a separate attribute, otherwise the
/// address attribute.
fn local(message: &AddressMessage) -> Option<IpAddr> {
    let mut found = None;
    for attribute in &message.attributes {
        if let AddressAttribute::Local(address) = attribute {
            return Some(*address);
        }
        if let AddressAttribute::Address(address) = attribute {
            found = Some(*address);
        }
    }
    found
}

fn may_be_a_vip(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !(link_local || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(attributes: Vec<AddressAttribute>) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.attributes = attributes;
        message
    }

    #[test]
    fn when_a_message_has_two_ends_then_the_local_one_counts() {
        let [own, peer]: [IpAddr; 2] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap());
        let both = vec![AddressAttribute::Address(peer), AddressAttribute::Local(own)];
        assert_eq!(local(&message(both)), Some(own));
        assert_eq!(local(&message(vec![AddressAttribute::Address(own)])), Some(own));
        assert_eq!(local(&message(Vec::new())), None);
    }

    #[test]
    fn when_others_cannot_send_to_an_address_then_it_is_no_vip() {
        for (text, expected) in [
            ("198.51.100.10", true),
            ("10.0.0.1", true),
            ("2001:db8::10", true),
            ("fd00::10", true),
            ("127.0.0.1", false),
            ("127.0.0.53", false),
            ("169.254.1.1", false),
            ("::1", false),
            ("fe80::1", false),
        ] {
            assert_eq!(may_be_a_vip(text.parse().unwrap()), expected, "{text}");
        }
    }
}
