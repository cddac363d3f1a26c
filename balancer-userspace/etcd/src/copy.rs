//! Reads all keys below a prefix, as of one revision, page by page.

use std::time::Duration;

use balancer_fleet::engine::{Entry, Revision};
use tonic::{Code, Status};

use crate::{
    keys::{Keys, MOST, Verdict, end, weight},
    links::{Failure, Links},
    message::{RangeRequest, RangeResponse},
    words,
};

/// The number of keys on the first page of a copy, and on the largest page.
const FIRST_PAGE: i64 = 32;
const LARGEST_PAGE: i64 = 4096;

/// The target size of a page, in bytes.
const PAGE: usize = 1 << 20;

/// The number of times that the driver restarts a read because etcd has compacted the read's revision.
const ATTEMPTS: usize = 3;

/// All keys and values below a prefix, in the order of the keys.
#[derive(Debug)]
pub(crate) struct Copy {
    pub(crate) revision: Revision,
    pub(crate) entries: Vec<Entry>,
}

/// The reason why the driver could not read a page.
enum Trouble {
    /// etcd has compacted the revision of the page.
    Compacted,
    /// The answer is larger than the driver accepts.
    TooLarge,
    /// An error that another attempt would also cause.
    Final(String),
}

/// Reads all keys below `prefix`. If an endpoint fails, the function tries other endpoints, for as long as the caller
/// polls the future.
pub(crate) async fn read(links: &Links, keys: &Keys, prefix: &str, limit: Duration) -> Result<Copy, String> {
    for _ in 0..ATTEMPTS {
        match Reading::new(links, keys, prefix, limit).all().await {
            Ok(copy) => return Ok(copy),
            Err(Trouble::Final(why)) => return Err(why),
            Err(Trouble::Compacted | Trouble::TooLarge) => {}
        }
    }
    Err(format!("{prefix}: compacted while it was read, {ATTEMPTS} times"))
}

struct Reading<'a> {
    links: &'a Links,
    keys: &'a Keys,
    prefix: Vec<u8>,
    limit: Duration,
    /// The first key of the next page.
    from: Vec<u8>,
    /// The number of keys on a page.
    page: i64,
    /// The revision of the copy; 0 until the first answer has arrived.
    revision: i64,
    entries: Vec<Entry>,
    total: usize,
    skipped: u64,
}

impl<'a> Reading<'a> {
    fn new(links: &'a Links, keys: &'a Keys, prefix: &str, limit: Duration) -> Self {
        let prefix = keys.full(prefix);
        let from = prefix.clone();
        let entries = Vec::new();
        Self { links, keys, prefix, limit, from, page: FIRST_PAGE, revision: 0, entries, total: 0, skipped: 0 }
    }

    async fn all(mut self) -> Result<Copy, Trouble> {
        loop {
            let more = match self.range(self.page, false).await {
                Ok(answer) => self.take(answer)?,
                Err(Trouble::TooLarge) if self.page > 1 => {
                    self.page = (self.page / 4).max(1);
                    true
                }
                Err(Trouble::TooLarge) => self.skip_one().await?,
                Err(trouble) => return Err(trouble),
            };
            if !more {
                break;
            }
        }
        if self.skipped > 0 {
            let prefix = String::from_utf8_lossy(&self.prefix);
            tracing::warn!(%prefix, "the engine: {} keys are left out: not UTF-8, or a value too long", self.skipped);
        }
        self.links.skipped(self.skipped);
        Ok(Copy { revision: Revision(self.revision), entries: self.entries })
    }

    /// Repeats the request for a page until an answer arrives.
    async fn range(&self, limit: i64, keys_only: bool) -> Result<RangeResponse, Trouble> {
        loop {
            let link = self.links.link().await;
            let request = RangeRequest {
                key: self.from.clone(),
                range_end: end(&self.prefix),
                limit,
                revision: self.revision,
                keys_only,
            };
            match self.links.attempt(&link, self.limit, link.working.range(request)).await {
                Ok(answer) => return Ok(answer),
                Err(Failure::Broken(_)) => {}
                Err(Failure::Refused(status)) => match trouble(&status) {
                    Some(trouble) => return Err(trouble),
                    None => self.links.broken(&link, &words::status(&status)),
                },
            }
        }
    }

    /// Adds a page to the copy. The function returns whether another page follows.
    fn take(&mut self, answer: RangeResponse) -> Result<bool, Trouble> {
        self.note_revision(&answer)?;
        let more = answer.more;
        let bytes: usize = answer.kvs.iter().map(|found| found.key.len() + found.value.len()).sum();
        if let Some(last) = answer.kvs.last() {
            self.go_behind(&last.key)?;
        } else if more {
            return Err(Trouble::Final("etcd says that there is more, and gives nothing".to_owned()));
        }
        self.page = match bytes {
            0..PAGE => (self.page * 2).min(LARGEST_PAGE),
            PAGE.. => (self.page / 2).max(1),
        };
        for found in answer.kvs {
            match self.keys.judge(found) {
                Verdict::Good(entry) => self.add(entry)?,
                Verdict::TooLong(_) | Verdict::Nameless => self.skipped += 1,
            }
        }
        Ok(more)
    }

    fn add(&mut self, entry: Entry) -> Result<(), Trouble> {
        self.total += weight(&entry);
        if self.total > MOST {
            let prefix = String::from_utf8_lossy(&self.prefix);
            return Err(Trouble::Final(format!("more than {} MiB below {prefix}", MOST >> 20)));
        }
        self.entries.push(entry);
        Ok(())
    }

    /// Skips a key whose value is too large to read.
    async fn skip_one(&mut self) -> Result<bool, Trouble> {
        let answer = self.range(1, true).await?;
        self.note_revision(&answer)?;
        let Some(found) = answer.kvs.first() else { return Ok(false) };
        self.skipped += 1;
        self.go_behind(&found.key)?;
        Ok(answer.more)
    }

    fn note_revision(&mut self, answer: &RangeResponse) -> Result<(), Trouble> {
        if self.revision == 0 {
            let revision = answer.header.as_ref().map_or(0, |header| header.revision);
            if revision <= 0 {
                return Err(Trouble::Final("an answer without a revision".to_owned()));
            }
            self.revision = revision;
        }
        Ok(())
    }

    fn go_behind(&mut self, last: &[u8]) -> Result<(), Trouble> {
        if last < self.from.as_slice() {
            return Err(Trouble::Final("an answer with keys that were not asked for".to_owned()));
        }
        self.from = last.to_vec();
        self.from.push(0);
        Ok(())
    }
}

/// Classifies the status of a refused request; `None` if another endpoint may succeed.
fn trouble(status: &Status) -> Option<Trouble> {
    let is_out_of_range = status.code() == Code::OutOfRange;
    if is_out_of_range && status.message().contains("compacted") {
        Some(Trouble::Compacted)
    } else if is_out_of_range && status.message().contains("too large") {
        Some(Trouble::TooLarge)
    } else if [Code::Unavailable, Code::Unknown, Code::Internal, Code::DeadlineExceeded].contains(&status.code()) {
        None
    } else {
        Some(Trouble::Final(words::status(status)))
    }
}
