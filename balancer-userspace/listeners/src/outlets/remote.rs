//! The listener that serves the control API to other machines.

use std::{net::SocketAddr, sync::Arc};

use anyhow::anyhow;
use balancer_config::control::Remote;
use tokio::net::TcpListener;

use super::listening::{Listening, Outlet};
use crate::api_server::{
    Answering,
    remote::{self, Identity},
};

/// The listener that serves the control API to other machines.
pub type Distant = Listening<Control>;

/// The kind of listener that serves the control API.
pub struct Control(pub Answering);

impl Outlet for Control {
    type Settings = Option<Remote>;
    type Means = Arc<Identity>;

    const TASK: &str = "the control listener";
    const WHAT: &str = "the control listener is";

    fn at(settings: &Option<Remote>) -> Option<SocketAddr> {
        settings.as_ref().map(|remote| remote.listen)
    }

    async fn means(&self, settings: &Option<Remote>) -> anyhow::Result<Arc<Identity>> {
        let remote = settings.as_ref().ok_or_else(|| anyhow!("the control listener is off"))?;
        let identity = Identity::new(remote.clone());
        identity.check().await.map_err(|why| anyhow!("[control] {why}"))?;
        Ok(Arc::new(identity))
    }

    async fn trouble(identity: &Arc<Identity>) -> Option<String> {
        identity.trouble().await
    }

    async fn bind(&self, at: SocketAddr) -> anyhow::Result<TcpListener> {
        remote::bind(at).await
    }

    fn serve(
        &self,
        listener: TcpListener,
        _: &Option<Remote>,
        identity: Arc<Identity>,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        remote::serve(listener, identity, self.0.clone(), shutdown)
    }
}
