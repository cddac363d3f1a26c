//! A text of any length that the server sends while another thread writes it, with only a few pieces in memory.

use std::{
    io::{self, Write},
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::{Body, Bytes};
use hyper::body::Frame;
use tokio::sync::mpsc;

/// The maximum number of pieces that wait to be sent.
const AHEAD: usize = 2;

/// A writer that passes a text on in pieces.
pub(crate) struct Pieces<F> {
    /// The maximum length at which the server sends the text as a whole, with a `content-length`.
    whole: usize,
    /// The function that receives the body, which the writer calls exactly once.
    begin: Option<F>,
    /// The text that was written before the writer passed on the body.
    kept: Vec<u8>,
    rest: Option<mpsc::Sender<Piece>>,
}

enum Piece {
    Text(Vec<u8>),
    /// The piece that marks the end of the text. Without this piece, the text is incomplete, because the writer of the
    /// text has failed.
    End,
}

impl<F: FnOnce(Body)> Pieces<F> {
    /// Makes a writer for a text. `begin` receives the body as soon as the text ends or exceeds `whole` bytes, so that
    /// the server can start sending.
    pub(crate) const fn new(whole: usize, begin: F) -> Self {
        Self { whole, begin: Some(begin), kept: Vec::new(), rest: None }
    }

    /// Adds a piece of text that is not the last one. The function waits until the channel has room; if the reader no
    /// longer exists, the function discards the piece.
    pub(crate) fn more(&mut self, text: impl Into<Vec<u8>>) {
        let text = text.into();
        if let Some(rest) = &self.rest {
            let _ = rest.blocking_send(Piece::Text(text));
            return;
        }
        self.kept.extend_from_slice(&text);
        if self.kept.len() > self.whole
            && let Some(begin) = self.begin.take()
        {
            let (rest, pieces) = mpsc::channel(AHEAD);
            begin(Body::new(Parts(pieces)));
            let _ = rest.blocking_send(Piece::Text(mem::take(&mut self.kept)));
            self.rest = Some(rest);
        }
    }

    /// Adds the last piece of text, and marks the end.
    pub(crate) fn end(mut self, text: impl Into<Vec<u8>>) {
        self.more(text);
        if let Some(begin) = self.begin {
            begin(self.kept.into());
        } else if let Some(rest) = self.rest {
            let _ = rest.blocking_send(Piece::End);
        }
    }
}

impl<F: FnOnce(Body)> Write for Pieces<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.more(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An HTTP body that consists of pieces.
struct Parts(mpsc::Receiver<Piece>);

impl hyper::body::Body for Parts {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Poll::Ready(match ready!(self.0.poll_recv(context)) {
            Some(Piece::Text(text)) => Some(Ok(Frame::data(text.into()))),
            Some(Piece::End) => None,
            None => Some(Err(io::ErrorKind::UnexpectedEof.into())),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use http_body_util::BodyExt as _;
    use hyper::body::Body as _;
    use tokio::sync::oneshot;

    use super::*;

    const WHOLE: usize = 1 << 20;

    /// The body of a text that `write` writes on a separate thread.
    async fn written(write: impl FnOnce(Pieces<Box<dyn FnOnce(Body) + Send>>) + Send + 'static) -> Body {
        let (sender, body) = oneshot::channel();
        let begin = Box::new(|body| sender.send(body).unwrap());
        thread::spawn(move || write(Pieces::new(WHOLE, begin)));
        body.await.unwrap()
    }

    #[tokio::test]
    async fn when_a_text_is_short_then_it_has_a_length_and_a_long_one_comes_in_pieces() {
        let short = written(|mut pieces| {
            pieces.more("not ");
            pieces.end("all");
        });
        assert_eq!(short.await.size_hint().exact(), Some(7));
        let long = written(|mut pieces| {
            for number in 0..100 {
                pieces.more(format!("{number}{}", " ".repeat(WHOLE / 50)));
            }
            pieces.end("end");
        });
        let long = long.await;
        assert_eq!(long.size_hint().exact(), None);
        let text = long.collect().await.unwrap().to_bytes();
        let words: Vec<&str> = std::str::from_utf8(&text).unwrap().split_whitespace().collect();
        assert_eq!([words[0], words[99], words[100]], ["0", "99", "end"]);
    }

    #[tokio::test]
    async fn when_a_writer_fails_then_its_text_is_not_taken_for_whole() {
        let broken = written(|mut pieces| pieces.more("the first of two".repeat(WHOLE / 10))).await;
        assert!(broken.collect().await.is_err());
    }

    #[tokio::test]
    async fn when_a_reader_is_gone_then_the_writer_does_not_wait() {
        let (done, ended) = oneshot::channel();
        let body = written(|mut pieces| {
            (0..100).for_each(|_| pieces.more("more".repeat(WHOLE / 100)));
            pieces.end("");
            done.send(()).unwrap();
        });
        drop(body.await);
        ended.await.unwrap();
    }
}
