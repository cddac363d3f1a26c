//! The subset of HTTP/1.1 that a test server needs.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, Read as _, Write},
};

use serde_json::Value;

/// The maximal size of a body, in bytes.
const LARGEST: usize = 16 << 20;

/// A request that a client has sent.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method of the request, in capital letters.
    pub method: String,
    /// The path of the request, without the query.
    pub path: String,
    /// The parameters of the query.
    pub query: BTreeMap<String, String>,
    /// The parsed JSON body; `null` if there is no body, or if the body is not JSON.
    pub body: Value,
}

/// Reads a request; returns `None` at the end of the connection.
///
/// # Errors
/// Fails if the request is incomplete or too large.
pub fn read(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim_end().split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
    }
    if length > LARGEST {
        return Err(io::Error::other("the body is too large"));
    }
    let mut body = vec![0; length];
    reader.take(length as u64).read_exact(&mut body)?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let query = query.split('&').filter_map(|pair| pair.split_once('='));
    Ok(Some(Request {
        method,
        path: path.to_owned(),
        query: query.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        body: serde_json::from_slice(&body).unwrap_or_default(),
    }))
}

/// Answers a request with JSON.
///
/// # Errors
/// Fails if the client does not read the answer.
pub fn answer(stream: &mut impl Write, status: u16, body: &Value) -> io::Result<()> {
    let body = body.to_string();
    let length = body.len();
    let head = format!("HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(format!("{head}{body}").as_bytes())
}

/// Begins a chunked answer.
///
/// # Errors
/// Fails in the same cases as [`answer`].
pub fn begin_chunks(stream: &mut impl Write) -> io::Result<()> {
    stream.write_all(b"HTTP/1.1 200 x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
}

/// Sends a chunk of a chunked answer.
///
/// # Errors
/// Fails in the same cases as [`answer`].
pub fn chunk(stream: &mut impl Write, text: &str) -> io::Result<()> {
    stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes())
}

/// Ends a chunked answer.
///
/// # Errors
/// Fails in the same cases as [`answer`].
pub fn end_chunks(stream: &mut impl Write) -> io::Result<()> {
    stream.write_all(b"0\r\n\r\n")
}
