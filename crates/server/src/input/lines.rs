//! Lines of bounded length, with their numbers.

use std::io::{BufRead, ErrorKind};

use super::{InputError, Result, malformed};

/// Reads lines; takes off `\n` and `\r\n`.
pub struct Lines<R> {
    reader: R,
    bytes_max: usize,
    number: u64,
    buffer: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    /// The lines of a reader; one longer than `bytes_max` is malformed.
    pub fn new(reader: R, bytes_max: usize) -> Self {
        Lines {
            reader,
            bytes_max,
            number: 0,
            buffer: Vec::new(),
        }
    }

    /// The number of the line that was read last, from 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The next line; `None` at the end. One that is too long is passed over in pieces and
    /// reported: the one after it can be read.
    pub fn next(&mut self) -> Result<Option<&[u8]>> {
        self.buffer.clear();
        let mut too_long = false;
        let mut any = false;
        loop {
            let chunk = match self.reader.fill_buf() {
                Ok(chunk) => chunk,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(cause) => {
                    let line = self.number;
                    return Err(InputError::Unreadable { line, cause });
                }
            };
            if chunk.is_empty() {
                break;
            }
            any = true;
            let end = chunk.iter().position(|b| *b == b'\n');
            let piece = &chunk[..end.unwrap_or(chunk.len())];
            if self.buffer.len() + piece.len() > self.bytes_max {
                too_long = true;
            } else if !too_long {
                self.buffer.extend_from_slice(piece);
            }
            let used = end.map_or(chunk.len(), |end| end + 1);
            self.reader.consume(used);
            if end.is_some() {
                break;
            }
        }
        if !any {
            return Ok(None);
        }
        self.number += 1;
        if too_long {
            let what = format!("the line is longer than {} bytes", self.bytes_max);
            return malformed(self.number, what);
        }
        if self.buffer.ends_with(b"\r") {
            self.buffer.pop();
        }
        Ok(Some(&self.buffer))
    }
}
