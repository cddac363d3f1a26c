//! The interface to an engine (etcd), limited to the properties that the fleet relies on. The driver of the real engine
//! and the simulated engine both use these types.
//!
//! - The store maps keys to values. Every transaction that changes something gets a revision, which is higher than all
//!   earlier ones. All keys that the transaction changes carry this revision.
//! - A *session* is a lease, a copy of everything below [`LIVE`], and a watch that begins at that copy's revision. The
//!   watch delivers every change below [`LIVE`] once, in the order of revisions, and all changes of a revision
//!   together.
//! - Leased keys vanish when the lease expires, which can happen while its holder still runs and does not know it yet.
//! - The answer to a transaction may be lost although the engine has made the transaction.
//!
//! Keys are given without the fleet's own prefix (`/balancer/<name>/`).

/// The prefix of keys that a session copies and watches.
pub const LIVE: &str = "live/";

/// The prefix of keys that are read on demand, because their values are too large to send to all members.
pub const BULK: &str = "bulk/";

/// The maximum size of a value. etcd accepts requests of 1.5 MiB.
pub const LONGEST_VALUE: usize = 1 << 20;

/// A position in the store's history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub i64);

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key, which is below [`LIVE`] or [`BULK`].
    pub key: String,
    /// The value, which has at most [`LONGEST_VALUE`] bytes.
    pub value: Vec<u8>,
    /// The revision that created the key. A key that is deleted and written again counts as another key.
    pub created: Revision,
    /// The revision that last wrote the key.
    pub modified: Revision,
}

/// A condition that must hold before the engine makes a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The key does not exist.
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
        /// Whether the key vanishes with the session's lease.
        leased: bool,
    },
    /// Removes a key, if it exists.
    Delete(String),
    /// Removes all keys with this prefix.
    DeletePrefix(String),
}

/// The number that identifies an answer. It is unique within a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A request to the engine. The engine carries requests out in order and answers each of them once, unless the session
/// ends first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Makes all writes at once if all conditions hold. A transaction has at most 100 conditions and 100 writes, and
    /// each key occurs at most once in either list.
    Transaction {
        /// The number that the answer will carry.
        ticket: Ticket,
        /// The conditions, all of which must hold.
        conditions: Vec<Condition>,
        /// The writes, all of which are made.
        writes: Vec<Write>,
    },
    /// Reads all keys with this prefix.
    Read {
        /// The number that the answer will carry.
        ticket: Ticket,
        /// The prefix, which is below [`BULK`].
        prefix: String,
    },
    /// Ends the session: leased keys disappear as soon as the engine knows of the end, or when the lease expires. The
    /// request has no answer; [`News::Lost`] follows.
    End {
        /// The reason in a few words.
        reason: String,
    },
}

/// The outcome of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The engine made the transaction, which changed something at this revision.
    Made(Revision),
    /// A condition did not hold; the engine changed nothing.
    Refused,
    /// The entries that the engine read.
    Read(Vec<Entry>),
    /// The engine refused the request and has changed nothing; the text is the engine's own.
    Denied(String),
    /// No answer came, so it is unknown whether the engine carried the request out.
    Unknown(String),
}

/// A report from an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A session has begun, with everything below [`LIVE`] as of `revision`. Keys that are not listed do not exist.
    Joined {
        /// The revision of the copy.
        revision: Revision,
        /// The entries, in the order of their keys.
        entries: Vec<Entry>,
    },
    /// Keys below [`LIVE`] changed at one revision.
    Changed {
        /// The revision of the change.
        revision: Revision,
        /// Keys that were written.
        put: Vec<Entry>,
        /// Keys that were deleted or have expired.
        deleted: Vec<String>,
    },
    /// The engine has finished a request.
    Answered(Ticket, Answer),
    /// The session has ended: leased keys may no longer exist. The next `Joined` begins another session; the engine
    /// retries by itself.
    Lost {
        /// The reason in a few words.
        reason: String,
    },
}
