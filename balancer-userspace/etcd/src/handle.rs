//! The queues between the driver and its user: for requests, and for news. A request belongs to the session that the
//! sender knew when it sent the request.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use balancer_fleet::engine::{News, Request};
use tokio::sync::mpsc;

/// The maximum number of requests, and also of news, that may wait.
const WAITING: usize = 1024;

/// A session number that stands for no session.
const NONE: u64 = 0;

/// A request in the queue, with its session.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) session: u64,
    pub(crate) request: Request,
}

/// The sending end for requests to the driver. A request belongs to the session of the last `Joined` that the user has
/// received. The driver drops a request if that session has ended.
#[derive(Clone, Debug)]
pub struct Requests {
    sender: mpsc::Sender<Asked>,
    session: Arc<AtomicU64>,
}

/// A request that was not sent, with the reason.
#[derive(Debug, thiserror::Error)]
pub enum Unsent {
    #[error("there is no connection to the engine")]
    NoSession(Request),
    /// Too many requests are already waiting.
    #[error("too many requests to the engine wait")]
    Full(Request),
}

impl Requests {
    /// Sends a request to the driver without waiting. If the sender waited, it could not receive the news that the
    /// driver must deliver before it takes requests.
    ///
    /// # Errors
    /// Returns the request if no session exists, or if 1024 requests are already waiting.
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

/// The receiving end for news from the driver. When the receiver is dropped, the session ends, and the driver revokes
/// the lease.
#[derive(Debug)]
pub struct Newsfeed {
    receiver: mpsc::Receiver<(u64, News)>,
    session: Arc<AtomicU64>,
}

impl Newsfeed {
    /// Receives the next item of news; `None` if the engine's task has ended. If the caller stops waiting, no news is
    /// lost.
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
    /// Sends an item of news; waits while the queue is full. The function returns whether the receiver still exists.
    pub(crate) async fn send(&self, news: News) -> bool {
        self.sender.send((self.session, news)).await.is_ok()
    }

    /// Waits until the receiver is dropped.
    pub(crate) async fn closed(&self) {
        self.sender.closed().await;
    }

    pub(crate) fn session(&self) -> u64 {
        self.session
    }

    /// Switches the sender to the next session.
    pub(crate) fn next(&mut self) {
        self.session += 1;
    }
}

/// The receiving end of news that belong to no session.
#[derive(Debug)]
pub(crate) struct NewsReceiver(mpsc::Receiver<(u64, News)>);

impl NewsReceiver {
    /// Receives the next item of news; `None` if the sender was dropped.
    pub(crate) async fn recv(&mut self) -> Option<News> {
        self.0.recv().await.map(|(_, news)| news)
    }
}

/// Makes a queue of news that belong to no session.
pub(crate) fn news() -> (NewsSender, NewsReceiver) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (NewsSender { sender, session: NONE }, NewsReceiver(receiver))
}

/// Makes a queue for requests and a queue for news.
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
