//! The interface to an engine (etcd), limited to the properties that the fleet relies on. The driver of the real engine
//! and the simulated engine both use these types.
//!
//! - The store maps keys to values. Every transaction that changes something gets a revision, each higher than the one
//!   before; all keys changed in it carry it.
//! - A *session* is a lease, a copy of everything below [`LIVE`], and a watch from that copy's revision on. The watch
//!   delivers every change below [`LIVE`] once, in the order of revisions, and all changes of a revision together.
//! - Leased keys vanish when the lease expires, which can happen while its holder still runs and before it is notified.
//! - The answer to a transaction may be lost although the transaction was made.
//!
//! Keys are given without the fleet's own prefix (`/balancer/<name>/`).

/// Keys that a session copies and watches.
pub const LIVE: &str = "live/";

/// Keys that are read on demand, because they are too large to send to all members.
pub const BULK: &str = "bulk/";

/// The maximum size of a value. etcd accepts requests of 1.5 MiB.
pub const LONGEST_VALUE: usize = 1 << 20;

/// A position in the store's history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub i64);

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Below [`LIVE`] or [`BULK`].
    pub key: String,
    /// At most [`LONGEST_VALUE`] bytes.
    pub value: Vec<u8>,
    /// When the key was created; after a deletion it is another key.
    pub created: Revision,
    /// When the key was last written.
    pub modified: Revision,
}

/// A condition that must hold for a transaction to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// There is no such key.
    Absent(String),
    /// The key exists and was created at this revision.
    Created(String, Revision),
    /// The key exists and was last written at this revision.
    Modified(String, Revision),
}

/// A part of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Sets a key.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Vec<u8>,
        /// Whether it vanishes with the session's lease.
        leased: bool,
    },
    /// Removes a key, if it is there.
    Delete(String),
    /// Removes all keys with this prefix.
    DeletePrefix(String),
}

/// The number that identifies an answer. It is unique within a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A request to the engine. Requests are carried out in order; each gets one answer, or none if the session ends first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Makes all writes at once if all conditions hold. At most 100 of both, each key at most once.
    Transaction {
        /// The number of the answer.
        ticket: Ticket,
        /// The conditions, all of which must hold.
        conditions: Vec<Condition>,
        /// The writes, all of which are made.
        writes: Vec<Write>,
    },
    /// Reads all keys with this prefix.
    Read {
        /// The number of the answer.
        ticket: Ticket,
        /// Below [`BULK`].
        prefix: String,
    },
    /// Ends the session: leased keys disappear as soon as the engine knows, or when the lease expires. It has no
    /// answer; [`News::Lost`] follows.
    End {
        /// The reason in a few words.
        reason: String,
    },
}

/// The outcome of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The transaction was made, and changed something at this revision.
    Made(Revision),
    /// A condition did not hold; nothing was changed.
    Refused,
    /// The entries that were read.
    Read(Vec<Entry>),
    /// The engine refused and has changed nothing; in its own words.
    Denied(String),
    /// It is unknown whether the request was carried out, because no answer came.
    Unknown(String),
}

/// A report from an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A session has begun, with everything below [`LIVE`] as of `revision`. Keys that are not listed do not exist.
    Joined {
        /// The revision of the copy.
        revision: Revision,
        /// Entries in the order of keys.
        entries: Vec<Entry>,
    },
    /// Keys below [`LIVE`] changed at one revision.
    Changed {
        /// The revision.
        revision: Revision,
        /// Keys that were written.
        put: Vec<Entry>,
        /// Keys that were deleted or have expired.
        deleted: Vec<String>,
    },
    /// A request has ended.
    Answered(Ticket, Answer),
    /// The session has ended: leased keys may no longer exist. The next `Joined` begins another session; the engine
    /// retries by itself.
    Lost {
        /// The reason in a few words.
        reason: String,
    },
}
