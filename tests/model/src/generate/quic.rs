//! Random formats of QUIC connection IDs, and datagrams with connection IDs of these formats.

use std::{collections::HashSet, net::SocketAddr};

use balancer_common::quic::{MAX_ID, QuicFormat};
use balancer_config::quic::{CONFIGS, Format, Keyed, QuicConfig, QuicKey, ServerId};
use balancer_control::io::{BackendId, QuicSpec};
use fastrand::Rng;

use super::{Scene, dress::bytes, once_in, one_of};
use crate::model::Service;

/// A random format of connection IDs, and server IDs for most of the backends.
pub(super) fn random(rng: &mut Rng, backends: &[(BackendId, SocketAddr)]) -> QuicSpec {
    let config = random_config(rng);
    let mut taken = HashSet::new();
    let mut servers = Vec::new();
    for (id, _) in backends {
        // Some backends of different services have the same server ID; the program must not confuse these services.
        let name = config.derived_id(&if rng.bool() { id.0.to_string() } else { format!("web{}", servers.len()) });
        if !once_in(rng, 5) && taken.insert(name) {
            servers.push((*id, name));
        }
    }
    QuicSpec { config, servers: servers.into() }
}

fn random_config(rng: &mut Rng) -> QuicConfig {
    let config = rng.u8(..CONFIGS);
    if once_in(rng, 4) {
        let current = Keyed { config, key: None };
        let format = Format::Nlb;
        return QuicConfig { format, server_id_length: 8, nonce_length: 7, current, before: None, learn: rng.bool() };
    }
    let server_id_length = one_of(rng, &[1, 2, 4, 5, 8, 8, 10, 15]);
    let nonce_length = match rng.u32(..3) {
        // If the lengths allow, the server ID and the nonce together fill one cipher block.
        0 if server_id_length <= 12 => 16 - server_id_length,
        1 => 4,
        _ => rng.u8(4..=19 - server_id_length),
    };
    let current = keyed(rng, config);
    let another = (config + rng.u8(1..CONFIGS)) % CONFIGS;
    let before = rng.bool().then(|| keyed(rng, another));
    QuicConfig { format: Format::Draft, server_id_length, nonce_length, current, before, learn: !once_in(rng, 4) }
}

fn keyed(rng: &mut Rng, config: u8) -> Keyed {
    let key = (!once_in(rng, 4)).then(|| QuicKey(rng.u128(..).to_be_bytes()));
    Keyed { config, key }
}

/// A datagram for a service with QUIC listeners; most datagrams belong to a connection to one of the service's
/// backends.
pub(super) fn datagram(rng: &mut Rng, scene: &Scene, service: &Service) -> Vec<u8> {
    let id = connection_id(rng, scene, service);
    let mut datagram = match rng.u32(..8) {
        0 | 1 => long_header(rng, &id),
        _ => [&[0x40 | rng.u8(..0x40)], &*id].concat(),
    };
    let behind = one_of(rng, &[0, 0, 1, 2, 7, 20, 100]);
    datagram.extend(bytes(rng, behind));
    if once_in(rng, 8) {
        datagram.truncate(rng.usize(..datagram.len()));
    }
    datagram
}

fn long_header(rng: &mut Rng, id: &[u8]) -> Vec<u8> {
    let version = one_of(rng, &[1, 1, 1, 0x6b33_43cf, 0, 0xff00_001d, 0x1a2a_3a4a_u32]);
    let said = if once_in(rng, 8) { rng.u8(..) } else { id.len() as u8 };
    [&[0x80 | rng.u8(..0x80)], &version.to_be_bytes()[..], &[said], id].concat()
}

/// A connection ID that names a backend of `service`, a backend of another service, or no backend.
fn connection_id(rng: &mut Rng, scene: &Scene, service: &Service) -> Vec<u8> {
    let others: Vec<&QuicSpec> = scene.services.iter().filter_map(|service| service.spec.quic.as_ref()).collect();
    let own = service.spec.quic.as_ref();
    let quic = if once_in(rng, 8) { rng.choice(others) } else { own };
    let named = quic.and_then(|quic| {
        let (_, server) = rng.choice(quic.servers.iter())?;
        Some(issued(rng, &quic.config, server))
    });
    let mut id = named.unwrap_or_else(|| {
        let length = rng.usize(..=MAX_ID);
        bytes(rng, length)
    });
    if once_in(rng, 10) && !id.is_empty() {
        let at = rng.usize(..id.len());
        id[at] ^= 1 << rng.u32(..8);
    }
    id
}

fn issued(rng: &mut Rng, config: &QuicConfig, server: &ServerId) -> Vec<u8> {
    let live: Vec<&Keyed> = config.live().collect();
    let keyed = one_of(rng, &live);
    let format = QuicFormat::new(config.server_id_length, config.nonce_length, keyed.key.map(|key| key.0));
    let nonce = bytes(rng, config.nonce_length.into());
    let first = match config.format {
        Format::Nlb => rng.u8(..),
        Format::Draft => keyed.config << 5 | rng.u8(..32),
    };
    format.id(first, server.bytes(), &nonce)[..config.id_length().into()].to_vec()
}
