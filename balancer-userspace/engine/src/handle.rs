//! The two ends of the queues: requests belong to the session that the asker knew of.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use balancer_fleet::engine::{News, Request};
use tokio::sync::mpsc;

/// Requests, and news, that may wait.
const WAITING: usize = 1024;

/// No session has this number.
const NONE: u64 = 0;

/// A request as it waits.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) session: u64,
    pub(crate) request: Request,
}

/// Where requests go. They belong to the session whose `Joined` was received last, and are dropped when it has ended.
#[derive(Clone, Debug)]
pub struct Requests {
    sender: mpsc::Sender<Asked>,
    session: Arc<AtomicU64>,
}

/// A request that is not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Unsent {
    /// There is no session.
    #[error("there is no connection to the engine")]
    NoSession(Request),
    /// Too many wait.
    #[error("too many requests to the engine wait")]
    Full(Request),
}

impl Requests {
    /// Asks, without waiting: who waits here cannot receive the news that must go first.
    ///
    /// # Errors
    /// Returns the request if there is no session, or 1024 wait.
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

/// Where news come from. Dropping it ends the session: the lease is revoked.
#[derive(Debug)]
pub struct Newsfeed {
    receiver: mpsc::Receiver<(u64, News)>,
    session: Arc<AtomicU64>,
}

impl Newsfeed {
    /// The next; `None` when the engine's task has ended. Nothing is lost if it is not waited for to the end.
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

/// The other end of [`Newsfeed`], for one session.
#[derive(Clone, Debug)]
pub(crate) struct NewsSender {
    sender: mpsc::Sender<(u64, News)>,
    session: u64,
}

impl NewsSender {
    /// Waits while too many wait. Says whether somebody listens.
    pub(crate) async fn send(&self, news: News) -> bool {
        self.sender.send((self.session, news)).await.is_ok()
    }

    /// Waits until nobody listens.
    pub(crate) async fn closed(&self) {
        self.sender.closed().await;
    }

    pub(crate) fn session(&self) -> u64 {
        self.session
    }

    /// For the next session.
    pub(crate) fn next(&mut self) {
        self.session += 1;
    }
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
    async fn a_request_belongs_to_the_session_that_the_asker_knows_of() {
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
