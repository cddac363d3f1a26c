//! Records of known clients, which members exchange.
//!
//! A batch consists of a header of eight bytes (format, zeros) and records of sixteen bytes each:
//!
//! ```text
//! bytes 0–3 bucket | 4–7 tag | 8–9 backend | 10–11 flags and age in ticks | 12–15 epoch       little endian
//! ```
//!
//! Bucket and tag identify the client in every member's table, because all tables have the same number of buckets and
//! the same key. In format 1, the bucket field contains the low bits of the hash; the reader derives the bucket of the
//! current format from these bits and the tag. The age is the time since the client's last recorded packet, in ticks of
//! the service.

use crate::engine::LONGEST_VALUE;

const FORMAT: u8 = 2;
/// The earliest batch format that members can read.
const EARLIEST: u8 = 1;
const HEADER: usize = 8;
const LENGTH: usize = 16;
const AGE: u16 = 0x3fff;
const AWAY: u16 = 1 << 15;
const MOVED: u16 = 1 << 14;

/// The maximum number of records in a batch.
pub const MOST: usize = (LONGEST_VALUE / 2 - HEADER) / LENGTH;

/// A record of a client, with the backend at which the client is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// The bucket of the client in the client table.
    pub bucket: u32,
    /// The high half of the client's hash.
    pub tag: u32,
    /// The id of the client's backend.
    pub backend: u16,
    /// Whether the client is at this backend because the backend of its slot failed.
    pub away: bool,
    /// Whether the client moved to this backend from another backend. If it did not, the client was new to the sending
    /// member.
    pub moved: bool,
    /// The number of ticks since the client was last seen, below 2^14.
    pub age: u16,
    /// The epoch in which the client came to this backend; 0 if the epoch is unknown.
    pub epoch: u32,
}

/// The reason why a member refuses a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBatch {
    /// The batch has the format of another version, or is garbage.
    #[error("format {0}, not {FORMAT}")]
    Format(u8),
    /// The batch is incomplete or too long.
    #[error("{0} bytes are no whole number of records")]
    Length(usize),
}

/// Makes batches of at most [`MOST`] records each.
#[must_use]
pub fn batches(records: &[Record]) -> Vec<Vec<u8>> {
    records.chunks(MOST).map(batch).collect()
}

fn batch(records: &[Record]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + records.len() * LENGTH);
    bytes.extend([FORMAT, 0, 0, 0, 0, 0, 0, 0]);
    for record in records {
        bytes.extend(record.bucket.to_le_bytes());
        bytes.extend(record.tag.to_le_bytes());
        bytes.extend(record.backend.to_le_bytes());
        let flags = if record.away { AWAY } else { 0 } | if record.moved { MOVED } else { 0 };
        bytes.extend((record.age & AGE | flags).to_le_bytes());
        bytes.extend(record.epoch.to_le_bytes());
    }
    bytes
}

/// Parses a batch.
///
/// # Errors
/// Returns [`BadBatch`] if the batch is malformed; no record of it is used.
pub fn read(bytes: &[u8]) -> Result<Vec<Record>, BadBatch> {
    let (header, rest) = bytes.split_at_checked(HEADER).ok_or(BadBatch::Length(bytes.len()))?;
    match header.first() {
        Some(&(EARLIEST..=FORMAT)) => {}
        other => return Err(BadBatch::Format(other.copied().unwrap_or(0))),
    }
    let (records, []) = rest.as_chunks::<LENGTH>() else { return Err(BadBatch::Length(bytes.len())) };
    if records.len() > MOST {
        return Err(BadBatch::Length(bytes.len()));
    }
    Ok(records.iter().map(record).collect())
}

fn record(bytes: &[u8; LENGTH]) -> Record {
    let &[a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
    let flags = u16::from_le_bytes([k, l]);
    Record {
        bucket: u32::from_le_bytes([a, b, c, d]),
        tag: u32::from_le_bytes([e, f, g, h]),
        backend: u16::from_le_bytes([i, j]),
        away: flags & AWAY != 0,
        moved: flags & MOVED != 0,
        age: flags & AGE,
        epoch: u32::from_le_bytes([m, n, o, p]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn any_record()(bucket: u32, tag: u32, backend: u16, away: bool, moved: bool, age in 0..=AGE, epoch: u32) -> Record {
            Record { bucket, tag, backend, away, moved, age, epoch }
        }
    }

    proptest! {
        #[test]
        fn when_records_are_written_then_they_can_be_read_back(records in prop::collection::vec(any_record(), 0..40)) {
            let batches = batches(&records);
            let back: Result<Vec<_>, _> = batches.iter().map(|batch| read(batch)).collect();
            prop_assert_eq!(back.unwrap().concat(), records);
        }

        #[test]
        fn when_bytes_are_garbage_then_they_are_no_batch_or_whole_records(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(records) = read(&bytes) {
                prop_assert_eq!(batch(&records)[HEADER..].to_vec(), bytes[HEADER..].to_vec());
            }
        }
    }

    #[test]
    fn when_records_are_many_then_they_make_several_short_batches() {
        let record = Record { bucket: 1, tag: 2, backend: 3, away: false, moved: true, age: 4, epoch: 5 };
        let batches = batches(&vec![record; MOST + 1]);
        assert_eq!(batches.iter().map(|batch| read(batch).unwrap().len()).collect::<Vec<_>>(), [MOST, 1]);
        assert!(batches.iter().all(|batch| batch.len() <= LONGEST_VALUE));
    }

    #[test]
    fn when_a_batch_has_another_format_or_is_cut_off_then_it_is_refused() {
        assert_eq!(read(&[]), Err(BadBatch::Length(0)));
        for format in [0, FORMAT + 1] {
            assert_eq!(read(&[format, 0, 0, 0, 0, 0, 0, 0]), Err(BadBatch::Format(format)));
        }
        for format in [EARLIEST, FORMAT] {
            assert_eq!(read(&[format, 0, 0, 0, 0, 0, 0, 0]), Ok(Vec::new()));
            assert_eq!(read(&[format, 0, 0, 0, 0, 0, 0, 0, 9]), Err(BadBatch::Length(9)));
        }
    }
}
