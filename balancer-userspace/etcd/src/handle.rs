//! The two ends of the queues. A request belongs to the session that its sender knew when it sent the request.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use balancer_fleet::engine::{News, Request};
use tokio::sync::mpsc;

/// The largest number of requests, and of news, that may wait.
const WAITING: usize = 1024;

/// No session has this number.
const NONE: u64 = 0;

/// A request in the queue.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) session: u64,
    pub(crate) request: Request,
}

/// Sends requests to the driver. A request belongs to the session whose `Joined` was received last. The driver drops it
/// when that session has ended.
#[derive(Clone, Debug)]
pub struct Requests {
    sender: mpsc::Sender<Asked>,
    session: Arc<AtomicU64>,
}

/// A request that the driver does not carry out.
#[derive(Debug, thiserror::Error)]
pub enum Unsent {
    /// No session exists.
    #[error("there is no connection to the engine")]
    NoSession(Request),
    /// Too many requests wait.
    #[error("too many requests to the engine wait")]
    Full(Request),
}

impl Requests {
    /// Sends a request without waiting. A sender that waited here could not receive the news that the driver must
    /// deliver first.
    ///
    /// # Errors
    /// Returns the request if no session exists, or if 1024 requests wait.
    pub fn send(&self, request: Request) -> Result<(), Unsent> {
        let session = self.session.load(Relaxed);
        if session == NONE {
            return Err(Unsent::NoSession(request));
        }
        self.sender.try_send(Asked { session, request }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(asked) => Unsent::Full(asked.request),
            mpsc::error::TrySendError::Closed(asked) => Unsent::NoSession(asked.request),
        })
    }
}

/// Receives news. Dropping it ends the session, and the driver revokes the lease.
#[derive(Debug)]
pub struct Newsfeed {
    receiver: mpsc::Receiver<(u64, News)>,
    session: Arc<AtomicU64>,
}

impl Newsfeed {
    /// Receives the next news; `None` when the engine's task has ended. A caller that stops waiting loses nothing.
    pub async fn recv(&mut self) -> Option<News> {
        let (session, news) = self.receiver.recv().await?;
        match news {
            News::Joined { .. } => self.session.store(session, Relaxed),
            News::Lost { .. } => self.session.store(NONE, Relaxed),
            News::Changed { .. } | News::Answered(..) => {}
        }
        Some(news)
    }
}

/// The sending end of [`Newsfeed`], for one session.
#[derive(Clone, Debug)]
pub(crate) struct NewsSender {
    sender: mpsc::Sender<(u64, News)>,
    session: u64,
}

impl NewsSender {
    /// Sends news; waits while the queue is full. Returns whether the receiver still exists.
    pub(crate) async fn send(&self, news: News) -> bool {
        self.sender.send((self.session, news)).await.is_ok()
    }

    /// Waits until the receiver is gone.
    pub(crate) async fn closed(&self) {
        self.sender.closed().await;
    }

    pub(crate) fn session(&self) -> u64 {
        self.session
    }

    /// Switches to the next session.
    pub(crate) fn next(&mut self) {
        self.session += 1;
    }
}

/// The receiving end of news that belong to no session.
#[derive(Debug)]
pub(crate) struct NewsReceiver(mpsc::Receiver<(u64, News)>);

impl NewsReceiver {
    /// Receives the next news; `None` when the sender is gone.
    pub(crate) async fn recv(&mut self) -> Option<News> {
        self.0.recv().await.map(|(_, news)| news)
    }
}

/// Makes a queue of news that belong to no session.
pub(crate) fn news() -> (NewsSender, NewsReceiver) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (NewsSender { sender, session: NONE }, NewsReceiver(receiver))
}

/// Makes both queues.
pub(crate) fn queues() -> (Requests, mpsc::Receiver<Asked>, NewsSender, Newsfeed) {
    let session = Arc::new(AtomicU64::new(NONE));
    let (requests, asked) = mpsc::channel(WAITING);
    let (sender, receiver) = mpsc::channel(WAITING);
    (
        Requests { sender: requests, session: Arc::clone(&session) },
        asked,
        NewsSender { sender, session: NONE },
        Newsfeed { receiver, session },
    )
}

#[cfg(test)]
mod tests {
    use balancer_fleet::engine::{Revision, Ticket};

    use super::*;

    fn read() -> Request {
        Request::Read { ticket: Ticket(1), prefix: "bulk/".to_owned() }
    }

    #[tokio::test]
    async fn when_a_session_ends_then_its_requests_are_dropped() {
        let (requests, mut asked, mut news, mut feed) = queues();
        assert!(matches!(requests.send(read()), Err(Unsent::NoSession(_))));
        news.next();
        assert!(news.send(News::Joined { revision: Revision(1), entries: Vec::new() }).await);
        assert!(matches!(requests.send(read()), Err(Unsent::NoSession(_))), "not received yet");
        feed.recv().await;
        assert!(requests.send(read()).is_ok());
        assert!(news.send(News::Lost { reason: String::new() }).await);
        news.next();
        assert!(requests.send(read()).is_ok(), "the loss was not received yet");
        feed.recv().await;
        assert!(matches!(requests.send(read()), Err(Unsent::NoSession(_))));
        for _ in 0..2 {
            assert_eq!(asked.recv().await.map(|asked| asked.session), Some(1));
        }
    }
}
