//! Reads QUIC connection IDs byte by byte, as draft-ietf-quic-load-balancers defines these IDs.

use aes::{
    Aes128,
    cipher::{BlockDecrypt as _, BlockEncrypt as _, KeyInit as _},
};
use balancer_common::{map_types::SLOT_EXCEPTIONS, seen};
use balancer_config::{
    config::Protocol,
    quic::{Format, Keyed, QuicConfig},
};
use balancer_control::io::ListenerSpec;

use super::{
    Arrival, State,
    memory::{Asked, Newcomer},
    parse::Packet,
    rules::Rule,
    steer::{Choice, client_hash, slot_of},
};

/// The longest connection ID of QUIC version 1.
const LONGEST: usize = 20;
const UDP_HEADER: usize = 8;

impl State {
    /// Returns the backend that the connection ID of a datagram names, if that backend keeps connections, and records
    /// the client at that backend.
    pub(super) fn by_connection_id(
        &mut self,
        arrival: Arrival<'_>,
        packet: &Packet,
        index: usize,
        listener: &ListenerSpec,
    ) -> Option<Choice> {
        let spec = &self.services[index].spec;
        let quic = spec.quic.as_ref().filter(|_| listener.listener.protocol == Protocol::Quic)?;
        let id = connection_id(payload(arrival.frame, packet))?;
        let named = server_id(&quic.config, id).and_then(|(id, is_encrypted)| {
            let (backend, _) = quic.servers.iter().find(|(_, server)| server.bytes() == id)?;
            Some((*backend, is_encrypted))
        });
        let Some((backend, is_encrypted)) = named else {
            self.counters.quic.entry(spec.id.0).or_default().unknown += 1;
            return None;
        };
        // Any host can forge an unencrypted connection ID, so the program learns nothing from such an ID.
        let learns = is_encrypted && quic.config.learns();
        let keeps = self.backends.get(&backend.0).is_some_and(|of| of.keeps_known && of.service == spec.id);
        if !keeps || self.reachable(backend.0).is_none() {
            return None;
        }
        let rule = self.rule(index, packet.source, true);
        if rule == Some(Rule::Deny) {
            return None;
        }
        let id = self.services[index].spec.id.0;
        self.counters.quic.entry(id).or_default().steered += 1;
        // The program's choice: the program does not record a client to which a rule applies.
        if rule.is_none() {
            self.remember_connection(index, packet, backend.0, learns);
        }
        Some(Choice { backend: backend.0, decision: None })
    }

    /// Records a client at the backend whose connection the client brought from another address. If `learns` is false,
    /// the function records only that the client was seen.
    fn remember_connection(&mut self, index: usize, packet: &Packet, backend: u16, learns: bool) {
        let service = &self.services[index];
        let Some(clock) = service.clock() else { return };
        let hash = client_hash(service, packet.source);
        let at = slot_of(hash, service.slots.len());
        let slot = service.slots[at];
        let is_elsewhere = slot.backend != backend;
        let always =
            slot.flags & SLOT_EXCEPTIONS != 0 || service.spec.remember.as_secs() < u64::from(seen::SHORTEST_MEMORY);
        if (!learns || !is_elsewhere && !always) && self.seen.contains(hash) {
            return;
        }
        let asked = Asked {
            tag: (hash >> 32) as u32,
            service: service.spec.id,
            live: learns.then_some(backend),
            pinned: learns,
            migrates: learns,
            is_home: false,
            opens: false,
            datagram: false,
            failback: false,
            now: service.tick,
            remember: clock.remember,
            idle: 1,
        };
        let id = service.spec.id.0;
        let answer = self.answer(hash, &asked, false, true);
        self.count_newcomer(&answer);
        if let Some((from, _)) = answer.moved {
            *self.counters.migrated.entry(from).or_default() += 1;
        }
        if answer.moved.is_some() || matches!(answer.newcomer, Some(Newcomer::Recorded { .. })) {
            self.counters.quic.entry(id).or_default().migrated += 1;
            if is_elsewhere {
                self.services[index].slots[at].flags |= SLOT_EXCEPTIONS;
            }
        }
    }
}

/// Returns the bytes after the UDP header, which must be present. The program's choice: the program ignores the length
/// in the UDP header.
pub(crate) fn payload<'a>(frame: &'a [u8], packet: &Packet) -> &'a [u8] {
    let end = frame.len().min(packet.start + packet.length);
    frame.get(packet.l4() + UDP_HEADER..end).unwrap_or_default()
}

/// Returns the connection ID of a datagram if the server, which receives the datagram, has issued the connection ID. A
/// truncated datagram yields a truncated connection ID.
pub(crate) fn connection_id(datagram: &[u8]) -> Option<&[u8]> {
    let first = *datagram.first()?;
    let id = if first & 0x80 == 0 {
        datagram.get(1..)?
    } else {
        let version = u32::from_be_bytes(datagram.get(1..5)?.try_into().ok()?);
        // In Initial and 0-RTT packets of known versions, the client has chosen the connection ID. Clients never send
        // version negotiation packets.
        let of_client: &[u8] = match version {
            0 => &[0, 1, 2, 3],
            1 => &[0, 1],
            0x6b33_43cf => &[1, 2],
            _ => &[],
        };
        if of_client.contains(&(first >> 4 & 3)) {
            return None;
        }
        let length = usize::from(*datagram.get(5)?);
        let rest = datagram.get(6..)?;
        &rest[..rest.len().min(length)]
    };
    (!id.is_empty()).then(|| &id[..id.len().min(LONGEST)])
}

/// Decodes the server ID in a connection ID, in the format that the first bits of the connection ID name. Returns the
/// server ID, and whether the server ID is encrypted.
fn server_id(config: &QuicConfig, id: &[u8]) -> Option<(Vec<u8>, bool)> {
    let keyed = match config.format {
        Format::Nlb => &config.current,
        Format::Draft => config.live().find(|keyed| keyed.config == id[0] >> 5)?,
    };
    let (server, nonce) = (usize::from(config.server_id_length), usize::from(config.nonce_length));
    let mut text = id.get(1..1 + server + nonce)?.to_vec();
    decrypt(keyed, &mut text);
    text.truncate(server);
    Some((text, keyed.key.is_some()))
}

fn decrypt(keyed: &Keyed, text: &mut [u8]) {
    let Some(key) = keyed.key else { return };
    let cipher = Aes128::new(&key.0.into());
    if let Ok(block) = <&mut [u8; 16]>::try_from(&mut *text) {
        cipher.decrypt_block(block.into());
        return;
    }
    // Section 4.3.3 of the draft encrypts in four passes; this code undoes the four passes in reverse order.
    let length = text.len();
    let (half, is_odd) = (length.div_ceil(2), length % 2 == 1);
    let mut left = text[..half].to_vec();
    let mut right = text[length - half..].to_vec();
    if is_odd {
        left[half - 1] &= 0xf0;
        right[0] &= 0x0f;
    }
    for pass in (1..=4).rev() {
        let (from, onto) = if pass % 2 == 0 { (&right, &mut left) } else { (&left, &mut right) };
        let mut block = [0; 16];
        block[..half].copy_from_slice(from);
        (block[14], block[15]) = (length as u8, pass);
        cipher.encrypt_block((&mut block).into());
        onto.iter_mut().zip(block).for_each(|(byte, of)| *byte ^= of);
        if is_odd {
            left[half - 1] &= 0xf0;
            right[0] &= 0x0f;
        }
    }
    let middle = left[half - 1] | if is_odd { right[0] } else { 0 };
    text[..half].copy_from_slice(&left);
    text[length - half..].copy_from_slice(&right);
    if is_odd {
        text[half - 1] = middle;
    }
}

#[cfg(test)]
mod tests {
    use balancer_common::quic::QuicFormat;
    use balancer_config::quic::QuicKey;

    use super::*;

    #[test]
    fn when_a_server_makes_an_id_then_both_ways_to_read_it_name_the_server() {
        let mut rng = fastrand::Rng::with_seed(54);
        for (server_id_length, nonce_length) in
            (1..=15).flat_map(|server| (4..=19 - server).map(move |of| (server, of)))
        {
            for key in [None, Some(QuicKey(rng.u128(..).to_be_bytes()))] {
                let current = Keyed { config: 5, key };
                let config = QuicConfig {
                    format: Format::Draft,
                    server_id_length,
                    nonce_length,
                    current,
                    before: None,
                    learn: true,
                };
                let format = QuicFormat::new(server_id_length, nonce_length, key.map(|key| key.0));
                let (server, nonce) = (rng.u128(..).to_be_bytes(), rng.u128(..).to_be_bytes());
                let server = &server[..server_id_length.into()];
                let nonce = [nonce, nonce].concat();
                let id = format.id(5 << 5, server, &nonce[..nonce_length.into()]);
                let expected = Some((server.to_vec(), key.is_some()));
                assert_eq!(server_id(&config, &id), expected, "{server_id_length} and {nonce_length}");
            }
        }
    }
}
