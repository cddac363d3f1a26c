//! A copy of all objects of a kind in the API server. The program lists the objects once a minute, and watches them
//! between two lists.
//!
//! A watch need not be reliable, because the next list corrects changes that the watch has missed or reported twice.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt as _;
use http::Request;
use k8s_openapi::{
    api::core::v1::{Node, Service},
    apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta},
};
use kube::core::WatchEvent;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout_at},
};

use super::{Answer, Cluster, Failure, trouble::Trouble};
use crate::{metrics::Metrics, slices::EndpointSlice};

/// The time after which the program lists the objects again.
const FRESH: Duration = Duration::from_secs(60);

/// The pause after the first failure. Each further failure doubles the pause, up to a maximum.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// The maximum number of objects in one answer of the API server.
const PAGE: usize = 500;

pub trait Object: Clone + DeserializeOwned + Send + Sync + 'static {
    /// The API paths of the kind of object, with the newest version first.
    const PATHS: &'static [&'static str];

    /// The namespace, name and version of the object.
    fn metadata(&self) -> &ObjectMeta;
}

impl Object for Service {
    const PATHS: &'static [&'static str] = &["/api/v1/services"];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl Object for Node {
    const PATHS: &'static [&'static str] = &["/api/v1/nodes"];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl Object for EndpointSlice {
    const PATHS: &'static [&'static str] =
        &["/apis/discovery.k8s.io/v1/endpointslices", "/apis/discovery.k8s.io/v1beta1/endpointslices"];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}

/// A copy of all objects of a kind.
#[derive(Debug)]
pub struct Mirror<T> {
    objects: Mutex<Option<BTreeMap<String, T>>>,
}

impl<T> Default for Mirror<T> {
    fn default() -> Self {
        Self { objects: Mutex::new(None) }
    }
}

#[derive(Deserialize)]
struct List<T> {
    metadata: ListMeta,
    #[serde(default = "Vec::new")]
    items: Vec<T>,
}

impl<T: Object> Mirror<T> {
    /// Returns the objects in the copy; `None` if the program has not listed the objects yet.
    #[must_use]
    pub fn objects(&self) -> Option<Vec<T>> {
        let objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        objects.as_ref().map(|objects| objects.values().cloned().collect())
    }

    fn replace(&self, items: Vec<T>) {
        let objects = items.into_iter().map(|object| (key(object.metadata()), object)).collect();
        *self.objects.lock().unwrap_or_else(PoisonError::into_inner) = Some(objects);
    }

    fn change(&self, object: T, is_there: bool) {
        let key = key(object.metadata());
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        let objects = objects.get_or_insert_default();
        if is_there {
            objects.insert(key, object)
        } else {
            objects.remove(&key)
        };
    }

    /// Keeps the copy up to date without end, and notifies `wake` of each change.
    pub async fn follow(self: Arc<Self>, cluster: Cluster, wake: Arc<Notify>, metrics: Arc<Metrics>) {
        let mut pause = PAUSE;
        let mut trouble = Trouble::new(T::PATHS[0]);
        loop {
            match self.list(&cluster).await {
                Ok((path, version)) => {
                    pause = PAUSE;
                    trouble.is_over();
                    metrics.listed();
                    wake.notify_one();
                    self.watch(&cluster, path, version, &wake).await;
                }
                Err(failure) => {
                    metrics.failed("cluster");
                    trouble.say(&failure, "what was known stays in force");
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Lists all objects of the kind. The function returns the API path of the objects, and the version of the list.
    async fn list(&self, cluster: &Cluster) -> Answer<(&'static str, String)> {
        let mut last = Failure::NotFound("no path".to_owned());
        for path in T::PATHS {
            match pages::<T>(cluster, path).await {
                Ok((items, version)) => {
                    self.replace(items);
                    return Ok((path, version));
                }
                Err(failure @ Failure::NotFound(_)) => last = failure,
                Err(failure) => return Err(failure),
            }
        }
        Err(last)
    }

    /// Watches the objects until the next list is due, or until the API server no longer has the events after
    /// `version`.
    async fn watch(&self, cluster: &Cluster, path: &str, mut version: String, wake: &Notify) {
        let end = Instant::now() + FRESH;
        while Instant::now() < end {
            let seconds = end.saturating_duration_since(Instant::now()).as_secs().max(1);
            let uri = format!(
                "{path}?watch=true&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds={seconds}"
            );
            let Ok(request) = Request::get(uri).body(Vec::new()) else { return };
            let stream = match timeout_at(end, cluster.client.request_events::<T>(request)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(_)) => return sleep(PAUSE).await,
                Err(_) => return,
            };
            let mut events = std::pin::pin!(stream);
            loop {
                let event = match timeout_at(end, events.next()).await {
                    Ok(Some(Ok(event))) => event,
                    // The connection of the watch broke, and the next watch begins where this one ended.
                    Ok(Some(Err(_)) | None) => break,
                    Err(_) => return,
                };
                match self.take(event) {
                    Some(newer) => version = newer,
                    None => return,
                }
                wake.notify_one();
            }
            sleep(PAUSE).await;
        }
    }

    /// Applies an event to the copy, and returns the version after the event. `None` if the program must list all
    /// objects again.
    fn take(&self, event: WatchEvent<T>) -> Option<String> {
        let (object, is_there) = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, true),
            WatchEvent::Deleted(object) => (object, false),
            WatchEvent::Bookmark(bookmark) => return Some(bookmark.metadata.resource_version),
            WatchEvent::Error(_) => return None,
        };
        let version = object.metadata().resource_version.clone();
        self.change(object, is_there);
        version
    }
}

async fn pages<T: Object>(cluster: &Cluster, path: &str) -> Answer<(Vec<T>, String)> {
    let (mut items, mut rest) = (Vec::new(), String::new());
    loop {
        let page: List<T> = cluster.get(&format!("{path}?limit={PAGE}{rest}")).await?;
        items.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => rest = format!("&continue={token}"),
            None => return Ok((items, page.metadata.resource_version.unwrap_or_default())),
        }
    }
}

fn key(metadata: &ObjectMeta) -> String {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    format!("{}/{}", text(&metadata.namespace), text(&metadata.name))
}
