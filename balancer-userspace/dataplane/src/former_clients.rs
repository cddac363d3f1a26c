//! Copies the clients in an earlier controller's table to a table of another size.
//!
//! The earlier controller's program records clients in the earlier table until the new program replaces it. The former
//! table therefore stays pinned until this replacement. Before the replacement, the controller copies the contents of
//! the former table; after the replacement, it copies the clients that the former table has got since.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::Context as _;
use balancer_common::client_table::{BUCKET_ENTRIES, Bucket, Entry, PORTABLE_BUCKETS, bucket_of, find};
use tracing::{info, warn};

use super::{
    clients::Look,
    map_sizes::CLIENTS,
    mapped::MappedArray,
    pins::{Pins, open},
};

/// The pin of a new table that replaces a table of another size.
const REPLACEMENT: &str = "NEW-KNOWN_CLIENTS";

/// A client table that an earlier controller's program may still use.
pub(super) struct FormerClients {
    table: MappedArray<Bucket>,
    pin: PathBuf,
    /// The pin of the table that replaces the former table.
    new: PathBuf,
    /// One bit for each entry, which is set if the entry was not empty when the controller copied all entries.
    copied: Vec<u64>,
    is_replaced: bool,
}

/// The outcome of copying an entry to the new table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Put {
    New,
    Known,
    /// The client's bucket in the new table has no room.
    Full,
}

impl FormerClients {
    /// The pinned table, if a program that needs a table with `buckets` buckets cannot use it.
    ///
    /// # Errors
    /// Fails if a pin cannot be opened or removed.
    pub(super) fn find(pins: Option<&Pins>, buckets: u32) -> anyhow::Result<Option<Self>> {
        let Some(pins) = pins else { return Ok(None) };
        // A controller left this pin when it was killed before the replacement of its program.
        pins.make_anew(REPLACEMENT)?;
        let (pin, new) = (pins.map(CLIENTS), pins.map(REPLACEMENT));
        if !pin.exists() {
            return Ok(None);
        }
        let table = MappedArray::<Bucket>::new(open(&pin)?)?;
        let differs = table.len() as u32 != buckets;
        Ok(differs.then(|| Self { table, pin, new, copied: Vec::new(), is_replaced: false }))
    }

    /// The path at which the controller must pin the new table.
    pub(super) fn path(&self) -> &Path {
        &self.new
    }

    /// Copies all clients to the new table, which no program uses yet.
    pub(super) fn copy_to(&mut self, new: &[AtomicU64]) {
        let sizes = (self.table.len(), new.len() / BUCKET_ENTRIES);
        let change = format!("a client table of {} buckets replaces one of {}", sizes.1, sizes.0);
        if !is_portable(sizes) {
            warn!("{change}: its clients are forgotten");
            return;
        }
        let words = self.table.words();
        let mut copied = vec![0; words.len().div_ceil(u64::BITS as usize)];
        let (mut clients, mut full) = (0_u64, 0_u64);
        for (bucket, at, entry) in entries(words) {
            copied[at / 64] |= 1 << (at % 64);
            match put(new, bucket, entry) {
                Put::New | Put::Known => clients += 1,
                Put::Full => full += 1,
            }
        }
        self.copied = copied;
        info!("{change}: {clients} clients are carried over");
        if full > 0 {
            warn!("{full} clients had no room in the smaller client table, and are forgotten");
        }
    }

    /// Copies those clients that have come since [`copy_to`](Self::copy_to) and that `remembers` accepts, now that no
    /// program uses the former table. Returns the entries of the copied clients.
    pub(super) fn catch_up(&self, new: &[AtomicU64], remembers: impl Fn(Entry) -> bool) -> Vec<Entry> {
        let is_copied = |at: usize| self.copied.get(at / 64).is_none_or(|bits| bits >> (at % 64) & 1 != 0);
        entries(self.table.words())
            .filter(|&(_, at, entry)| !is_copied(at) && remembers(entry))
            .filter_map(|(bucket, _, entry)| (put(new, bucket, entry) == Put::New).then_some(entry))
            .collect()
    }

    /// Removes the pin of the former table.
    ///
    /// # Errors
    /// Fails if the file system refuses the change.
    pub(super) fn replace(mut self) -> anyhow::Result<()> {
        self.is_replaced = true;
        match fs::rename(&self.new, &self.pin) {
            // The controller has removed all pins, because the data path is not to outlive it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done.with_context(|| format!("replacing the pinned map {}", self.pin.display())),
        }
    }
}

impl Drop for FormerClients {
    fn drop(&mut self) {
        if !self.is_replaced {
            // If the start fails, the former pins stay unchanged. The next start removes any pins of new tables that
            // remain.
            let _left = fs::remove_file(&self.new);
        }
    }
}

/// Whether an entry of a table with `from` buckets determines the client's bucket in a table with `to` buckets.
const fn is_portable((from, to): (usize, usize)) -> bool {
    from >= PORTABLE_BUCKETS as usize || to <= from
}

/// The entries that are not empty, each with its bucket and its index.
fn entries(words: &[AtomicU64]) -> impl Iterator<Item = (u32, usize, Entry)> {
    let all = words.iter().enumerate().map(|(at, word)| (at, Entry(word.load(Ordering::Relaxed))));
    all.filter(|(_, entry)| !entry.is_empty()).map(|(at, entry)| ((at / BUCKET_ENTRIES) as u32, at, entry))
}

/// Puts an entry into the new table; `bucket` is the entry's bucket in the former table. If the new bucket is full, an
/// established client replaces a client that is not established.
fn put(new: &[AtomicU64], bucket: u32, entry: Entry) -> Put {
    let buckets = (new.len() / BUCKET_ENTRIES) as u32;
    let first = bucket_of(bucket, entry.tag(), buckets - 1) as usize * BUCKET_ENTRIES;
    let words = new.get(first..first + BUCKET_ENTRIES).unwrap_or_default();
    if find(&Look(words), entry.tag()).is_some() {
        return Put::Known;
    }
    let replace = |expendable: &dyn Fn(Entry) -> bool| {
        words.iter().any(|word| {
            let there = word.load(Ordering::Relaxed);
            expendable(Entry(there))
                && word.compare_exchange(there, entry.0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        })
    };
    if replace(&|there| there.is_empty()) || entry.established() && replace(&|there| !there.established()) {
        Put::New
    } else {
        Put::Full
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use balancer_common::client_table::bucket;
    use proptest::prelude::*;

    use super::*;

    fn table(buckets: usize) -> MappedArray<Bucket> {
        let [table, _] = MappedArray::twice(buckets).unwrap();
        table
    }

    fn former(table: MappedArray<Bucket>) -> FormerClients {
        let nowhere = PathBuf::from("/nonexistent");
        FormerClients { table, pin: nowhere.join("1"), new: nowhere.join("2"), copied: Vec::new(), is_replaced: false }
    }

    /// Records a client as the kernel program does.
    fn record(table: &MappedArray<Bucket>, hash: u64, backend: u16) -> bool {
        put(table.words(), bucket(hash, table.len() as u32 - 1), Entry::new((hash >> 32) as u32, backend, 0))
            == Put::New
    }

    fn home(table: &MappedArray<Bucket>, hash: u64) -> Option<u16> {
        let first = bucket(hash, table.len() as u32 - 1) as usize * BUCKET_ENTRIES;
        find(&Look(&table.words()[first..first + BUCKET_ENTRIES]), (hash >> 32) as u32)
            .map(|(_, entry)| entry.backend())
    }

    proptest! {
        #[test]
        fn when_a_table_becomes_larger_then_all_of_its_clients_are_found(
            seed: u64, from in 8u32..12, more in 0u32..5,
        ) {
            let (old, new) = (table(1 << from), table(1 << (from + more)));
            let mut random = fastrand::Rng::with_seed(seed);
            let clients: BTreeMap<u64, u16> = (0..1 << from).map(|_| (random.u64(..), random.u16(1..))).collect();
            let known: Vec<_> = clients.into_iter().filter(|&(hash, backend)| record(&old, hash, backend)).collect();
            former(old).copy_to(new.words());
            for (hash, backend) in known {
                prop_assert_eq!(home(&new, hash), Some(backend));
            }
        }

        #[test]
        fn when_a_table_becomes_smaller_then_clients_are_forgotten_only_where_a_bucket_is_full(
            seed: u64, from in 0u32..12, less in 1u32..12,
        ) {
            let (old, new) = (table(1 << from), table(1 << from.saturating_sub(less)));
            let mut random = fastrand::Rng::with_seed(seed);
            let hashes: Vec<u64> = (0..3 << from).map(|_| random.u64(..)).filter(|&hash| record(&old, hash, 7)).collect();
            former(old).copy_to(new.words());
            for hash in hashes {
                let first = bucket(hash, new.len() as u32 - 1) as usize * BUCKET_ENTRIES;
                let is_full = new.words()[first..first + BUCKET_ENTRIES].iter().all(|word| word.load(Ordering::Relaxed) != 0);
                prop_assert!(home(&new, hash) == Some(7) || is_full);
            }
        }
    }

    #[test]
    fn when_a_small_table_grows_beyond_what_its_entries_tell_then_nothing_is_put_into_wrong_buckets() {
        let (old, new) = (table(128), table(256));
        assert!((0..100).all(|number| record(&old, number << 33 | number, 1)));
        former(old).copy_to(new.words());
        assert!(entries(new.words()).next().is_none());
    }

    #[test]
    fn when_clients_come_while_the_program_is_replaced_then_they_are_carried_over_once() {
        let (new, mut old) = (table(512), former(table(256)));
        assert!((1..=100).all(|number: u64| record(&old.table, number << 33 | number, 1)));
        old.copy_to(new.words());
        // Before the copy, the new program has forgotten one client, moved another client and recorded a new client.
        let of = |number: u64| number << 33 | number;
        for hash in [of(1), of(2)] {
            let first = bucket(hash, 511) as usize * BUCKET_ENTRIES;
            let tag = (hash >> 32) as u32;
            let (at, _) = find(&Look(&new.words()[first..first + BUCKET_ENTRIES]), tag).unwrap();
            new.words()[first + at].store(0, Ordering::Relaxed);
        }
        assert!(record(&new, of(2), 9) && record(&new, of(101), 9));
        assert!((101..=103).all(|number| record(&old.table, of(number), number as u16)));
        let mut came: Vec<u16> =
            old.catch_up(new.words(), |entry| entry.backend() != 103).into_iter().map(Entry::backend).collect();
        came.sort_unstable();
        assert_eq!(came, [102]);
        let homes = [1, 2, 3, 101, 102, 103].map(|number| home(&new, of(number)));
        assert_eq!(homes, [None, Some(9), Some(1), Some(9), Some(102), None]);
    }
}
