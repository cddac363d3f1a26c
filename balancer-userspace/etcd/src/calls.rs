//! Calls to etcd's API over one connection to a server.

use futures_util::stream;
use http::uri::PathAndQuery;
use prost::Message;
use tokio::sync::mpsc;
use tonic::{Request, Status, Streaming, client::Grpc, metadata::MetadataValue, transport::Channel};
use tonic_prost::ProstCodec;

use crate::message::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseRevokeRequest,
    LeaseRevokeResponse, RangeRequest, RangeResponse, StatusRequest, StatusResponse, TxnRequest, TxnResponse,
    WatchRequest, WatchResponse,
};

/// The maximum size in bytes of an answer that this driver reads. A transaction has at most 1.5 MiB, but a watch that
/// lags behind may receive up to a thousand events in one answer.
const LARGEST_ANSWER: usize = 64 << 20;

/// A connection to an etcd server. All clones share the same connection.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    grpc: Grpc<Channel>,
}

impl Calls {
    pub(crate) fn new(channel: Channel) -> Self {
        Self { grpc: Grpc::new(channel).max_decoding_message_size(LARGEST_ANSWER) }
    }

    pub(crate) async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        self.unary("/etcdserverpb.KV/Range", request).await
    }

    pub(crate) async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Status> {
        self.unary("/etcdserverpb.KV/Txn", request).await
    }

    pub(crate) async fn grant(&self, ttl: i64) -> Result<LeaseGrantResponse, Status> {
        self.unary("/etcdserverpb.Lease/LeaseGrant", LeaseGrantRequest { ttl }).await
    }

    pub(crate) async fn revoke(&self, id: i64) -> Result<LeaseRevokeResponse, Status> {
        self.unary("/etcdserverpb.Lease/LeaseRevoke", LeaseRevokeRequest { id }).await
    }

    pub(crate) async fn status(&self) -> Result<StatusResponse, Status> {
        self.unary("/etcdserverpb.Maintenance/Status", StatusRequest {}).await
    }

    /// Renews a lease, by a stream with one request and one answer. The function returns the new time to live of the
    /// lease in seconds; 0 if the lease does not exist.
    pub(crate) async fn keep_alive(&self, id: i64) -> Result<i64, Status> {
        let requests = stream::iter([LeaseKeepAliveRequest { id }]);
        let mut answers: Streaming<LeaseKeepAliveResponse> =
            self.streaming("/etcdserverpb.Lease/LeaseKeepAlive", requests).await?;
        let answer = answers.message().await?;
        Ok(answer.ok_or_else(|| Status::unavailable("no answer to a keep-alive"))?.ttl)
    }

    /// Opens a stream for watches. The stream ends when the caller drops the sender of requests.
    pub(crate) async fn watch(
        &self,
        requests: mpsc::Receiver<WatchRequest>,
    ) -> Result<Streaming<WatchResponse>, Status> {
        let requests = stream::unfold(requests, async |mut requests| {
            let request = requests.recv().await?;
            Some((request, requests))
        });
        self.streaming("/etcdserverpb.Watch/Watch", requests).await
    }

    async fn unary<Q, A>(&self, path: &'static str, request: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = self.ready().await?;
        let answer = grpc.unary(asked(request), PathAndQuery::from_static(path), ProstCodec::default()).await?;
        Ok(answer.into_inner())
    }

    async fn streaming<Q, A>(
        &self,
        path: &'static str,
        requests: impl stream::Stream<Item = Q> + Send + 'static,
    ) -> Result<Streaming<A>, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = self.ready().await?;
        let answers = grpc.streaming(asked(requests), PathAndQuery::from_static(path), ProstCodec::default()).await?;
        Ok(answers.into_inner())
    }

    async fn ready(&self) -> Result<Grpc<Channel>, Status> {
        let mut grpc = self.grpc.clone();
        grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
        Ok(grpc)
    }
}

/// Marks a request: a server without a leader refuses a marked request, or ends the stream of a marked request.
fn asked<T>(content: T) -> Request<T> {
    let mut request = Request::new(content);
    request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
    request
}
