//! The beginning of the body of an HTTP answer.

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Body;

/// The maximum number of bytes of a body that a check examines.
pub(super) const BODY: usize = 64 * 1024;

/// Whether `text` occurs in the first [`BODY`] bytes of `body`.
pub(super) async fn contains<B: Body<Data = Bytes> + Unpin>(mut body: B, text: &[u8]) -> Result<bool, B::Error> {
    let mut read: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        // A match may begin at the end of the bytes that the loop has already searched.
        let from = read.len().saturating_sub(text.len() - 1);
        read.extend_from_slice(&data[..data.len().min(BODY - read.len())]);
        if read[from..].windows(text.len()).any(|window| window == text) {
            return Ok(true);
        }
        if read.len() == BODY {
            break;
        }
    }
    Ok(false)
}

/// Reads the first [`BODY`] bytes of `body`.
pub(super) async fn beginning<B: Body<Data = Bytes> + Unpin>(mut body: B) -> Result<Vec<u8>, B::Error> {
    let mut read: Vec<u8> = Vec::new();
    while read.len() < BODY
        && let Some(frame) = body.frame().await
    {
        let Ok(data) = frame?.into_data() else { continue };
        read.extend_from_slice(&data[..data.len().min(BODY - read.len())]);
    }
    Ok(read)
}
