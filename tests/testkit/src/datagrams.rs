//! UDP clients and servers for tests.

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, UdpSocket},
    ops::RangeInclusive,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Result, ensure};

use crate::{
    site::PATIENCE,
    topology::{Family, Topology},
};

/// Answers every datagram by sending `name` back, until `stop` is true.
///
/// # Errors
/// Fails if the socket fails.
pub fn answer_with(socket: &UdpSocket, name: &str, stop: &AtomicBool) -> io::Result<()> {
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut buffer = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((_, from)) => drop(socket.send_to(name.as_bytes(), from)?),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sends `datagram` from each client, each time from a new source port. Returns the names in the answers.
///
/// # Errors
/// Fails if an answer does not arrive, or arrives from an address other than `vip`.
pub fn ask(
    topology: &Topology,
    family: Family,
    clients: RangeInclusive<u16>,
    vip: SocketAddr,
    datagram: &[u8],
) -> Result<BTreeMap<u16, String>> {
    let one = |client| {
        let socket = UdpSocket::bind((topology.client_address(family, client), 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(datagram, vip)?;
        let mut buffer = [0; 64];
        let (length, from) = socket.recv_from(&mut buffer)?;
        ensure!(from == vip, "{from} answers for {vip}");
        Ok((client, String::from_utf8_lossy(&buffer[..length]).into_owned()))
    };
    topology.client().run_in_thread(|| clients.map(one).collect())?
}
