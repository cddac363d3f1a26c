//! The watch, which passes on every change exactly once, in the order of revisions, even when servers fail.

use std::collections::HashMap;

use balancer_fleet::engine::{Entry, News, Revision};
use tokio::{sync::mpsc, time::timeout};
use tonic::{Code, Status};

use crate::{
    handle::NewsSender,
    keys::{Keys, MOST, Verdict, end, weight},
    link::{Link, no_answer},
    links::Links,
    message::{Event, WatchCreateRequest, WatchRequest, WatchResponse},
    words,
};

/// Follows the keys below a prefix, beginning at the revision of a copy.
pub(crate) struct Changes<'a> {
    links: &'a Links,
    keys: &'a Keys,
    prefix: &'a str,
    news: &'a NewsSender,
    /// The revision up to which the driver has passed on all changes.
    last: i64,
    sizes: Sizes,
}

/// The reason why the watch stopped.
enum Stop {
    /// The server failed, but another link may work.
    Broken(String),
    /// The watch has missed changes, or the receiver of changes was dropped.
    Final(String),
}

impl<'a> Changes<'a> {
    pub(crate) fn after(
        revision: Revision,
        entries: &[Entry],
        (links, keys, prefix, news): (&'a Links, &'a Keys, &'a str, &'a NewsSender),
    ) -> Self {
        Self { links, keys, prefix, news, last: revision.0, sizes: Sizes::of(entries) }
    }

    /// Passes changes on until the watch cannot continue, and then returns the reason.
    pub(crate) async fn follow(mut self) -> String {
        loop {
            let link = self.links.link().await;
            match self.follow_at(&link).await {
                Stop::Broken(why) => self.links.broken(&link, &why),
                Stop::Final(why) => return why,
            }
        }
    }

    async fn follow_at(&mut self, link: &Link) -> Stop {
        let patience = self.links.settings().patience();
        // Dropping the sender of requests ends the watch.
        let (asks, receiver) = mpsc::channel(1);
        let Ok(()) = asks.try_send(WatchRequest { create: Some(self.create()) }) else {
            return Stop::Broken("no watch can be asked for".to_owned());
        };
        let beginning = async {
            let mut answers = link.watching.watch(receiver).await?;
            let first = answers.message().await;
            Ok((answers, first))
        };
        let (mut answers, mut answer) = match timeout(patience, beginning).await {
            Ok(Ok(begun)) => begun,
            Ok(Err(status)) => return stop(&status),
            Err(_) => return Stop::Broken(no_answer(patience)),
        };
        loop {
            let passed_on = match answer {
                Ok(Some(answer)) => self.take(answer).await,
                Ok(None) => return Stop::Broken("etcd ended the watch".to_owned()),
                Err(status) => return stop(&status),
            };
            if let Err(stop) = passed_on {
                return stop;
            }
            answer = tokio::select! {
                answer = answers.message() => answer,
                () = self.links.gone(link) => return Stop::Broken("the connection was given up".to_owned()),
            };
        }
    }

    /// The request does not ask for fragments, so that one answer contains all changes of a revision. etcd reports
    /// progress without a request every ten minutes. The driver does not request progress reports: depending on etcd's
    /// version, such a report may overtake changes or never arrive.
    fn create(&self) -> WatchCreateRequest {
        let key = self.keys.full(self.prefix);
        WatchCreateRequest {
            range_end: end(&key),
            key,
            start_revision: self.last.saturating_add(1),
            progress_notify: true,
        }
    }

    async fn take(&mut self, answer: WatchResponse) -> Result<(), Stop> {
        if answer.compact_revision > 0 {
            let (from, to) = (self.last.saturating_add(1), answer.compact_revision);
            return Err(Stop::Final(format!("what happened from revision {from} on is compacted up to {to}")));
        }
        if answer.canceled {
            return Err(Stop::Broken(format!("etcd refuses the watch: {}", answer.cancel_reason)));
        }
        let is_progress = answer.events.is_empty() && !answer.created;
        for (revision, events) in by_revision(answer.events, self.last) {
            self.pass_on(revision, events).await?;
            self.last = revision;
        }
        if is_progress {
            self.last = self.last.max(answer.header.map_or(0, |header| header.revision));
        }
        Ok(())
    }

    async fn pass_on(&mut self, revision: i64, events: Vec<Event>) -> Result<(), Stop> {
        let (mut put, mut deleted, mut skipped) = (Vec::new(), Vec::new(), 0);
        for event in events {
            let Some(found) = event.kv else { continue };
            match (event.kind, self.keys.judge(found)) {
                (Event::PUT, Verdict::Good(entry)) => {
                    self.sizes.put(&entry);
                    put.push(entry);
                }
                (Event::DELETE, Verdict::Good(Entry { key, .. })) => {
                    self.sizes.delete(&key);
                    deleted.push(key);
                }
                // The driver treats a key with such a value as absent, in the same way as a copy does.
                (Event::PUT, Verdict::TooLong(key)) => {
                    skipped += 1;
                    self.sizes.delete(&key);
                    deleted.push(key);
                }
                _ => skipped += 1,
            }
        }
        if skipped > 0 {
            tracing::warn!(
                revision,
                "the engine: {skipped} changes are left out: no UTF-8, a value too long, no known kind"
            );
            self.links.skipped(skipped);
        }
        if self.sizes.total > MOST {
            return Err(Stop::Final(format!("more than {} MiB below {}", MOST >> 20, self.prefix)));
        }
        if put.is_empty() && deleted.is_empty() {
            return Ok(());
        }
        let news = News::Changed { revision: Revision(revision), put, deleted };
        if self.news.send(news).await { Ok(()) } else { Err(Stop::Final("nobody listens".to_owned())) }
    }
}

/// Decides whether the watch can continue on another link after a failure. If an answer is too large, the watch ends,
/// because the answer of another server would be too large as well.
fn stop(status: &Status) -> Stop {
    let words = words::status(status);
    if status.code() == Code::OutOfRange { Stop::Final(words) } else { Stop::Broken(words) }
}

/// Groups the events after `last` by revision.
fn by_revision(events: Vec<Event>, last: i64) -> Vec<(i64, Vec<Event>)> {
    let mut groups: Vec<(i64, Vec<Event>)> = Vec::new();
    for event in events {
        let revision = event.kv.as_ref().map_or(0, |found| found.mod_revision);
        match groups.last_mut() {
            Some((same, group)) if *same == revision => group.push(event),
            Some((earlier, _)) if revision < *earlier => {}
            Some(_) | None if revision <= last => {}
            Some(_) | None => groups.push((revision, vec![event])),
        }
    }
    groups
}

/// The number of keys and the size of each key, without the values.
struct Sizes {
    by_key: HashMap<String, usize>,
    total: usize,
}

impl Sizes {
    fn of(entries: &[Entry]) -> Self {
        let by_key: HashMap<_, _> = entries.iter().map(|entry| (entry.key.clone(), weight(entry))).collect();
        let total = by_key.values().sum();
        Self { by_key, total }
    }

    fn put(&mut self, entry: &Entry) {
        let weight = weight(entry);
        let before = self.by_key.insert(entry.key.clone(), weight).unwrap_or(0);
        self.total = self.total + weight - before;
    }

    fn delete(&mut self, key: &str) {
        self.total -= self.by_key.remove(key).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::KeyValue;

    fn event(revision: i64) -> Event {
        Event { kind: Event::PUT, kv: Some(KeyValue { mod_revision: revision, ..KeyValue::default() }) }
    }

    #[test]
    fn when_events_arrive_then_they_are_grouped_by_revision_without_repeats() {
        let revisions = |given: &[i64], last| {
            let groups = by_revision(given.iter().copied().map(event).collect(), last);
            groups.iter().map(|(revision, events)| (*revision, events.len())).collect::<Vec<_>>()
        };
        assert_eq!(revisions(&[5, 5, 6, 9, 9], 4), [(5, 2), (6, 1), (9, 2)]);
        assert_eq!(revisions(&[5, 5, 6], 5), [(6, 1)]);
        assert_eq!(revisions(&[7, 6, 7, 8], 5), [(7, 2), (8, 1)]);
        assert_eq!(revisions(&[0, -1], 5), []);
    }

    #[test]
    fn when_keys_change_then_the_sizes_follow() {
        let entry = |key: &str, length| Entry {
            key: key.to_owned(),
            value: vec![0; length],
            created: Revision(1),
            modified: Revision(1),
        };
        let mut sizes = Sizes::of(&[entry("a", 10), entry("b", 20)]);
        let before = sizes.total;
        sizes.put(&entry("a", 30));
        assert_eq!(sizes.total, before + 20);
        sizes.put(&entry("c", 0));
        sizes.delete("a");
        sizes.delete("nothing");
        assert_eq!(sizes.total, weight(&entry("b", 20)) + weight(&entry("c", 0)));
    }
}
