//! VIPs that the balancer gives its machine (`assign_vip`). Addresses that it adds are marked with a protocol
//! number of its own (`IFA_PROTO`), so that they can be told from an operator's whoever looks, and whenever.

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

/// How long the kernel may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// `ip address` shows it as `proto 0xb1`.
const MARK: AddressProtocol = AddressProtocol::Other(0xb1);

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// The interface's index.
    pub(super) ifindex: u32,
    /// The address.
    pub(super) address: IpAddr,
}

/// An address that an interface has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) place: Place,
    /// Whether a balancer has added it.
    pub(super) ours: bool,
    /// Whether it is this machine's for certain: no other one on the link may have it.
    pub(super) settled: bool,
    /// Whether it comes with a network, as a machine's own does.
    pub(super) subnet: bool,
}

/// Every address of the network namespace.
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

/// Adds an address.
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

/// Removes an address that was added. One that is gone already is no error.
pub(super) async fn remove(handle: &Handle, place: Place) -> anyhow::Result<()> {
    let address = place.address;
    let removed = timeout(TIMEOUT, handle.address().del(message(place)).execute())
        .await
        .with_context(|| format!("removing {address}: no answer from the kernel"))?;
    match removed {
        Ok(()) => Ok(()),
        // Somebody else was faster, or the interface is gone.
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
        // Backends with dsr hold it as well: duplicate detection would find them.
        message.header.flags |= AddressHeaderFlags::Nodad;
    }
    message
}
