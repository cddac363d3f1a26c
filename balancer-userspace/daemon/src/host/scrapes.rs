//! The metrics listener, which can move to another address while it serves.

use std::{
    net::{self, IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    net::TcpListener,
    sync::watch,
    time::{Instant, sleep},
};
use tracing::{info, warn};

use crate::{
    call::Calls,
    host_state::Listen,
    metrics,
    supervisor::{Supervisor, Task},
};

/// How long it may take for an address to become free after its listener was told to end.
const RELEASE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(10);

/// The server, and its next state.
pub(super) struct Scrapes {
    calls: Calls,
    listen: Listen,
    serving: Option<Serving>,
    /// The listener for a change that is not made yet.
    next: Option<Next>,
    /// Why metrics are wanted but not served.
    trouble: Option<String>,
    supervisor: Supervisor,
}

struct Serving {
    /// A second descriptor of the socket.
    socket: net::TcpListener,
    stop: watch::Sender<()>,
    task: Task<()>,
}

struct Next {
    listen: Listen,
    listener: Option<TcpListener>,
}

impl Scrapes {
    /// Serves on `listener`, which was bound according to `listen`; without a listener, [`retry`](Self::retry) tries to
    /// bind again.
    pub(super) fn start(
        listen: Listen,
        listener: Option<TcpListener>,
        calls: Calls,
        supervisor: Supervisor,
    ) -> anyhow::Result<Self> {
        let mut this = Self { calls, listen, serving: None, next: None, trouble: None, supervisor };
        this.serving = listener.map(|listener| this.serve(listener, listen.page)).transpose()?;
        Ok(this)
    }

    fn serve(&self, listener: TcpListener, page: bool) -> anyhow::Result<Serving> {
        let listener = listener.into_std().context("the metrics listener")?;
        let socket = listener.try_clone().context("the metrics listener")?;
        let listener = TcpListener::from_std(listener).context("the metrics listener")?;
        let (stop, mut stopped) = watch::channel(());
        let ended = async move {
            // An error means that the sender is gone, which is the end as well.
            let _ = stopped.changed().await;
        };
        let served = metrics::serve(listener, self.calls.clone(), page, ended);
        let task = self.supervisor.spawn("the metrics listener", served);
        Ok(Serving { socket, stop, task })
    }

    /// Tries to serve if that is wanted and failed before. Returns whether everything is as wanted.
    pub(super) async fn retry(&mut self) -> bool {
        let wanted = self.listen.at.filter(|_| self.serving.is_none() && self.next.is_none());
        let Some(at) = wanted else {
            self.trouble = None;
            return true;
        };
        match metrics::bind(at).await.and_then(|listener| self.serve(listener, self.listen.page)) {
            Ok(serving) => {
                self.serving = Some(serving);
                info!("metrics are on {at}");
                self.trouble = None;
            }
            Err(error) => self.trouble = Some(format!("{error:#}")),
        }
        self.trouble.is_none()
    }

    /// Why metrics are wanted but not served.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Binds the listener for `wanted`, beside the current one if possible.
    ///
    /// # Errors
    /// If the address cannot be used. The current listener goes on.
    pub(super) async fn prepare(&mut self, wanted: Listen) -> anyhow::Result<()> {
        if wanted == self.listen {
            return Ok(());
        }
        let listener = match (wanted.at, &self.serving) {
            (None, _) => None,
            (Some(at), Some(serving)) if self.listen.at == Some(at) => {
                let socket = serving.socket.try_clone().context("the metrics listener")?;
                Some(TcpListener::from_std(socket).context("the metrics listener")?)
            }
            (Some(at), Some(_)) if self.listen.at.is_some_and(|before| overlap(before, at)) => {
                // Both cannot exist at once, so the current one is stopped for the moment.
                self.stop().await;
                match bind_soon(at).await {
                    Ok(listener) => Some(listener),
                    Err(error) => {
                        self.resume().await;
                        return Err(error);
                    }
                }
            }
            (Some(at), _) => Some(metrics::bind(at).await?),
        };
        self.next = Some(Next { listen: wanted, listener });
        Ok(())
    }

    /// Checks whether [`prepare`](Self::prepare) would find a usable address, as far as possible beforehand.
    pub(super) async fn check(&self, wanted: Listen) -> anyhow::Result<()> {
        match wanted.at {
            Some(at) if !self.listen.at.is_some_and(|before| overlap(before, at)) => metrics::bind(at).await.map(drop),
            Some(_) | None => Ok(()),
        }
    }

    /// Completes a change.
    pub(super) async fn make(&mut self) {
        let Some(Next { listen, listener }) = self.next.take() else { return };
        let before = self.serving.take();
        self.listen = listen;
        match listener.map(|listener| self.serve(listener, listen.page)).transpose() {
            Ok(serving) => self.serving = serving,
            Err(error) => warn!("{error:#}"),
        }
        match listen.at {
            Some(at) => info!("metrics are on {at}"),
            None => info!("metrics are off"),
        }
        if let Some(before) = before {
            before.stop();
        }
    }

    /// Cancels a change.
    pub(super) async fn undo(&mut self) {
        if self.next.take().is_some() && self.serving.is_none() {
            self.resume().await;
        }
    }

    /// Ends the server; running scrapes get a moment to finish.
    pub(super) async fn end(mut self) {
        self.stop().await;
    }

    async fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            let _ = serving.stop().ended().await;
        }
    }

    async fn resume(&mut self) {
        let Some(at) = self.listen.at else { return };
        match bind_soon(at).await.and_then(|listener| self.serve(listener, self.listen.page)) {
            Ok(serving) => self.serving = Some(serving),
            Err(error) => warn!("{error:#}"),
        }
    }
}

impl Serving {
    fn stop(self) -> Task<()> {
        self.task.release();
        drop(self.stop);
        self.task
    }
}

/// Whether two listeners cannot exist at the same time.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let any = |address: IpAddr| address.is_unspecified();
    one.port() == other.port() && (one.ip() == other.ip() || any(one.ip()) || any(other.ip()))
}

async fn bind_soon(at: SocketAddr) -> anyhow::Result<TcpListener> {
    let deadline = Instant::now() + RELEASE;
    loop {
        match metrics::bind(at).await {
            Err(_) if Instant::now() < deadline => sleep(PAUSE).await,
            bound => return bound,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{net::TcpStream, sync::mpsc};

    use super::*;

    async fn start() -> (Scrapes, SocketAddr, mpsc::Receiver<crate::call::Call>) {
        let listener = metrics::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let at = listener.local_addr().unwrap();
        let (calls, asked) = mpsc::channel(1);
        (
            Scrapes::start(Listen { at: Some(at), page: true }, Some(listener), calls, Supervisor::default()).unwrap(),
            at,
            asked,
        )
    }

    async fn answers(at: SocketAddr) -> bool {
        TcpStream::connect(at).await.is_ok()
    }

    async fn free() -> SocketAddr {
        metrics::bind("127.0.0.1:0".parse().unwrap()).await.unwrap().local_addr().unwrap()
    }

    #[tokio::test]
    async fn when_the_address_changes_then_the_listener_moves_only_when_the_change_is_made() {
        let (mut scrapes, first, _asked) = start().await;
        let second = free().await;
        for (undone, listen) in [(true, second), (false, second)] {
            scrapes.prepare(Listen { at: Some(listen), page: true }).await.unwrap();
            assert!(answers(first).await);
            if undone {
                scrapes.undo().await;
                assert!(answers(first).await && !answers(second).await);
            } else {
                scrapes.make().await;
                assert!(answers(second).await);
            }
        }
        // Only the page setting changes, so the listener is never absent.
        scrapes.prepare(Listen { at: Some(second), page: false }).await.unwrap();
        scrapes.make().await;
        assert!(answers(second).await);
        scrapes.prepare(Listen { at: None, page: false }).await.unwrap();
        scrapes.make().await;
        let deadline = Instant::now() + RELEASE;
        while answers(second).await || answers(first).await {
            assert!(Instant::now() < deadline);
            sleep(PAUSE).await;
        }
    }

    #[tokio::test]
    async fn when_the_present_listener_blocks_an_address_then_it_is_taken_over_or_given_back() {
        let (mut scrapes, first, _asked) = start().await;
        let every = SocketAddr::new("0.0.0.0".parse().unwrap(), first.port());
        scrapes.check(Listen { at: Some(every), page: true }).await.unwrap();
        scrapes.prepare(Listen { at: Some(every), page: true }).await.unwrap();
        scrapes.undo().await;
        assert!(answers(first).await);
        scrapes.prepare(Listen { at: Some(every), page: true }).await.unwrap();
        scrapes.make().await;
        assert!(answers(first).await);
        scrapes.end().await;
        assert!(!answers(first).await);
    }

    #[tokio::test]
    async fn when_the_address_is_taken_at_the_start_then_it_is_served_once_it_is_free() {
        let taken = metrics::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let listen = Listen { at: taken.local_addr().ok(), page: true };
        let (calls, _asked) = mpsc::channel(1);
        let mut scrapes = Scrapes::start(listen, None, calls, Supervisor::default()).unwrap();
        assert!(!scrapes.retry().await);
        let trouble = scrapes.trouble().unwrap();
        assert!(trouble.contains("another program listens there"), "{trouble}");
        // An unchanged address blocks no change.
        scrapes.prepare(listen).await.unwrap();
        drop(taken);
        assert!(scrapes.retry().await && scrapes.trouble().is_none());
        assert!(answers(listen.at.unwrap()).await);
        scrapes.end().await;
    }

    #[tokio::test]
    async fn when_an_address_cannot_be_used_then_nothing_changes() {
        let (mut scrapes, first, _asked) = start().await;
        let taken = metrics::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let bad = Listen { at: taken.local_addr().ok(), page: true };
        for error in [scrapes.check(bad).await.unwrap_err(), scrapes.prepare(bad).await.unwrap_err()] {
            assert!(error.to_string().contains("another program listens there"), "{error}");
        }
        scrapes.undo().await;
        assert!(answers(first).await);
        scrapes.end().await;
    }
}
