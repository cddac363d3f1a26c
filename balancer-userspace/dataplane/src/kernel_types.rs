//! Offsets of members in the structures of the running kernel, from the kernel's BPF Type Format
//! (`Documentation/bpf/btf.rst` in the kernel's source).

use anyhow::{Context as _, ensure};

/// The file that describes the kernel's own types.
pub(super) const OWN: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u32 = 0xeb9f;
const STRUCT: u32 = 4;
const MEMBER: usize = 12;

/// The offset in bytes of each pair `(structure, member)` in `btf`. The function does not find members of unnamed inner
/// structures.
///
/// # Errors
/// Fails if the data is invalid, or if a member does not exist or does not begin at a byte boundary.
pub(super) fn offsets<const N: usize>(btf: &[u8], wanted: [(&str, &str); N]) -> anyhow::Result<[u32; N]> {
    let [magic, header, types, types_length, strings, strings_length] =
        [0, 4, 8, 12, 16, 20].map(|offset| word(btf, offset));
    ensure!(magic? & 0xffff == MAGIC, "no BTF of this byte order");
    let header = header? as usize;
    let section = |start: u32, length: u32| {
        let start = header.saturating_add(start as usize);
        btf.get(start..start.saturating_add(length as usize)).context("BTF is cut off")
    };
    let types = section(types?, types_length?)?;
    let strings = section(strings?, strings_length?)?;
    let mut found = [None; N];
    let mut at = 0;
    while at < types.len() && found.contains(&None) {
        let (name, info) = (word(types, at)?, word(types, at + 4)?);
        let members = at + 12;
        let (kind, count) = (info >> 24 & 31, (info & 0xffff) as usize);
        if kind == STRUCT {
            for (place, (structure, member)) in found.iter_mut().zip(wanted) {
                if place.is_none() && is(strings, name, structure) {
                    *place = offset(types, strings, members, info, member)?;
                }
            }
        }
        at = members + rest(kind, count)?;
    }
    for (offset, (structure, member)) in found.iter().zip(wanted) {
        ensure!(offset.is_some(), "the kernel tells of no {structure}.{member}");
    }
    Ok(found.map(Option::unwrap_or_default))
}

/// The offset of `member` in a structure whose list of members begins at `members`.
fn offset(types: &[u8], strings: &[u8], members: usize, info: u32, member: &str) -> anyhow::Result<Option<u32>> {
    for index in 0..(info & 0xffff) as usize {
        let at = members + index * MEMBER;
        if is(strings, word(types, at)?, member) {
            // If a structure has bit fields, the upper byte of an offset is a size.
            let mask = if info >> 31 == 0 { u32::MAX } else { 0x00ff_ffff };
            let bits = word(types, at + 8)? & mask;
            ensure!(bits.is_multiple_of(8), "{member} does not begin with a byte");
            return Ok(Some(bits / 8));
        }
    }
    Ok(None)
}

/// The number of bytes that follow the first twelve bytes of a type.
fn rest(kind: u32, count: usize) -> anyhow::Result<usize> {
    Ok(match kind {
        1 | 14 | 17 => 4,
        2 | 7..=12 | 16 | 18 => 0,
        3 => 12,
        STRUCT | 5 | 15 | 19 => count * 12,
        6 | 13 => count * 8,
        _ => anyhow::bail!("BTF with types of kind {kind}, which is not known here"),
    })
}

fn word(bytes: &[u8], at: usize) -> anyhow::Result<u32> {
    let word = bytes.get(at..).and_then(<[u8]>::first_chunk).context("BTF is cut off")?;
    Ok(u32::from_ne_bytes(*word))
}

fn is(strings: &[u8], offset: u32, name: &str) -> bool {
    let rest = strings.get(offset as usize..).unwrap_or_default();
    rest.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test data describes an `int` and `struct pair { int first; int second; }`.
    fn pair() -> Vec<u8> {
        let strings = b"\0int\0pair\0first\0second\0";
        let types: [u32; 13] = [1, 1 << 24, 4, 32, 5, STRUCT << 24 | 2, 8, 10, 1, 0, 16, 1, 32];
        let header = [MAGIC | 1 << 16, 24, 0, 52, 52, strings.len() as u32];
        let words = header.into_iter().chain(types);
        words.flat_map(u32::to_ne_bytes).chain(strings.iter().copied()).collect()
    }

    #[test]
    fn when_a_structure_has_members_then_their_offsets_are_found() {
        assert_eq!(offsets(&pair(), [("pair", "second"), ("pair", "first")]).unwrap(), [4, 0]);
        let error = offsets(&pair(), [("pair", "third")]).unwrap_err().to_string();
        assert_eq!(error, "the kernel tells of no pair.third");
        assert!(offsets(&pair(), [("int", "first")]).is_err());
    }

    #[test]
    fn when_type_information_is_cut_off_then_it_is_refused() {
        let whole = pair();
        for length in 0..whole.len() {
            assert!(offsets(&whole[..length], [("pair", "second")]).is_err(), "{length}");
        }
    }

    #[test]
    fn when_this_kernel_is_asked_then_it_tells_the_offsets() {
        let btf = std::fs::read(OWN).unwrap();
        let [ifindex, namespace] = offsets(&btf, [("net_device", "ifindex"), ("net_device", "nd_net")]).unwrap();
        assert!(ifindex > 0 && namespace > 0 && ifindex != namespace);
    }
}
