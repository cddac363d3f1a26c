//! Tells from fields at fixed positions that a frame is of other clients than those to report. Most frames are, so the
//! program must not spend more on them.

use balancer_common::{
    map_types::{FAMILY_V4, FAMILY_V6},
    tracing::{Address, Settings},
};

use super::is_client;
use crate::{
    packet::Packet,
    parse::{TCP, UDP},
};

const TYPE: usize = 12;
const TYPE_V4: u16 = 0x0800;
const TYPE_V6: u16 = 0x86dd;

/// The destination of a TCP or UDP packet that is neither from nor to a client to report. `None`: the packet is from or
/// to such a client, or the frame does not begin like most frames, so that only a [scan](super::scan) finds its
/// addresses.
#[inline(always)]
pub(super) fn destination(frame: Packet<'_>, settings: &Settings) -> Option<Address> {
    let (protocol, ends) = match u16::from_be(frame.load(TYPE)?) {
        TYPE_V4 => (frame.load::<u8>(23)?, v4(frame)?),
        TYPE_V6 => (frame.load::<u8>(20)?, v6(frame)?),
        _ => return None,
    };
    let [source, destination] = ends;
    let is_plain = protocol == TCP || protocol == UDP;
    let is_reported = settings.family == 0 || is_client(settings, &source) || is_client(settings, &destination);
    (is_plain && !is_reported).then_some(destination)
}

#[inline(always)]
fn v4(frame: Packet<'_>) -> Option<[Address; 2]> {
    let address = |at| Some(Address { words: [frame.load(at)?, 0, 0, 0], family: FAMILY_V4.into(), reserved: 0 });
    Some([address(26)?, address(30)?])
}

#[inline(always)]
fn v6(frame: Packet<'_>) -> Option<[Address; 2]> {
    let address = |at| Some(Address { words: frame.load(at)?, family: FAMILY_V6.into(), reserved: 0 });
    Some([address(22)?, address(38)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(client: [u8; 4]) -> Settings {
        let words = [u32::from_ne_bytes(client), 0, 0, 0];
        Settings { client: words, mask: [u32::MAX, 0, 0, 0], family: FAMILY_V4.into(), ..Settings::default() }
    }

    /// A frame from 192.0.2.1 to 192.0.2.2.
    fn frame(protocol: u8) -> Vec<u8> {
        let mut frame = vec![0; 54];
        (frame[12], frame[14], frame[23]) = (8, 0x45, protocol);
        frame[26..34].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
        frame
    }

    fn is_of_others(frame: &mut [u8], client: [u8; 4]) -> bool {
        destination(Packet::from_slice(frame), &settings(client)).is_some()
    }

    #[test]
    fn when_neither_end_is_a_client_to_report_then_the_packet_is_of_others() {
        for protocol in [TCP, UDP] {
            assert!(is_of_others(&mut frame(protocol), [192, 0, 2, 3]));
            assert!(!is_of_others(&mut frame(protocol), [192, 0, 2, 1]));
            assert!(!is_of_others(&mut frame(protocol), [192, 0, 2, 2]));
        }
        let found = destination(Packet::from_slice(&mut frame(TCP)), &settings([192, 0, 2, 3])).unwrap();
        assert_eq!(found.words[0].to_ne_bytes(), [192, 0, 2, 2]);
    }

    #[test]
    fn when_a_frame_needs_a_closer_look_then_it_may_be_of_the_client() {
        // An ICMP error may quote the client's packet.
        assert!(!is_of_others(&mut frame(1), [192, 0, 2, 3]));
        let mut tagged = frame(TCP);
        (tagged[12], tagged[13]) = (0x81, 0);
        assert!(!is_of_others(&mut tagged, [192, 0, 2, 3]));
        for length in 0..34 {
            assert!(!is_of_others(&mut frame(TCP)[..length], [192, 0, 2, 3]), "{length} bytes");
        }
        assert!(destination(Packet::from_slice(&mut frame(TCP)), &Settings::default()).is_none(), "every client");
    }

    #[test]
    fn when_a_packet_of_ipv6_is_of_others_then_its_whole_addresses_tell() {
        let mut frame = vec![0; 74];
        (frame[12], frame[13], frame[20]) = (0x86, 0xdd, TCP);
        (frame[22], frame[37], frame[38], frame[53]) = (0x20, 1, 0x20, 2);
        let client = |last: u8| {
            let mut bytes = [0; 16];
            (bytes[0], bytes[15]) = (0x20, last);
            let words = core::array::from_fn(|at| u32::from_ne_bytes([0, 1, 2, 3].map(|byte| bytes[4 * at + byte])));
            Settings { client: words, mask: [u32::MAX; 4], family: FAMILY_V6.into(), ..Settings::default() }
        };
        let mut found = |last| destination(Packet::from_slice(&mut frame), &client(last)).is_some();
        assert_eq!([1, 2, 3].map(&mut found), [false, false, true]);
    }
}
