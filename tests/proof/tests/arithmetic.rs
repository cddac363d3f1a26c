//! Arithmetic, for all inputs.

use balancer_common::{
    checksum::{apply, apply_udp, one_hop_less, replace_u16},
    client::slot,
    client_table::{Entry, TICK_MASK},
    map_types::{LiveTable, SLOTS_PER_LINE, SlotPlace},
    share::{WHOLE, place},
};
use balancer_packet_model::{packet::Packet, parse, parsing};

/// The checksum of a message of two words, by the definition: the complement of the sum modulo 2^16 - 1, where only the
/// sum of zeros is 0.
const fn sum(one: u16, other: u16) -> u16 {
    let sum = one as u32 + other as u32;
    !(if sum == 0 { 0 } else { (sum - 1) % 0xffff + 1 }) as u16
}

/// Compares all changes of a word from one of the values `old` beside another word, which is not 0: no packet consists
/// of zeros.
fn check_changes(old: impl Iterator<Item = u16>, other: u16) {
    for old in old {
        let check = sum(old, other);
        for new in 0..=u16::MAX {
            let expected = sum(new, other);
            let delta = replace_u16(old, new);
            assert!(apply(check, delta) == expected, "{old:#x} becomes {new:#x} beside {other:#x}");
            let udp = if check == 0 {
                0
            } else if expected == 0 {
                0xffff
            } else {
                expected
            };
            assert!(apply_udp(check, delta) == udp, "{old:#x} becomes {new:#x} beside {other:#x}");
        }
    }
}

/// Compares all hops of packets with one of these protocols.
fn check_hops(protocols: impl Iterator<Item = u8>) {
    for protocol in protocols {
        for ttl in 1..=u8::MAX {
            let [old, new] = [ttl, ttl - 1].map(|ttl| u16::from_ne_bytes([ttl, protocol]));
            for check in 0..=u16::MAX {
                let [low, high] = check.to_ne_bytes();
                let [.., low, high] = one_hop_less(u32::from_ne_bytes([ttl, protocol, low, high])).to_ne_bytes();
                let check_after = u16::from_ne_bytes([low, high]);
                let expected = apply(check, replace_u16(old, new));
                assert!(check_after == expected, "TTL {ttl}, protocol {protocol}, checksum {check:#x}");
            }
        }
    }
}

/// Compares the slots of all tags in tables of these sizes: each slot has a run of neighbouring tags, and no run is
/// longer than another by more than one tag.
fn check_scaling(sizes: impl Iterator<Item = u32>) {
    for size in sizes {
        let mut begin = 0;
        for number in 0..size {
            let end = (u64::from(number + 1) << 32).div_ceil(u64::from(size));
            let [first, last] = [begin, end - 1].map(|tag| slot(tag << 32 | 0xffff_ffff, size));
            assert!(first == number && last == number, "slot {number} of {size}");
            assert!((end - begin) - (1 << 32) / u64::from(size) <= 1, "slot {number} of {size}");
            begin = end;
        }
        assert!(begin == 1 << 32);
    }
}

#[test]
fn when_a_word_changes_to_any_other_then_the_checksum_is_the_recomputed_one() {
    check_changes(
        [0, 1, 0x00ff, 0x7fff, 0x8000, 0xfffe, 0xffff].into_iter().chain((0..=u16::MAX).step_by(257)),
        0x1234,
    );
}

#[test]
fn when_a_packet_takes_a_hop_then_its_checksum_is_that_of_the_smaller_ttl() {
    check_hops([1, 6, 17, 58].into_iter());
}

#[test]
fn when_a_table_has_any_usual_size_then_its_slots_share_the_tags_evenly() {
    check_scaling((1..=4096).chain([65_537, 131_071, 1_048_573, 16_777_213]));
}

#[test]
fn when_a_slot_has_any_number_then_its_line_and_index_are_quotient_and_rest() {
    let table = LiveTable { first: 7, size: 1 << 27 };
    for number in 0..1 << 27 {
        let expected = SlotPlace { line: 7 + number / SLOTS_PER_LINE, index: number % SLOTS_PER_LINE };
        assert!(table.place(number) == expected, "slot {number}");
    }
}

#[test]
fn when_an_entry_was_seen_at_any_tick_then_its_age_is_the_distance_and_a_later_tick_counts_as_now() {
    for seen in 0..=TICK_MASK {
        let entry = Entry::new(1, 1, seen);
        for now in 0..=TICK_MASK {
            let distance = (u32::from(now) + 0x4000 - u32::from(seen)) % 0x4000;
            let expected = if distance > 0x4000 - 9 { 0 } else { distance };
            assert!(u32::from(entry.age(now)) == expected, "seen at {seen}, now {now}");
            let touched = entry.touched(now);
            assert!(touched.established() == (expected > 0) && (expected == 0 || touched.last_seen() == now));
        }
    }
}

const V4: [u8; 2] = [0x08, 0x00];
const V6: [u8; 2] = [0x86, 0xdd];

/// A frame with up to two tags before `packet`.
fn frame(tags: usize, kind: [u8; 2], packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    (0..tags).for_each(|_| frame.extend([0x81, 0, 0, 1]));
    frame.extend(kind);
    frame.extend(packet);
    frame
}

/// An IPv4 packet with `words` words of headers before 24 bytes of layer 4.
fn v4(words: u8, fragment: u16, protocol: u8) -> Vec<u8> {
    let length = u16::from(words) * 4 + 24;
    let [high, low] = fragment.to_be_bytes();
    let mut packet =
        vec![0x40 | words, 0, (length >> 8) as u8, length as u8, 0x12, 0x34, high, low, 64, protocol, 0, 0];
    packet.extend([192, 0, 2, 1, 198, 51, 100, 10]);
    packet.resize(usize::from(length), 1);
    packet
}

/// An IPv6 packet with these headers, each as its number and its length in units of eight bytes beyond the first,
/// before 24 bytes of layer 4. `fragment` is the field of fragment headers.
fn v6(headers: &[(u8, u8)], fragment: u16, protocol: u8) -> Vec<u8> {
    const FRAGMENT: u8 = 44;
    let mut rest = Vec::new();
    for (place, &(kind, longer)) in headers.iter().enumerate() {
        let next = headers.get(place + 1).map_or(protocol, |&(next, _)| next);
        let [high, low] = fragment.to_be_bytes();
        if kind == FRAGMENT {
            rest.extend([next, 0, high, low, 0, 0, 0x12, 0x34]);
        } else {
            rest.extend([next, longer]);
            rest.resize(rest.len() + 6 + usize::from(longer) * 8, 0);
        }
    }
    rest.resize(rest.len() + 24, 1);
    let first = headers.first().map_or(protocol, |&(kind, _)| kind);
    let mut packet = vec![0x60, 0, 0, 0, (rest.len() >> 8) as u8, rest.len() as u8, first, 64];
    packet.extend([0x20; 32]);
    packet.extend(rest);
    packet
}

#[test]
fn when_a_packet_has_any_headers_then_their_lengths_and_offsets_are_those_of_the_model() {
    const KINDS: [u8; 5] = [0, 43, 44, 51, 60];
    for tags in 0..=3 {
        for protocol in [1, 6, 17, 41, 47, 58] {
            (0..=15).for_each(|words| parsing::compare(&frame(tags, V4, &v4(words.max(1), 0, protocol))));
            let mut all: Vec<Vec<(u8, u8)>> = vec![Vec::new()];
            for depth in 0..4 {
                let longer = all.iter().filter(|headers| headers.len() == depth).flat_map(|headers| {
                    let each = KINDS.iter().flat_map(|&kind| [0, 1, 3].map(|longer| (kind, longer)));
                    each.map(move |header| headers.iter().copied().chain([header]).collect())
                });
                let longer: Vec<_> = longer.collect();
                all.extend(longer);
                if tags > 0 && depth == 2 {
                    break;
                }
            }
            for headers in &all {
                [0, 1, 0x0008]
                    .iter()
                    .for_each(|&field| parsing::compare(&frame(tags, V6, &v6(headers, field, protocol))));
            }
        }
    }
}

#[test]
fn when_a_packet_has_any_fragment_field_then_the_other_family_gets_the_same_offset() {
    for field in 0..=u16::MAX {
        let mut frames = [frame(0, V4, &v4(5, field, 17)), frame(0, V6, &v6(&[(44, 0)], field, 17))];
        frames.iter().for_each(|frame| parsing::compare(frame));
        // Bit 13 of the field of IPv4 and bit 0 of that of IPv6 say that more fragments follow.
        let expected = [(field & 0x1fff, field & 0x2000 != 0), (field >> 3, field & 1 != 0)];
        for (frame, (offset, more)) in frames.iter_mut().zip(expected) {
            let packet = Packet::from_slice(frame);
            let Some(mut ip) = parse::ip(packet) else { panic!("no IP packet") };
            if parse::follow(packet, &mut ip, Some).is_ok() {
                let fragment = ip.fragment;
                assert_eq!((fragment.offset(), fragment.more()), (offset, more), "{field:#x}");
                assert_eq!(fragment.as_v4(), offset | u16::from(more) << 13, "{field:#x}");
                assert_eq!(fragment.as_v6(), offset << 3 | u16::from(more), "{field:#x}");
            }
        }
    }
}

mod release {
    use super::*;

    #[test]
    fn when_any_word_changes_to_any_other_then_the_checksum_is_the_recomputed_one() {
        [1, 0x1234, 0xffff].into_iter().for_each(|other| check_changes(0..=u16::MAX, other));
    }

    #[test]
    fn when_a_packet_of_any_protocol_takes_a_hop_then_its_checksum_is_that_of_the_smaller_ttl() {
        check_hops(0..=u8::MAX);
    }

    #[test]
    fn when_a_table_has_any_size_up_to_2_16_then_its_slots_share_the_tags_evenly() {
        check_scaling(1..=1 << 16);
    }

    #[test]
    fn when_all_clients_are_ordered_then_each_percent_of_them_has_the_same_number() {
        let mut counts = [0u32; WHOLE as usize];
        (0..=u32::MAX).for_each(|tag| counts[usize::from(place(tag))] += 1);
        let even = u32::MAX / u32::from(WHOLE);
        assert!(counts.iter().all(|&count| count == even || count == even + 1), "{counts:?}");
    }
}
