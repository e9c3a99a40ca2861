//! Tokens: what a session has written, so that a later read on a replica sees it.
//!
//! A position in PostgreSQL's log means something only within its system and timeline: a fail-over that
//! loses the end of the log begins a new timeline, whose numbers go on from before what was lost. So a
//! token carries all three, and is never compared over the border between two timelines.

use std::fmt;
use std::str::FromStr;

use crate::{Error, ErrorKind, Result};

/// A place in a PostgreSQL server's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// The system identifier: another one is another database cluster.
    pub system: u64,
    /// Raised by every promotion.
    pub timeline: u32,
    /// Bytes of log before it.
    pub lsn: u64,
}

impl Position {
    /// Whether what has replayed this far holds all that `other` stands for. False if it can't be said.
    pub fn reaches(&self, other: &Position) -> bool {
        self.history() == other.history() && self.lsn >= other.lsn
    }

    fn history(&self) -> (u64, u32) {
        (self.system, self.timeline)
    }
}

/// What a session has written. Its string form outlives the process: `pg1.<system>.<timeline>.<lsn>`, the
/// numbers in hex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token {
    position: Position,
}

const FORMAT: &str = "pg1";

impl Token {
    /// A token of a position.
    pub fn new(position: Position) -> Token {
        Token { position }
    }

    /// What a replica must have replayed to hold what the token stands for.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The one of two that stands for more. Of two histories it is `newer`.
    pub(crate) fn raise(older: Option<Token>, newer: Token) -> Token {
        match older {
            Some(older) if older.position.reaches(&newer.position) => older,
            _ => newer,
        }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Position {
            system,
            timeline,
            lsn,
        } = self.position;
        write!(f, "{FORMAT}.{system:016x}.{timeline:x}.{lsn:x}")
    }
}

impl FromStr for Token {
    type Err = Error;

    /// Reads the string form; anything else is [`ErrorKind::Invalid`], saying what is wrong with it.
    fn from_str(text: &str) -> Result<Token> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [format, system, timeline, lsn] = parts[..] else {
            return Err(invalid(format!(
                "a token has 4 parts with dots between, this one has {}",
                parts.len()
            )));
        };
        if format != FORMAT {
            let shown: String = format.chars().take(16).collect();
            return Err(invalid(format!("token format {shown:?} is not known here")));
        }
        let timeline = number(timeline, "timeline")?;
        let timeline = u32::try_from(timeline)
            .map_err(|_| invalid("the token's timeline is past 32 bits".into()))?;
        Ok(Token::new(Position {
            system: number(system, "system")?,
            timeline,
            lsn: number(lsn, "position")?,
        }))
    }
}

fn number(text: &str, what: &str) -> Result<u64> {
    // `from_str_radix` takes a sign; a token has none.
    if text.is_empty() || text.len() > 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(invalid(format!(
            "the token's {what} is not a number in hex of up to 64 bits"
        )));
    }
    u64::from_str_radix(text, 16).map_err(|error| invalid(format!("the token's {what}: {error}")))
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::Invalid, message)
}

/// Where the last record before an insert position ends.
///
/// The position at which the next record will be inserted lies, at the beginning of a page, behind that
/// page's header: 24 bytes, or 40 on the first page of a segment. A replica that has replayed everything
/// stands before the header, and an idle primary would never be reached.
#[cfg(feature = "postgres")]
pub(crate) fn record_end(insert: u64, page_bytes: u64, segment_bytes: u64) -> u64 {
    const SHORT: u64 = 24;
    const LONG: u64 = 40;
    if page_bytes == 0 || segment_bytes == 0 {
        return insert;
    }
    if insert % segment_bytes == LONG {
        insert - LONG
    } else if insert % page_bytes == SHORT && insert % segment_bytes != SHORT {
        insert - SHORT
    } else {
        insert
    }
}

/// Reads a position as PostgreSQL writes it, `16/B374D848`.
#[cfg(feature = "postgres")]
pub(crate) fn parse_lsn(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    let high = u32::from_str_radix(high, 16).ok()?;
    let low = u32::from_str_radix(low, 16).ok()?;
    Some((u64::from(high) << 32) | u64::from(low))
}
