//! The client table in the kernel.

use aya_ebpf::{Global, bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use balancer_common::{
    client_table::{BUCKET_ENTRIES, Bucket, Entries, Entry, Query, consult as consult_bucket},
    map_types::Control,
};

use crate::{forward, stats, steer::Choice};

/// Buckets, a power of two; the controller sets the real number when it loads the program.
#[map]
static CLIENTS: Array<Bucket> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The number of buckets less one.
#[unsafe(no_mangle)]
static CLIENT_BUCKET_MASK: Global<u32> = Global::new(0);

/// A bucket that other CPUs and the controller write as well, a word at a time.
struct Shared(*mut [u64; BUCKET_ENTRIES]);

impl Entries for Shared {
    #[inline(always)]
    fn load(&self, index: usize) -> Entry {
        // SAFETY: the pointer is a map value's, and the index is masked to lie within it.
        Entry(unsafe { (&raw const (*self.0)[index & (BUCKET_ENTRIES - 1)]).read_volatile() })
    }

    #[inline(always)]
    fn store(&self, index: usize, entry: Entry) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0)[index & (BUCKET_ENTRIES - 1)]).write_volatile(entry.0) };
    }
}

/// Steers by memory. `None`: nobody takes the client.
#[inline(always)]
pub(crate) fn consult(control: &'static Control, hash: u64, query: &Query) -> Option<Choice> {
    let bucket = CLIENTS.get_ptr_mut(hash as u32 & CLIENT_BUCKET_MASK.load())?;
    // SAFETY: a map value of this size.
    let shared = Shared(unsafe { &raw mut (*bucket).entries });
    let answer = consult_bucket(&shared, query, forward::facts, || stats::may_record(control));
    stats::count_recorded(answer.recorded);
    if let Some((from, cause)) = answer.moved {
        stats::count_moved(from, cause);
    }
    let decision = answer.decision;
    answer.backend.map(|backend| Choice { backend, decision })
}
