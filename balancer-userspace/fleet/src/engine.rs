//! The interface to an engine (etcd), limited to those properties on which the fleet relies. The etcd driver and the
//! simulated engine both use these types.
//!
//! - The engine's store maps keys to values. Every transaction that changes a key gets a revision, which is higher than
//!   all earlier revisions. All keys that a transaction changes carry the revision of the transaction.
//! - A *session* is a lease, a copy of all keys below [`LIVE`], and a watch that begins at the revision of the copy.
//!   The watch delivers every change below [`LIVE`] exactly once, in the order of revisions, and delivers all changes
//!   of a revision together.
//! - Leased keys disappear when the lease expires. The process that holds the lease may still run then, and may not
//!   know yet that the lease has expired.
//! - The answer to a transaction may be lost although the engine has made the transaction.
//!
//! Keys in these types lack the prefix of the fleet (`/balancer/<name>/`).

/// The prefix of those keys that a session copies and watches.
pub const LIVE: &str = "live/";

/// The prefix of those keys that members read on demand, because the values are too large to be sent to all members.
pub const BULK: &str = "bulk/";

/// The maximum size of a value in bytes. etcd accepts requests of up to 1.5 MiB.
pub const LONGEST_VALUE: usize = 1 << 20;

/// A position in the history of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub i64);

/// A key of the store with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key, which is below [`LIVE`] or [`BULK`].
    pub key: String,
    /// The value, which has at most [`LONGEST_VALUE`] bytes.
    pub value: Vec<u8>,
    /// The revision that created the key. If a key is deleted and written again, this field contains the revision of
    /// the later write.
    pub created: Revision,
    /// The revision that last wrote the key.
    pub modified: Revision,
}

/// A condition that must hold for the engine to make a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The key does not exist.
    Absent(String),
    /// The key exists and was created at this revision.
    Created(String, Revision),
    /// The key exists and was last written at this revision.
    Modified(String, Revision),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    Put {
        key: String,
        /// The value.
        value: Vec<u8>,
        /// Whether the key disappears with the lease of the session.
        leased: bool,
    },
    /// Removes a key if the key exists.
    Delete(String),
    /// Removes all keys with this prefix.
    DeletePrefix(String),
}

impl Write {
    pub(crate) fn put(key: &str, value: Vec<u8>, leased: bool) -> Self {
        Self::Put { key: key.to_owned(), value, leased }
    }
}

/// The number that connects an answer to its request. The number is unique within a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A request to the engine. The engine carries out requests in order and answers each request once, unless the session
/// ends first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A transaction: the engine makes all writes together if all conditions hold. A transaction has at most 100
    /// conditions and 100 writes; each list contains a key at most once.
    Transaction {
        /// The ticket by which the answer refers to this request.
        ticket: Ticket,
        /// The conditions of the transaction, all of which must hold.
        conditions: Vec<Condition>,
        /// The writes of the transaction, which the engine makes together.
        writes: Vec<Write>,
    },
    /// A read of all keys with this prefix.
    Read {
        /// The ticket by which the answer refers to this request.
        ticket: Ticket,
        /// The prefix of the keys, which is below [`BULK`].
        prefix: String,
    },
    /// The end of the session: leased keys disappear as soon as the engine learns of the end, or when the lease
    /// expires. The request gets no answer, but [`News::Lost`] follows it.
    End {
        /// The reason for the end in a few words.
        reason: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The engine made the transaction, which changed something at this revision.
    Made(Revision),
    /// A condition did not hold, so the engine changed nothing.
    Refused,
    Read(Vec<Entry>),
    /// The engine refused the request and changed nothing; the text is the engine's message.
    Denied(String),
    /// No answer arrived, so it is unknown whether the engine has carried out the request.
    Unknown(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A session has begun, with a copy of all keys below [`LIVE`] as of `revision`. Keys that are not in the copy do
    /// not exist.
    Joined {
        revision: Revision,
        /// The entries of the copy, in the order of their keys.
        entries: Vec<Entry>,
    },
    /// Keys below [`LIVE`] have changed at one revision.
    Changed {
        revision: Revision,
        /// The entries that were written.
        put: Vec<Entry>,
        /// The keys that were deleted or have expired.
        deleted: Vec<String>,
    },
    /// The engine has finished a request.
    Answered(Ticket, Answer),
    /// The session has ended, so leased keys may no longer exist. The next `Joined` begins another session; the engine
    /// reconnects without a request.
    Lost {
        /// The reason for the end in a few words.
        reason: String,
    },
}
