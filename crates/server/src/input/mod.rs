//! Records from files: Debian package indexes, JSON lines and TSV; plain, gzip, xz or lz4.
//!
//! ```text
//! bytes ──source (decompress)──▶ lines ──format──▶ records, or what is wrong at which line
//! ```
//!
//! Everything streams: what is held in memory is one line, or one stanza, of bounded size. A
//! record that is malformed does not end the stream: the caller decides whether to go on. A file
//! that cannot be read further (cut off, damaged) does.

use std::fmt;
use std::io::{self, BufRead, Read};
use std::path::Path;

use bytes::Bytes;
use quorate_kv::Limits;

mod debian;
mod format;
mod json_lines;
mod lines;
mod source;
mod tsv;

pub use format::Format;
pub use source::{Position, Source};

use lines::Lines;

/// The longest line, and the largest stanza: what no server takes as a value.
const RECORD_BYTES_MAX: usize = Limits::VALUE_BYTES_CAP + Limits::KEY_BYTES_CAP;

/// What is looked at to tell a format.
const HEAD_BYTES: u64 = 64 << 10;

/// One record to store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its key.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
    /// The line it begins at, from 1.
    pub line: u64,
}

/// What is wrong with an input.
#[derive(Debug)]
pub enum InputError {
    /// One record makes no sense; the ones after it may.
    Malformed {
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
    /// The input cannot be read further.
    Unreadable {
        /// The last line that could be read.
        line: u64,
        /// Why.
        cause: io::Error,
    },
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InputError::Malformed { line, what } => write!(f, "line {line}: {what}"),
            InputError::Unreadable { line, cause } => {
                write!(f, "the input cannot be read behind line {line}: {cause}")
            }
        }
    }
}

impl std::error::Error for InputError {}

/// Shorthand for results of parsers.
pub type Result<T> = std::result::Result<T, InputError>;

/// The records of one input, in order.
pub struct Records {
    lines: Lines<Box<dyn BufRead + Send>>,
    format: Format,
    json_key: String,
    ended: bool,
}

impl Records {
    /// The records of a source. Without a format it is told by the name, else by the content.
    /// `json_key` is the field of JSON lines that holds the key.
    ///
    /// # Errors
    /// When the format cannot be told, or the source cannot be read.
    pub fn open(
        source: Source,
        format: Option<Format>,
        json_key: Option<&str>,
    ) -> anyhow::Result<Records> {
        let Source { name, mut reader } = source;
        let format = match format.or_else(|| Format::of_name(Path::new(&name))) {
            Some(format) => format,
            None => {
                let mut head = Vec::new();
                reader.by_ref().take(HEAD_BYTES).read_to_end(&mut head)?;
                let told = Format::of_content(&head);
                reader = Box::new(io::Cursor::new(head).chain(reader));
                told.ok_or_else(|| {
                    anyhow::anyhow!("{name}: the format is not clear: say --format deb|jsonl|tsv")
                })?
            }
        };
        if format == Format::JsonLines && json_key.is_none() {
            anyhow::bail!("{name}: JSON lines need --key FIELD, the field that holds the key");
        }
        Ok(Records {
            lines: Lines::new(reader, RECORD_BYTES_MAX),
            format,
            json_key: json_key.unwrap_or_default().to_owned(),
            ended: false,
        })
    }

    fn read(&mut self) -> Result<Option<Record>> {
        match self.format {
            Format::Debian => debian::read(&mut self.lines),
            Format::JsonLines => json_lines::read(&mut self.lines, &self.json_key),
            Format::Tsv => tsv::read(&mut self.lines),
        }
    }
}

impl Iterator for Records {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Result<Record>> {
        if self.ended {
            return None;
        }
        let record = self.read();
        self.ended = matches!(record, Ok(None) | Err(InputError::Unreadable { .. }));
        record.transpose()
    }
}

fn malformed<T>(line: u64, what: impl Into<String>) -> Result<T> {
    Err(InputError::Malformed {
        line,
        what: what.into(),
    })
}

#[cfg(test)]
mod tests;
