//! VIPs that the balancer assigns to its machine (`assign_vip`). The VIPs carry a protocol number of the balancer
//! (`IFA_PROTO`), by which any program can distinguish them from the operator's addresses.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use anyhow::Context as _;
use futures_util::TryStreamExt as _;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressProtocol};
use rtnetlink::{AddressMessageBuilder, Error, Handle};
use tokio::time::timeout;

/// The maximum time to wait for the kernel's answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The protocol number of the addresses that balancers add; `ip address` shows the number as `proto 0xb1`.
const MARK: AddressProtocol = AddressProtocol::Other(0xb1);

/// An address on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) ifindex: u32,
    pub(super) address: IpAddr,
}

/// An existing address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) place: Place,
    /// Whether a balancer has added the address.
    pub(super) ours: bool,
    /// Whether no other machine on the link has the address, according to duplicate address detection.
    pub(super) settled: bool,
    /// Whether the address has a subnet, as a machine's own address has.
    pub(super) subnet: bool,
}

/// Finds every address of the network namespace.
pub(super) async fn found(handle: &Handle) -> anyhow::Result<Vec<Found>> {
    let dump = handle.address().get().execute().try_collect();
    let messages: Vec<AddressMessage> = timeout(TIMEOUT, dump)
        .await
        .context("listing the addresses: no answer from the kernel")?
        .context("listing the addresses")?;
    Ok(messages.into_iter().filter_map(|message| read(&message)).collect())
}

fn read(message: &AddressMessage) -> Option<Found> {
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
    Some(Found { place: Place { ifindex: message.header.index, address }, ours, settled, subnet })
}

/// Adds an address to an interface.
pub(super) async fn add(handle: &Handle, place: Place) -> anyhow::Result<()> {
    let Place { ifindex, address } = place;
    let length = if address.is_ipv4() { 32 } else { 128 };
    let mut request = handle.address().add(ifindex, address, length);
    *request.message_mut() = message(place);
    timeout(TIMEOUT, request.execute())
        .await
        .with_context(|| format!("adding {address}: no answer from the kernel"))?
        .with_context(|| format!("adding {address}"))
}

/// Removes an address from an interface. A missing address is not an error.
pub(super) async fn remove(handle: &Handle, place: Place) -> anyhow::Result<()> {
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

fn message(Place { ifindex, address }: Place) -> AddressMessage {
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
