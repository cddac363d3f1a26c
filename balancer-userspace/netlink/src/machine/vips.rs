//! VIPs that the balancer assigns to its machine (`assign_vip`). The VIPs carry a protocol number of the balancer
//! (`IFA_PROTO`), by which any program can distinguish them from the operator's addresses.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use anyhow::Context as _;
use futures_util::TryStreamExt as _;
use netlink_packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressProtocol, AddressScope, CacheInfo,
};
use rtnetlink::{AddressMessageBuilder, Error, Handle};
use tokio::time::timeout;

/// The maximum time to wait for the kernel's answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The protocol number of the addresses that balancers add; `ip address` shows the number as `proto 0xb1`.
const MARK: AddressProtocol = AddressProtocol::Other(0xb1);

/// An address on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct InterfaceAddress {
    pub(super) ifindex: u32,
    pub(super) address: IpAddr,
}

/// An existing address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FoundAddress {
    pub(super) place: InterfaceAddress,
    /// Whether a balancer has added the address.
    pub(super) ours: bool,
    /// Whether no other machine on the link has the address, according to duplicate address detection.
    pub(super) settled: bool,
    /// Whether the address has a subnet, as a machine's own address has.
    pub(super) subnet: bool,
}

/// Finds every address of the network namespace.
pub(super) async fn found(handle: &Handle) -> anyhow::Result<Vec<FoundAddress>> {
    let dump = handle.address().get().execute().try_collect();
    let messages: Vec<AddressMessage> = timeout(TIMEOUT, dump)
        .await
        .context("listing the addresses: no answer from the kernel")?
        .context("listing the addresses")?;
    Ok(messages.into_iter().filter_map(|message| read(&message)).collect())
}

fn read(message: &AddressMessage) -> Option<FoundAddress> {
    let own = |attribute: &AddressAttribute| {
        if let AddressAttribute::Local(address) = attribute { Some(*address) } else { None }
    };
    let any = |attribute: &AddressAttribute| {
        if let AddressAttribute::Address(address) = attribute { Some(*address) } else { None }
    };
    let attributes = || message.attributes.iter();
    let address = attributes().find_map(own).or_else(|| attributes().find_map(any))?;
    let ours = message.attributes.contains(&AddressAttribute::Protocol(MARK));
    let unsettled = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
    let subnet = message.header.prefix_len < if address.is_ipv4() { 32 } else { 128 };
    let settled = !message.header.flags.intersects(unsettled);
    Some(FoundAddress { place: InterfaceAddress { ifindex: message.header.index, address }, ours, settled, subnet })
}

/// Adds an address to an interface. The kernel does not choose the address as the source of this machine's own
/// connections.
pub(super) async fn add(handle: &Handle, place: InterfaceAddress) -> anyhow::Result<()> {
    let InterfaceAddress { ifindex, address } = place;
    let length = if address.is_ipv4() { 32 } else { 128 };
    let mut message = message(place);
    if address.is_ipv4() {
        message.header.scope = AddressScope::Host;
    } else {
        // The kernel prefers the address with the longest match, and a VIP may match a backend better than any other.
        let mut deprecated = CacheInfo::default();
        (deprecated.ifa_preferred, deprecated.ifa_valid) = (0, u32::MAX);
        message.attributes.push(AddressAttribute::CacheInfo(deprecated));
    }
    let mut request = handle.address().add(ifindex, address, length);
    *request.message_mut() = message;
    timeout(TIMEOUT, request.execute())
        .await
        .with_context(|| format!("adding {address}: no answer from the kernel"))?
        .with_context(|| format!("adding {address}"))
}

/// Removes an address from an interface. A missing address is not an error.
pub(super) async fn remove(handle: &Handle, place: InterfaceAddress) -> anyhow::Result<()> {
    let address = place.address;
    let removed = timeout(TIMEOUT, handle.address().del(message(place)).execute())
        .await
        .with_context(|| format!("removing {address}: no answer from the kernel"))?;
    match removed {
        Ok(()) => Ok(()),
        // Another program has added the address in the meantime, or the interface no longer exists.
        Err(Error::NetlinkError(error))
            if matches!(error.to_io().raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::ENODEV)) =>
        {
            Ok(())
        }
        Err(error) => Err(io::Error::other(error)).with_context(|| format!("removing {address}")),
    }
}

fn message(InterfaceAddress { ifindex, address }: InterfaceAddress) -> AddressMessage {
    let mut message = match address {
        IpAddr::V4(address) => AddressMessageBuilder::<Ipv4Addr>::new().index(ifindex).address(address, 32).build(),
        IpAddr::V6(address) => AddressMessageBuilder::<Ipv6Addr>::new().index(ifindex).address(address, 128).build(),
    };
    message.attributes.push(AddressAttribute::Protocol(MARK));
    if address.is_ipv6() {
        // Backends of `dsr` services also have the address, so duplicate address detection would find a conflict.
        message.header.flags |= AddressHeaderFlags::Nodad;
    }
    message
}
