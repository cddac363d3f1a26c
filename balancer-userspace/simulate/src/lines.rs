//! Reads the lines of a log one after the other, without copying each line. The log may be a gzip file.

use std::io::{self, BufReader, Chain, Cursor, Read};

use flate2::bufread::MultiGzDecoder;

/// The size in bytes of the buffer, which is also the maximum length of a line.
const BUFFER: usize = 1 << 20;

/// A source of the lines in a log.
pub struct Lines<R> {
    from: Source<R>,
    buffer: Vec<u8>,
    /// The range of the buffer that contains data which the reader has not returned yet.
    filled: std::ops::Range<usize>,
    ended: bool,
    /// Whether the reader is skipping the end of a line that was too long.
    skips: bool,
}

enum Source<R> {
    Plain(Chain<Cursor<Vec<u8>>, R>),
    Gzip(MultiGzDecoder<BufReader<Chain<Cursor<Vec<u8>>, R>>>),
}

impl<R> std::fmt::Debug for Lines<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines").field("filled", &self.filled).finish_non_exhaustive()
    }
}

/// A line of a log, or the report that a line was too long.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A line without its line end.
    Line(&'a [u8]),
    /// A line of more than 1 MiB, which the reader skips.
    TooLong,
}

impl<R: Read> Lines<R> {
    /// Prepares to read the lines of `from`.
    ///
    /// # Errors
    /// Fails if `from` cannot be read.
    pub fn new(mut from: R) -> io::Result<Self> {
        let mut start = Vec::new();
        (&mut from).take(2).read_to_end(&mut start)?;
        let is_gzip = start == [0x1f, 0x8b];
        let all = Cursor::new(start).chain(from);
        let from = if is_gzip {
            Source::Gzip(MultiGzDecoder::new(BufReader::with_capacity(BUFFER, all)))
        } else {
            Source::Plain(all)
        };
        Ok(Self { from, buffer: vec![0; BUFFER], filled: 0..0, ended: false, skips: false })
    }

    /// Returns up to `count` lines from the first 1 MiB of the log. [`each`](Self::each) returns these lines again.
    ///
    /// # Errors
    /// Fails if the lines cannot be read.
    pub fn peek(&mut self, count: usize) -> io::Result<Vec<Vec<u8>>> {
        let mut lines = 0;
        while !self.ended && self.filled.end < BUFFER && lines < count {
            lines += memchr::memchr_iter(b'\n', self.fill()?).count();
        }
        let known = self.buffer.get(self.filled.clone()).unwrap_or_default();
        Ok(known.split(|&byte| byte == b'\n').take(count).map(|line| trimmed(line).to_vec()).collect())
    }

    /// Calls `take` for each line that is not empty.
    ///
    /// # Errors
    /// Fails if the log cannot be read, or if it is invalid gzip.
    pub fn each(mut self, mut take: impl FnMut(Piece<'_>)) -> io::Result<()> {
        loop {
            let known = self.buffer.get(self.filled.clone()).unwrap_or_default();
            let mut begins = 0;
            for end in memchr::memchr_iter(b'\n', known) {
                let line = trimmed(known.get(begins..end).unwrap_or_default());
                begins = end + 1;
                if !std::mem::take(&mut self.skips) && !line.is_empty() {
                    take(Piece::Line(line));
                }
            }
            let rest = known.get(begins..).unwrap_or_default();
            if self.ended {
                let line = trimmed(rest);
                if !self.skips && !line.is_empty() {
                    take(Piece::Line(line));
                }
                return Ok(());
            }
            self.filled = self.filled.start + begins..self.filled.end;
            if self.filled.len() == BUFFER {
                if !std::mem::replace(&mut self.skips, true) {
                    take(Piece::TooLong);
                }
                self.filled = 0..0;
            }
            self.fill()?;
        }
    }

    /// Moves the remaining data to the front of the buffer, and reads more data; returns the new data.
    fn fill(&mut self) -> io::Result<&[u8]> {
        if self.filled.start > 0 {
            self.buffer.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
        }
        let from = self.filled.end;
        let room = self.buffer.get_mut(from..).unwrap_or_default();
        let count = loop {
            match self.from.read(room) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        self.ended = count == 0 && !room.is_empty();
        self.filled.end += count;
        Ok(self.buffer.get(from..from + count).unwrap_or_default())
    }
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(from) => from.read(into),
            Self::Gzip(from) => from.read(into),
        }
    }
}

fn trimmed(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;

    use super::*;

    /// A source that returns only a few bytes at a time.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(into.len());
            (&mut self.0).take(count as u64).read(into)
        }
    }

    fn read(from: impl Read) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        Lines::new(from)
            .unwrap()
            .each(|piece| {
                all.push(match piece {
                    Piece::Line(line) => line.to_vec(),
                    Piece::TooLong => b"too long".to_vec(),
                })
            })
            .unwrap();
        all
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    proptest! {
        #[test]
        fn when_a_text_is_read_in_pieces_then_its_lines_are_returned(text in "[ab\r\n]{0,200}", step in 1usize..20, peeked in 0usize..10) {
            let expected: Vec<&str> = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).collect();
            let mut lines = Lines::new(Slow(text.as_bytes(), step)).unwrap();
            let first = lines.peek(peeked).unwrap();
            prop_assert_eq!(first.len(), peeked.min(expected.len()).min(first.len()));
            let is_so = first.iter().zip(&expected).take(peeked.saturating_sub(1)).all(|(line, expected)| line == expected.as_bytes());
            prop_assert!(is_so);
            let mut all = Vec::new();
            lines.each(|piece| if let Piece::Line(line) = piece { all.push(line.to_vec()) }).unwrap();
            let expected: Vec<Vec<u8>> =
                expected.iter().filter(|line| !line.is_empty()).map(|line| line.as_bytes().to_vec()).collect();
            prop_assert_eq!(all, expected);
        }
    }

    #[test]
    fn when_a_log_begins_with_the_magic_bytes_of_gzip_then_all_members_are_read() {
        let all = [gzip(b"one\ntw"), gzip(b"o\nthree")].concat();
        assert_eq!(read(all.as_slice()), [b"one".to_vec(), b"two".to_vec(), b"three".to_vec()]);
        let cut = Lines::new(&all[..all.len() - 9]).unwrap().each(|_| {});
        assert!(cut.is_err(), "a file that ends early is told of");
    }

    #[test]
    fn when_a_line_is_too_long_then_it_is_skipped() {
        let text = [b"one\n".to_vec(), vec![b'x'; 3 * BUFFER], b"\ntwo\n".to_vec()].concat();
        assert_eq!(read(text.as_slice()), [b"one".to_vec(), b"too long".to_vec(), b"two".to_vec()]);
    }
}
