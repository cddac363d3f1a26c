//! Long answers, which the server starts to send before they are complete.

use std::io::BufWriter;

use axum::{
    http::header::CONTENT_TYPE,
    response::{IntoResponse as _, Response},
};
use serde::Serialize;
use tokio::{sync::oneshot, task::spawn_blocking};

use super::failure::Failure;
use crate::pieces::Pieces;

/// The server sends an answer of up to this size, in bytes, as a whole and with a `content-length`.
const WHOLE: usize = 1 << 20;
/// The number of bytes in each piece of a long answer.
const PIECE: usize = 64 << 10;

/// Writes `answer` as JSON, with only a few pieces of it in memory at a time.
pub(super) async fn written(answer: impl Serialize + Send + 'static) -> Result<Response, Failure> {
    let (begin, body) = oneshot::channel();
    spawn_blocking(move || {
        // Sending fails if the peer has closed the connection.
        let pieces = Pieces::new(WHOLE, |body| drop(begin.send(body)));
        let mut text = BufWriter::with_capacity(PIECE, pieces);
        // If the answer is incomplete, the client notices that the end of the body is missing.
        if serde_json::to_writer(&mut text, &answer).is_ok()
            && let Ok(pieces) = text.into_inner()
        {
            pieces.end("");
        }
    });
    let body = body.await.map_err(|_| Failure::stopping())?;
    Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
}

#[cfg(test)]
mod tests {
    use balancer_api::one_by_one::OneByOne;
    use http_body_util::BodyExt as _;
    use hyper::body::Body as _;

    use super::*;

    #[tokio::test]
    async fn when_a_list_is_written_in_parts_then_it_equals_the_whole() {
        for (items, is_long) in [(0, false), (3, false), (200_000, true)] {
            let list = (0..items).map(|number| format!("number {number}"));
            let answer = written(OneByOne::new(list.clone())).await.unwrap();
            assert_eq!(answer.headers().get(CONTENT_TYPE).unwrap(), "application/json");
            assert_eq!(answer.body().size_hint().exact().is_none(), is_long);
            let text = answer.into_body().collect().await.unwrap().to_bytes();
            assert!(text == serde_json::to_vec(&list.collect::<Vec<_>>()).unwrap(), "{items} items");
        }
    }
}
