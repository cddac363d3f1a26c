//! VIPs that the balancer gives its interface (`assign_vip = true`): added, announced, and removed at the end.

mod announce;
mod keeper;

pub use keeper::Keeper;

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use anyhow::Context as _;
use futures_util::TryStreamExt as _;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::{AddressMessageBuilder, Error, Handle};
use serde::{Deserialize, Serialize};
use tokio::{task::AbortHandle, time::timeout};
use tracing::{info, warn};

use super::interfaces::Interface;

/// How long the kernel may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// An address that was added to an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assigned {
    /// The interface's index.
    pub ifindex: u32,
    /// The address.
    pub address: IpAddr,
}

/// The addresses that this balancer has added.
pub struct Vips {
    interface: Interface,
    assigned: BTreeSet<IpAddr>,
    handle: Handle,
    connection: AbortHandle,
}

impl Drop for Vips {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Vips {
    /// VIPs on `interface`, on which an earlier process has left `inherited`.
    ///
    /// # Errors
    /// Without a netlink socket.
    pub fn new(interface: Interface, inherited: &[Assigned]) -> anyhow::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection().context("opening a netlink socket")?;
        let own = inherited.iter().filter(|assigned| assigned.ifindex == interface.ifindex);
        Ok(Self {
            assigned: own.map(|assigned| assigned.address).collect(),
            interface,
            handle,
            connection: tokio::spawn(connection).abort_handle(),
        })
    }

    /// What [`set`](Self::set) would add or has added: `wanted` without the addresses that somebody else assigned.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub async fn to_be_assigned(&self, wanted: &BTreeSet<IpAddr>) -> anyhow::Result<Vec<Assigned>> {
        let present = self.present().await?;
        let own = wanted.iter().filter(|address| self.assigned.contains(*address) || !present.contains(*address));
        Ok(own.map(|&address| Assigned { ifindex: self.interface.ifindex, address }).collect())
    }

    /// Adds what is missing, announces it, and removes what is no longer wanted. An address that is there already is
    /// left to whoever added it.
    ///
    /// # Errors
    /// When the kernel refuses; what went before is done.
    pub async fn set(&mut self, wanted: &BTreeSet<IpAddr>) -> anyhow::Result<()> {
        for address in self.assigned.difference(wanted).copied().collect::<Vec<_>>() {
            self.remove(address).await?;
        }
        let present = self.present().await?;
        for &address in wanted.difference(&self.assigned.clone()) {
            if present.contains(&address) {
                continue;
            }
            let name = &self.interface.name;
            let message = message(self.interface.ifindex, address);
            let mut request = self.handle.address().add(self.interface.ifindex, address, full_length(address));
            *request.message_mut() = message;
            timeout(TIMEOUT, request.execute())
                .await
                .with_context(|| format!("adding {address} to {name}: no answer from the kernel"))?
                .with_context(|| format!("adding {address} to {name}"))?;
            self.assigned.insert(address);
            info!("{address} added to {name} (assign_vip)");
            let (interface, ifindex, mac) = (name.clone(), self.interface.ifindex, self.interface.mac);
            if let Err(error) = announce::announce(ifindex, mac, address) {
                warn!(
                    "{address} on {interface} is not announced ({error}; it takes CAP_NET_RAW): neighbours that knew it \
                     elsewhere follow when their own entries run out"
                );
            } else {
                tokio::spawn(announce::again(interface, ifindex, mac, address));
            }
        }
        Ok(())
    }

    /// Removes every address that was added.
    pub async fn remove_all(&mut self) {
        for address in std::mem::take(&mut self.assigned) {
            if let Err(error) = self.remove(address).await {
                warn!("{error:#}");
            }
        }
    }

    async fn remove(&mut self, address: IpAddr) -> anyhow::Result<()> {
        let name = self.interface.name.clone();
        remove(&self.handle, self.interface.ifindex, address).await.with_context(|| format!("on {name}"))?;
        self.assigned.remove(&address);
        info!("{address} removed from {name}");
        Ok(())
    }

    async fn present(&self) -> anyhow::Result<BTreeSet<IpAddr>> {
        let dump = self.handle.address().get().set_link_index_filter(self.interface.ifindex).execute().try_collect();
        let messages: Vec<AddressMessage> = timeout(TIMEOUT, dump)
            .await
            .context("listing the addresses: no answer from the kernel")?
            .context("listing the addresses")?;
        let address = |message: AddressMessage| {
            let own = |attribute| if let AddressAttribute::Local(address) = attribute { Some(address) } else { None };
            let any = |attribute| if let AddressAttribute::Address(address) = attribute { Some(address) } else { None };
            let attributes = message.attributes;
            attributes.iter().cloned().find_map(own).or_else(|| attributes.into_iter().find_map(any))
        };
        Ok(messages.into_iter().filter_map(address).collect())
    }
}

/// Removes addresses that an earlier process has left, in a thread that waits for the kernel.
pub(super) fn remove_left(left: Vec<Assigned>) {
    let work = move || -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().context("opening a netlink socket")?;
            let connection = tokio::spawn(connection);
            for Assigned { ifindex, address } in left {
                if let Err(error) = remove(&handle, ifindex, address).await {
                    warn!("{error:#}");
                }
            }
            connection.abort();
            Ok(())
        })
    };
    match std::thread::spawn(work).join() {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!("VIPs stay assigned: {error:#}"),
        Err(_) => warn!("VIPs stay assigned"),
    }
}

async fn remove(handle: &Handle, ifindex: u32, address: IpAddr) -> anyhow::Result<()> {
    let removed = timeout(TIMEOUT, handle.address().del(message(ifindex, address)).execute())
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

fn message(ifindex: u32, address: IpAddr) -> AddressMessage {
    let mut message = match address {
        IpAddr::V4(address) => AddressMessageBuilder::<Ipv4Addr>::new().index(ifindex).address(address, 32).build(),
        IpAddr::V6(address) => AddressMessageBuilder::<Ipv6Addr>::new().index(ifindex).address(address, 128).build(),
    };
    if address.is_ipv6() {
        // Backends with dsr hold it as well: duplicate detection would find them.
        message.header.flags |= AddressHeaderFlags::Nodad;
    }
    message
}

const fn full_length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}
