//! The interface to an engine (etcd), limited to the properties that the fleet relies on. The driver of the real engine
//! and the simulated engine both use these types.
//!
//! - The store maps keys to values. Every transaction that changes something gets a revision, each higher than the one
//!   before; all keys changed in it carry it.
//! - A *session* is a lease, a copy of everything below [`LIVE`], and a watch from that copy's revision on. The watch
//!   delivers every change below [`LIVE`] once, in the order of revisions, and all of a revision together.
//! - Keys put as leased vanish when the lease runs out, which can happen while its holder still runs and before it hears
//!   of it.
//! - A transaction's answer may be lost, and the transaction made all the same.
//!
//! Keys are given without the fleet's own prefix (`/balancer/<name>/`).

/// Keys that a session copies and watches.
pub const LIVE: &str = "live/";

/// Keys that are read on demand: what is too large for everybody to get.
pub const BULK: &str = "bulk/";

/// The longest value that is put. etcd takes requests of 1.5 MiB.
pub const LONGEST_VALUE: usize = 1 << 20;

/// A place in the store's history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub i64);

/// A key and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Below [`LIVE`] or [`BULK`].
    pub key: String,
    /// At most [`LONGEST_VALUE`] bytes.
    pub value: Vec<u8>,
    /// When the key came to be; after it was deleted it is another.
    pub created: Revision,
    /// When it was last put.
    pub modified: Revision,
}

/// A condition that must hold for a transaction to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// There is no such key.
    Absent(String),
    /// The key is there, and came to be at this revision.
    Created(String, Revision),
    /// The key is there, and was last put at this revision.
    Modified(String, Revision),
}

/// A part of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Sets a key.
    Put {
        /// Which.
        key: String,
        /// To what.
        value: Vec<u8>,
        /// Whether it vanishes with the session's lease.
        leased: bool,
    },
    /// Removes a key, if it is there.
    Delete(String),
    /// Removes all keys that begin so.
    DeletePrefix(String),
}

/// To tell answers apart. Never given twice in a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A request to the engine. Requests are carried out in the order given; each gets one answer, or none if the session
/// ends before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Makes all writes at once if all conditions hold. At most 100 of both; no key twice.
    Transaction {
        /// Names the answer.
        ticket: Ticket,
        /// All must hold.
        conditions: Vec<Condition>,
        /// All are made.
        writes: Vec<Write>,
    },
    /// Reads all keys that begin so.
    Read {
        /// Names the answer.
        ticket: Ticket,
        /// Below [`BULK`].
        prefix: String,
    },
    /// Ends the session: nothing leased stays, as soon as the engine knows, or the lease has run out. Has no answer;
    /// [`News::Lost`] follows.
    End {
        /// In a few words.
        reason: String,
    },
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The transaction was made, and changed something at this revision.
    Made(Revision),
    /// A condition did not hold; nothing was changed.
    Refused,
    /// The entries that were read.
    Read(Vec<Entry>),
    /// The engine does not carry it out, and has changed nothing; in its own words.
    Denied(String),
    /// Nobody knows whether the request was carried out: no answer came.
    Unknown(String),
}

/// A report from an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A session has begun, with everything below [`LIVE`] as of `revision`. What is not listed is not there.
    Joined {
        /// As of when.
        revision: Revision,
        /// In the order of keys.
        entries: Vec<Entry>,
    },
    /// Below [`LIVE`], these changed at one revision.
    Changed {
        /// When.
        revision: Revision,
        /// Keys that were put.
        put: Vec<Entry>,
        /// Keys that were deleted, or have run out.
        deleted: Vec<String>,
    },
    /// A request has ended.
    Answered(Ticket, Answer),
    /// The session has ended: nothing leased is there any more, for all one knows. The next `Joined` begins another;
    /// the engine tries by itself.
    Lost {
        /// In a few words.
        reason: String,
    },
}
