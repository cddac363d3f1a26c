//! Requests to the cluster's API server, and the failures of requests.

pub mod mirror;
pub mod trouble;
pub mod writes;

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use http::Request;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

/// The maximum time to wait for an answer of the API server.
const PATIENCE: Duration = Duration::from_secs(10);

/// A client of the API server of a cluster.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
}

/// The reason why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The object does not exist, or the API server does not know its kind.
    #[error("{0}")]
    NotFound(String),
    /// Another client has changed the object in the meantime.
    #[error("{0}")]
    Conflict(String),
    /// The API server no longer has the requested version.
    #[error("{0}")]
    Gone(String),
    /// The API server refused the request for another reason.
    #[error("{0}")]
    Refused(String),
    /// The API server did not answer.
    #[error("the API server does not answer: {0}")]
    Away(String),
}

/// The result of a request.
pub type Answer<T> = Result<T, Failure>;

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        if let kube::Error::Api(status) = &error {
            return Self::of_status(status.code, &status.message);
        }
        Self::Away(chain(&error))
    }
}

impl Failure {
    fn of_status(code: u16, message: &str) -> Self {
        let message = format!("the API server says {code}: {message}");
        match code {
            // Another object has the name of the expected object.
            422 if message.contains("metadata.uid") => Self::Conflict(message),
            404 => Self::NotFound(message),
            409 => Self::Conflict(message),
            410 => Self::Gone(message),
            500.. => Self::Away(message),
            _ => Self::Refused(message),
        }
    }
}

impl Cluster {
    /// Makes a client for the cluster of a kubeconfig file, or for the cluster in which this program runs.
    ///
    /// # Errors
    /// Fails if the kubeconfig file or the service account cannot be read.
    pub async fn new(kubeconfig: Option<&Path>) -> anyhow::Result<Self> {
        let mut config = match kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path).with_context(|| format!("{} cannot be read", path.display()))?;
                Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                    .await
                    .with_context(|| format!("{} names no cluster that can be used", path.display()))?
            }
            None => Config::incluster()
                .context("there is no service account here; outside a cluster give --kubeconfig FILE")?,
        };
        config.connect_timeout = Some(PATIENCE / 2);
        // The client library must not retry, because this program retries by itself.
        config.default_retry = false;
        Ok(Self { client: Client::try_from(config).context("the API server cannot be asked")? })
    }

    /// Sends a request to the API server.
    ///
    /// # Errors
    /// Fails if the API server refuses the request, or does not answer.
    pub async fn send<T: DeserializeOwned>(
        &self,
        method: http::Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Answer<T> {
        let kind = if method == http::Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::CONTENT_TYPE, kind)
            .body(body.map(|body| body.to_string().into_bytes()).unwrap_or_default())
            .map_err(|error| Failure::Refused(error.to_string()))?;
        match timeout(PATIENCE, self.client.request(request)).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(Failure::Away(format!("none within {} s", PATIENCE.as_secs()))),
        }
    }

    /// Reads the object or list at a path of the API.
    ///
    /// # Errors
    /// See [`send`](Self::send).
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Answer<T> {
        self.send(http::Method::GET, path, None).await
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}
