//! The history of the balancer: all changes, each with its reason and the user who requested it. Memory holds a limited
//! number of events; a file beside the state file preserves events when the process ends.

mod file;

use std::{
    collections::VecDeque,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use balancer_api::events::{EventView, EventsView};
use balancer_config::names::BackendName;
use balancer_control::io::{Change, Moved, Report, ReportLevel};
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};
use tracing::{info, warn};

use self::file::EventFile;
use crate::supervisor::Supervisor;

/// The number of events kept in memory.
const KEPT: usize = 10_000;
/// The maximum number of events in one answer.
const PAGE: usize = 1_000;
/// The maximum number of requests that wait for the next event; each such request occupies a control connection.
const WAITERS: usize = 16;

/// A handle for the history of events. All clones of a handle share one history.
#[derive(Clone, Debug)]
pub struct Events(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// This member's name in its fleet.
    member: Option<String>,
    kept: Mutex<Ring>,
    newest: watch::Sender<Newest>,
    waiters: Semaphore,
}

#[derive(Debug)]
struct Ring {
    events: VecDeque<EventView>,
    file: Option<EventFile>,
}

#[derive(Clone, Copy, Debug)]
struct Newest {
    sequence: u64,
    closed: bool,
}

/// The start of a range of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// Events after the event with this number.
    Sequence(u64),
    /// Events that are at most this old.
    Age(Duration),
    /// The latest events, up to this number.
    Last(usize),
}

/// The error for a reader if too many other readers are already waiting for an event.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("{WAITERS} requests wait for events already; ask without wait")]
pub struct TooManyWaiters;

impl Events {
    /// Makes a history that exists only in memory.
    #[must_use]
    pub fn new() -> Self {
        Self::from_kept(VecDeque::new(), None, None)
    }

    /// Continues the history in the file beside `state_file`; in a fleet, as the member `member`. If this process
    /// cannot read or write the file, the function logs a warning.
    #[must_use]
    pub fn beside(state_file: &Path, member: Option<String>, supervisor: &Supervisor) -> Self {
        let path = state_file.with_file_name("events.jsonl");
        let events = file::read(&path, KEPT);
        Self::from_kept(events, Some(EventFile::open(path, supervisor)), member)
    }

    fn from_kept(events: VecDeque<EventView>, file: Option<EventFile>, member: Option<String>) -> Self {
        let sequence = events.back().map_or(0, |event| event.sequence);
        let newest = watch::Sender::new(Newest { sequence, closed: false });
        Self(Arc::new(Shared {
            member,
            kept: Mutex::new(Ring { events, file }),
            newest,
            waiters: Semaphore::const_new(WAITERS),
        }))
    }

    /// Logs and stores a report of the controller.
    pub fn report(&self, report: &Report) {
        let Report { level, about, message, moves } = report;
        let kind = if about.is_some() { "state" } else { "note" };
        self.tell(kind, *level, about.as_ref(), message, None, *moves);
    }

    /// Logs and stores a change that a user has requested.
    pub fn change(&self, about: Option<&BackendName>, message: &str, uid: Option<u32>, moves: Option<Moved>) {
        self.tell("change", ReportLevel::Info, about, message, uid, moves);
    }

    /// Logs and stores a message about the balancer.
    pub fn note(&self, message: &str) {
        self.tell("note", ReportLevel::Info, None, message, None, None);
    }

    /// Logs and stores a message that needs attention.
    pub fn warn(&self, message: &str) {
        self.tell("note", ReportLevel::Warn, None, message, None, None);
    }

    fn tell(
        &self,
        kind: &str,
        level: ReportLevel,
        about: Option<&BackendName>,
        message: &str,
        uid: Option<u32>,
        moves: Option<Moved>,
    ) {
        let service = about.map(|name| name.service.as_str());
        let backend = about.map(|name| name.backend.as_str()).filter(|name| !name.is_empty());
        match level {
            ReportLevel::Info => info!(service, backend, uid, "{message}"),
            ReportLevel::Warn => warn!(service, backend, uid, "{message}"),
        }
        let mut kept = self.kept();
        // The event number must exceed all earlier numbers, even if the ring has dropped events.
        let sequence = self.0.newest.borrow().sequence + 1;
        let event = EventView {
            sequence,
            time: humantime::format_rfc3339_millis(now()).to_string(),
            level: match level {
                ReportLevel::Info => "info",
                ReportLevel::Warn => "warn",
            }
            .to_owned(),
            kind: kind.to_owned(),
            service: service.map(str::to_owned),
            backend: backend.map(str::to_owned),
            message: message.to_owned(),
            member: self.0.member.clone(),
            uid,
            moves,
        };
        if let Some(file) = &mut kept.file {
            file.append(&event);
        }
        if kept.events.len() == KEPT {
            kept.events.pop_front();
        }
        kept.events.push_back(event);
        // The event number changes under the lock, so that readers never see a lower number.
        self.0.newest.send_modify(|newest| newest.sequence = sequence);
        drop(kept);
    }

    /// Returns events from the history. If the history has no event after `since`, the function waits up to `wait` for
    /// the next event.
    ///
    /// # Errors
    /// Fails with [`TooManyWaiters`] if too many readers are already waiting for an event.
    pub async fn read(&self, since: Since, wait: Duration) -> Result<EventsView, TooManyWaiters> {
        let mut newest = self.0.newest.subscribe();
        let found = self.page(since);
        if !found.events.is_empty() || found.missed > 0 || wait.is_zero() {
            return Ok(found);
        }
        let _waiter = self.0.waiters.try_acquire().map_err(|_| TooManyWaiters)?;
        // An error means that the history is closed; a timeout means that no new event was recorded.
        let _ = timeout(wait, newest.wait_for(|newest| newest.closed || newest.sequence > found.next)).await;
        Ok(self.page(Since::Sequence(found.next)))
    }

    /// Wakes every waiting reader, and makes later readers not wait.
    pub fn close(&self) {
        self.0.newest.send_modify(|newest| newest.closed = true);
    }

    fn page(&self, since: Since) -> EventsView {
        let kept = self.kept();
        let newest = kept.events.back().map_or(0, |event| event.sequence);
        let (first, missed) = match since {
            // The number belongs to a lost history, so all events of the current history are new to the reader.
            Since::Sequence(sequence) if sequence > newest => (0, 0),
            Since::Sequence(sequence) => {
                let first = kept.events.partition_point(|event| event.sequence <= sequence);
                let next = kept.events.get(first).map_or(sequence + 1, |event| event.sequence);
                (first, next - sequence - 1)
            }
            Since::Age(age) => {
                let oldest = now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
                (kept.events.partition_point(|event| time(event) < oldest), 0)
            }
            Since::Last(count) => (kept.events.len().saturating_sub(count), 0),
        };
        let events: Vec<EventView> = kept.events.iter().skip(first).take(PAGE).cloned().collect();
        let next = events.last().map_or(newest, |event| event.sequence);
        EventsView { events, missed, next }
    }

    fn kept(&self) -> MutexGuard<'_, Ring> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Events {
    fn default() -> Self {
        Self::new()
    }
}

#[expect(clippy::disallowed_methods, reason = "people want to know at what time of day it was")]
fn now() -> SystemTime {
    SystemTime::now()
}

fn time(event: &EventView) -> SystemTime {
    humantime::parse_rfc3339(&event.time).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The backend or service that a change concerns. If the change concerns a whole service, the backend's name is empty.
#[must_use]
pub fn subject(change: &Change) -> Option<BackendName> {
    match change {
        Change::Add { name, .. }
        | Change::Remove { name, .. }
        | Change::SetAdmin { name, .. }
        | Change::SetWeight { name, .. }
        | Change::SetLimits { name, .. }
        | Change::Agent { name, .. }
        | Change::ForceHealth { name, .. } => Some(name.clone()),
        Change::AddRule { service, .. }
        | Change::RemoveRule { service, .. }
        | Change::SetSteer { service, .. }
        | Change::RotateQuicKey { service, .. }
        | Change::Bound { service, .. }
        | Change::Full { service, .. }
        | Change::AddListener { service, .. }
        | Change::RemoveListener { service, .. }
        | Change::Discover { service, .. } => Some(BackendName { service: service.clone(), backend: String::new() }),
        Change::SetDropIn { .. } | Change::Reload(_) | Change::Reset(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(view: &EventsView) -> Vec<&str> {
        view.events.iter().map(|event| event.message.as_str()).collect()
    }

    #[tokio::test]
    async fn when_a_reader_returns_then_it_continues_where_it_was() {
        let events = Events::new();
        assert_eq!(events.read(Since::Sequence(0), Duration::ZERO).await.unwrap().next, 0);
        for number in 1..=1500 {
            events.note(&number.to_string());
        }
        let first = events.read(Since::Sequence(0), Duration::ZERO).await.unwrap();
        assert_eq!((first.events.len(), first.next, first.missed), (1000, 1000, 0));
        let second = events.read(Since::Sequence(first.next), Duration::ZERO).await.unwrap();
        assert_eq!((second.events.len(), second.next), (500, 1500));
        let last = events.read(Since::Last(2), Duration::ZERO).await.unwrap();
        assert_eq!(messages(&last), ["1499", "1500"]);
        assert_eq!(
            events.read(Since::Age(Duration::from_secs(3600)), Duration::ZERO).await.unwrap().events.len(),
            1000
        );
        // The number 9000 belongs to an earlier history.
        assert_eq!(events.read(Since::Sequence(9000), Duration::ZERO).await.unwrap().events.len(), 1000);
    }

    #[tokio::test]
    async fn when_a_reader_is_slow_then_it_is_told_what_it_missed() {
        let events = Events::new();
        for number in 1..=KEPT + 5 {
            events.note(&number.to_string());
        }
        let late = events.read(Since::Sequence(2), Duration::ZERO).await.unwrap();
        assert_eq!((late.missed, late.events[0].sequence), (3, 6));
    }

    #[tokio::test]
    async fn when_a_reader_waits_then_it_gets_the_next_event_and_the_end() {
        let events = Events::new();
        events.note("first");
        let reader = events.clone();
        let waiting = tokio::spawn(async move { reader.read(Since::Sequence(1), Duration::from_secs(3600)).await });
        tokio::task::yield_now().await;
        events.change(None, "second", Some(1000), None);
        let heard = waiting.await.unwrap().unwrap();
        assert_eq!((messages(&heard), heard.events[0].uid), (vec!["second"], Some(1000)));

        let reader = events.clone();
        let waiting = tokio::spawn(async move { reader.read(Since::Sequence(2), Duration::from_secs(3600)).await });
        tokio::task::yield_now().await;
        events.close();
        assert_eq!(waiting.await.unwrap().unwrap().events, []);
    }

    #[tokio::test]
    async fn when_the_process_restarts_then_the_history_continues() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("lib/state.json");
        let events = Events::beside(&state, None, &Supervisor::default());
        let about = BackendName { service: "web".to_owned(), backend: "web1".to_owned() };
        let moves = Some(Moved { slots: 16_384, needless: 0, known_clients: Some(1_204) });
        events.note("one");
        events.change(Some(&about), "two", Some(0), moves);
        let before = events.read(Since::Sequence(0), Duration::ZERO).await.unwrap();
        drop(events);
        let path = directory.path().join("lib/events.jsonl");
        let mut torn = std::fs::read(&path).unwrap();
        torn.extend_from_slice(b"{\"sequence\": 3, \"ti");
        std::fs::write(&path, torn).unwrap();

        let events = Events::beside(&state, None, &Supervisor::default());
        assert_eq!(events.read(Since::Sequence(0), Duration::ZERO).await.unwrap(), before);
        events.note("three");
        drop(events);
        let events = Events::beside(&state, None, &Supervisor::default());
        let after = events.read(Since::Sequence(0), Duration::ZERO).await.unwrap();
        assert_eq!(messages(&after), ["one", "two", "three"]);
        assert_eq!(after.next, 3);
    }

    #[tokio::test]
    async fn when_events_are_many_then_the_file_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state.json");
        let events = Events::beside(&state, None, &Supervisor::default());
        for number in 0..3_000 {
            events.note(&format!("{number} {}", "x".repeat(1_000)));
        }
        drop(events);
        for file in ["events.jsonl", "events.jsonl.previous"] {
            let length = std::fs::metadata(directory.path().join(file)).unwrap().len();
            assert!((1..=file::MAX_SIZE + 2_000).contains(&length), "{file}: {length}");
        }
        let events = Events::beside(&state, None, &Supervisor::default());
        events.note("last");
        let last = events.read(Since::Last(2), Duration::ZERO).await.unwrap();
        assert_eq!(last.next, 3_001);
        assert!(last.events[0].message.starts_with("2999 "));
    }

    #[tokio::test]
    async fn when_the_file_cannot_be_written_then_the_history_stays_in_memory() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("lib"), "not a directory").unwrap();
        let events = Events::beside(&directory.path().join("lib/state.json"), None, &Supervisor::default());
        events.note("one");
        assert_eq!(events.read(Since::Sequence(0), Duration::ZERO).await.unwrap().events.len(), 1);
    }
}
