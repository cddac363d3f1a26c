//! The listener that serves metrics.

use std::net::SocketAddr;

use tokio::net::TcpListener;

use super::listening::{Listening, Outlet};
use crate::{call::Calls, metrics};

/// The address of the metrics listener, and whether the listener serves the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricsSettings {
    /// The address of the listener; `None` if there is no listener.
    pub at: Option<SocketAddr>,
    /// Whether the listener serves the page at `/`.
    pub page: bool,
}

/// The listener that serves the metrics.
pub type Scrapes = Listening<Metrics>;

/// The kind of listener that serves metrics.
pub struct Metrics(pub Calls);

impl Outlet for Metrics {
    type Settings = MetricsSettings;
    type Means = ();

    const TASK: &str = "the metrics listener";
    const WHAT: &str = "metrics are";

    fn at(settings: &MetricsSettings) -> Option<SocketAddr> {
        settings.at
    }

    async fn means(&self, _: &MetricsSettings) -> anyhow::Result<()> {
        Ok(())
    }

    async fn trouble(_: &()) -> Option<String> {
        None
    }

    async fn bind(&self, at: SocketAddr) -> anyhow::Result<TcpListener> {
        metrics::bind(at).await
    }

    fn serve(
        &self,
        listener: TcpListener,
        settings: &MetricsSettings,
        (): (),
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        metrics::serve(listener, self.0.clone(), settings.page, shutdown)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use balancer_runtime::supervisor::Supervisor;
    use tokio::{
        net::TcpStream,
        sync::mpsc,
        time::{Instant, sleep},
    };

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    async fn start() -> (Scrapes, SocketAddr, mpsc::Receiver<crate::call::Call>) {
        let listener = metrics::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let at = listener.local_addr().unwrap();
        let (calls, asked) = mpsc::channel(1);
        let listen = MetricsSettings { at: Some(at), page: true };
        let started = Scrapes::start(Metrics(calls), listen, Some(listener), Supervisor::default()).await;
        (started.unwrap(), at, asked)
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
            scrapes.prepare(&MetricsSettings { at: Some(listen), page: true }).await.unwrap();
            assert!(answers(first).await);
            if undone {
                scrapes.undo().await;
                assert!(answers(first).await && !answers(second).await);
            } else {
                scrapes.make().await;
                assert!(answers(second).await);
            }
        }
        // Only the setting for the page changes, so the listener never closes.
        scrapes.prepare(&MetricsSettings { at: Some(second), page: false }).await.unwrap();
        scrapes.make().await;
        assert!(answers(second).await);
        scrapes.prepare(&MetricsSettings { at: None, page: false }).await.unwrap();
        scrapes.make().await;
        let deadline = Instant::now() + PATIENCE;
        while answers(second).await || answers(first).await {
            assert!(Instant::now() < deadline);
            sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn when_the_present_listener_blocks_an_address_then_it_is_taken_over_or_given_back() {
        let (mut scrapes, first, _asked) = start().await;
        let every = SocketAddr::new("0.0.0.0".parse().unwrap(), first.port());
        scrapes.check(&MetricsSettings { at: Some(every), page: true }).await.unwrap();
        scrapes.prepare(&MetricsSettings { at: Some(every), page: true }).await.unwrap();
        scrapes.undo().await;
        assert!(answers(first).await);
        scrapes.prepare(&MetricsSettings { at: Some(every), page: true }).await.unwrap();
        scrapes.make().await;
        assert!(answers(first).await);
        scrapes.end().await;
        assert!(!answers(first).await);
    }

    #[tokio::test]
    async fn when_the_address_is_taken_at_the_start_then_it_is_served_once_it_is_free() {
        let taken = metrics::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let listen = MetricsSettings { at: taken.local_addr().ok(), page: true };
        let (calls, _asked) = mpsc::channel(1);
        let mut scrapes = Scrapes::start(Metrics(calls), listen, None, Supervisor::default()).await.unwrap();
        assert!(!scrapes.retry().await);
        let trouble = scrapes.trouble().unwrap();
        assert!(trouble.contains("another program listens there"), "{trouble}");
        // A change that keeps the address succeeds.
        scrapes.prepare(&listen).await.unwrap();
        drop(taken);
        assert!(scrapes.retry().await && scrapes.trouble().is_none());
        assert!(answers(listen.at.unwrap()).await);
        scrapes.end().await;
    }

    #[tokio::test]
    async fn when_an_address_cannot_be_used_then_nothing_changes() {
        let (mut scrapes, first, _asked) = start().await;
        let taken = metrics::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let bad = MetricsSettings { at: taken.local_addr().ok(), page: true };
        for error in [scrapes.check(&bad).await.unwrap_err(), scrapes.prepare(&bad).await.unwrap_err()] {
            assert!(error.to_string().contains("another program listens there"), "{error}");
        }
        scrapes.undo().await;
        assert!(answers(first).await);
        scrapes.end().await;
    }
}
