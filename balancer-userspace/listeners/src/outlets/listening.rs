//! A listener whose address may change while the listener serves requests.

use std::{
    net::{self, IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::Context as _;
use balancer_runtime::supervisor::{Supervisor, Task};
use tokio::{
    net::TcpListener,
    sync::watch,
    time::{Instant, sleep},
};
use tracing::{info, warn};

/// The maximum time until an address becomes free after the task has closed the listener.
const RELEASE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(10);

/// A kind of listener.
pub trait Outlet: Send {
    /// The settings of a listener of this kind.
    type Settings: Clone + PartialEq + Send + Sync;
    /// The data that the listener needs in addition to its address.
    type Means: Clone + Send + Sync;

    /// The name of the listener's task, for messages about its end.
    const TASK: &str;
    /// The subject and verb of log messages about the listener, such as `metrics are`.
    const WHAT: &str;

    /// The address of the listener; `None` if the listener is off.
    fn at(settings: &Self::Settings) -> Option<SocketAddr>;

    /// Gets the data that the listener needs.
    ///
    /// # Errors
    /// Fails if the data is not available.
    fn means(&self, settings: &Self::Settings) -> impl Future<Output = anyhow::Result<Self::Means>> + Send;

    /// The reason why a running listener does not serve as configured, if there is one.
    fn trouble(means: &Self::Means) -> impl Future<Output = Option<String>> + Send;

    /// Starts to listen on the address `at`.
    ///
    /// # Errors
    /// Fails if the machine cannot listen on this address.
    fn bind(&self, at: SocketAddr) -> impl Future<Output = anyhow::Result<TcpListener>> + Send;

    /// Serves requests until `shutdown` completes.
    fn serve(
        &self,
        listener: TcpListener,
        settings: &Self::Settings,
        means: Self::Means,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = anyhow::Result<()>> + Send + 'static;
}

/// The running server, and the settings prepared for a change.
pub struct Listening<O: Outlet> {
    outlet: O,
    settings: O::Settings,
    serving: Option<Serving<O>>,
    /// The listener that was prepared for a change.
    next: Option<Next<O>>,
    /// The reason why the wanted listener does not serve at all, or does not serve as configured.
    trouble: Option<String>,
    supervisor: Supervisor,
}

struct Serving<O: Outlet> {
    /// A second descriptor for the listening socket.
    socket: net::TcpListener,
    means: O::Means,
    stop: watch::Sender<()>,
    task: Task<()>,
}

struct Next<O: Outlet> {
    settings: O::Settings,
    listener: Option<(TcpListener, O::Means)>,
}

impl<O: Outlet> Listening<O> {
    /// Serves on `listener`, which the caller has bound according to `settings`. If there is no listener, the task
    /// [retries](Self::retry) later.
    pub async fn start(
        outlet: O,
        settings: O::Settings,
        listener: Option<TcpListener>,
        supervisor: Supervisor,
    ) -> anyhow::Result<Self> {
        let mut this = Self { outlet, settings, serving: None, next: None, trouble: None, supervisor };
        if let Some(listener) = listener {
            let means = this.outlet.means(&this.settings).await?;
            this.serving = Some(this.serve(listener, means)?);
        }
        Ok(this)
    }

    fn serve(&self, listener: TcpListener, means: O::Means) -> anyhow::Result<Serving<O>> {
        let listener = listener.into_std().context(O::TASK)?;
        let socket = listener.try_clone().context(O::TASK)?;
        let listener = TcpListener::from_std(listener).context(O::TASK)?;
        let (stop, mut stopped) = watch::channel(());
        let ended = async move {
            // An error means that the sender was dropped, which also ends the server.
            let _ = stopped.changed().await;
        };
        let served = self.outlet.serve(listener, &self.settings, means.clone(), ended);
        let task = self.supervisor.spawn(O::TASK, served);
        Ok(Serving { socket, means, stop, task })
    }

    /// Starts the wanted server again after a failed attempt. The function returns whether the listener is as wanted.
    pub async fn retry(&mut self) -> bool {
        let trouble = match (&self.serving, O::at(&self.settings)) {
            (Some(serving), _) => O::trouble(&serving.means).await,
            (None, Some(at)) if self.next.is_none() => match self.begin(at).await {
                Ok(serving) => {
                    self.serving = Some(serving);
                    info!("{} on {at}", O::WHAT);
                    None
                }
                Err(error) => Some(format!("{error:#}")),
            },
            (None, _) => None,
        };
        if let Some(trouble) = trouble.as_ref().filter(|&trouble| self.trouble.as_ref() != Some(trouble)) {
            warn!("{trouble}; the balancer keeps trying");
        }
        self.trouble = trouble;
        self.trouble.is_none()
    }

    async fn begin(&self, at: SocketAddr) -> anyhow::Result<Serving<O>> {
        let means = self.outlet.means(&self.settings).await?;
        self.serve(self.outlet.bind(at).await?, means)
    }

    /// The reason why the wanted listener does not serve at all, or does not serve as configured.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Binds the address of `wanted`, if possible while the current listener stays bound.
    ///
    /// # Errors
    /// Fails if the machine cannot listen on this address. After a failure, the current listener continues to serve.
    pub async fn prepare(&mut self, wanted: &O::Settings) -> anyhow::Result<()> {
        if *wanted == self.settings {
            return Ok(());
        }
        let settings = wanted.clone();
        let Some(at) = O::at(wanted) else {
            self.next = Some(Next { settings, listener: None });
            return Ok(());
        };
        let means = self.outlet.means(wanted).await?;
        let before = O::at(&self.settings);
        let listener = match &self.serving {
            Some(serving) if before == Some(at) => {
                let socket = serving.socket.try_clone().context(O::TASK)?;
                TcpListener::from_std(socket).context(O::TASK)?
            }
            Some(_) if before.is_some_and(|before| overlap(before, at)) => {
                // The current and the new listener cannot be bound at the same time, so the current listener stops for
                // the moment.
                self.stop().await;
                match self.bind_soon(at).await {
                    Ok(listener) => listener,
                    Err(error) => {
                        self.resume().await;
                        return Err(error);
                    }
                }
            }
            _ => self.outlet.bind(at).await?,
        };
        self.next = Some(Next { settings, listener: Some((listener, means)) });
        Ok(())
    }

    /// Checks whether [`prepare`](Self::prepare) would succeed, as far as this can be checked without changes.
    pub async fn check(&self, wanted: &O::Settings) -> anyhow::Result<()> {
        let Some(at) = O::at(wanted).filter(|_| *wanted != self.settings) else { return Ok(()) };
        self.outlet.means(wanted).await?;
        if O::at(&self.settings).is_some_and(|before| overlap(before, at)) {
            return Ok(());
        }
        self.outlet.bind(at).await.map(drop)
    }

    /// Completes the prepared change of the listener.
    pub async fn make(&mut self) {
        let Some(Next { settings, listener }) = self.next.take() else { return };
        let before = self.serving.take();
        self.settings = settings;
        match listener.map(|(listener, means)| self.serve(listener, means)).transpose() {
            Ok(serving) => self.serving = serving,
            Err(error) => warn!("{error:#}"),
        }
        match O::at(&self.settings) {
            Some(at) => info!("{} on {at}", O::WHAT),
            None => info!("{} off", O::WHAT),
        }
        if let Some(before) = before {
            before.stop();
        }
    }

    /// Cancels the prepared change of the listener.
    pub async fn undo(&mut self) {
        if self.next.take().is_some() && self.serving.is_none() {
            self.resume().await;
        }
    }

    /// Ends the server; pending requests get a short time to finish.
    pub async fn end(mut self) {
        self.stop().await;
    }

    async fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            let _ = serving.stop().ended().await;
        }
    }

    async fn resume(&mut self) {
        let Some(at) = O::at(&self.settings) else { return };
        let resumed = async {
            let means = self.outlet.means(&self.settings).await?;
            self.serve(self.bind_soon(at).await?, means)
        };
        match resumed.await {
            Ok(serving) => self.serving = Some(serving),
            Err(error) => warn!("{error:#}"),
        }
    }

    async fn bind_soon(&self, at: SocketAddr) -> anyhow::Result<TcpListener> {
        let deadline = Instant::now() + RELEASE;
        loop {
            match self.outlet.bind(at).await {
                Err(_) if Instant::now() < deadline => sleep(PAUSE).await,
                bound => return bound,
            }
        }
    }
}

impl<O: Outlet> Serving<O> {
    fn stop(self) -> Task<()> {
        self.task.release();
        drop(self.stop);
        self.task
    }
}

/// Whether two listeners cannot be bound at the same time.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let any = |address: IpAddr| address.is_unspecified();
    one.port() == other.port() && (one.ip() == other.ip() || any(one.ip()) || any(other.ip()))
}
