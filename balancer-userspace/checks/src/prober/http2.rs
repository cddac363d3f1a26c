//! Sends one request over HTTP/2, without a separate task for the connection.

use std::{
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use balancer_control::io::CheckOutcome;
use bytes::Bytes;
use futures_util::future::{self, Either};
use h2::{RecvStream, client};
use hyper::{
    Request, Response,
    body::{Body, Frame},
};
use tokio::io::{AsyncRead, AsyncWrite};

use super::fault::reason;

/// The ALPN name of HTTP/2.
pub(super) const ALPN: &[u8] = b"h2";
/// The maximum total length in bytes of the headers of an answer.
const HEADERS: u32 = 64 * 1024;

/// Sends `request` over `stream`, followed by `message` if given, and passes the answer to `judge`.
///
/// # Errors
/// Fails if the answer is incomplete or violates HTTP/2.
pub(super) async fn exchange<Judged: Future<Output = Result<CheckOutcome, h2::Error>>>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<()>,
    message: Option<Bytes>,
    judge: impl FnOnce(Response<RecvStream>) -> Judged,
) -> Result<CheckOutcome, h2::Error> {
    let mut settings = client::Builder::new();
    settings.enable_push(false).max_header_list_size(HEADERS);
    let (sender, connection) = settings.handshake(stream).await?;
    let judged = pin!(async {
        let mut sender = sender.ready().await?;
        let (answer, mut sending) = sender.send_request(request, message.is_none())?;
        if let Some(message) = message {
            sending.send_data(message, true)?;
        }
        judge(answer.await?).await
    });
    // The bytes of the answer arrive only while the connection is polled. If the connection ends, the answer fails as
    // well.
    match future::select(judged, pin!(connection)).await {
        Either::Left((outcome, _)) => outcome,
        Either::Right((_, judged)) => judged.await,
    }
}

/// The body of an answer.
pub(super) struct Received(pub(super) RecvStream);

impl Body for Received {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let Some(data) = ready!(self.0.poll_data(context)) else { return Poll::Ready(None) };
        Poll::Ready(Some(data.and_then(|data| {
            self.0.flow_control().release_capacity(data.len())?;
            Ok(Frame::data(data))
        })))
    }
}

/// The outcome of a check whose answer is incomplete: an invalid answer or a refusal is a soft failure, and no answer
/// is a hard failure.
pub(super) fn failure(scheme: &str, error: &h2::Error) -> CheckOutcome {
    match (error.get_io(), error.reason()) {
        // The TLS library reports its own errors in this form.
        (Some(error), _) if error.kind() == io::ErrorKind::InvalidData => CheckOutcome::Soft(format!("tls: {error}")),
        // The HTTP/2 library reports the end of the connection in this form.
        (Some(error), _) if error.kind() == io::ErrorKind::BrokenPipe => {
            CheckOutcome::Hard(format!("{scheme}: connection closed"))
        }
        (Some(error), _) => CheckOutcome::Hard(format!("{scheme}: connection {}", reason(error))),
        (None, Some(why)) if error.is_remote() => {
            let what = if error.is_go_away() { "the connection" } else { "the request" };
            CheckOutcome::Soft(format!("{scheme}: the server ended {what} ({why:?})"))
        }
        (None, Some(_)) => CheckOutcome::Soft(format!("{scheme}: not an HTTP/2 answer")),
        (None, None) => CheckOutcome::Hard(format!("{scheme}: {error}")),
    }
}
