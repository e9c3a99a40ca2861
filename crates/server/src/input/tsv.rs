//! TSV: a key, a TAB, a value. No escapes: the value goes to the end of the line. Empty lines are
//! passed over.

use std::io::BufRead;

use bytes::Bytes;

use super::lines::Lines;
use super::{Record, Result, malformed};

/// The next record.
pub fn read(lines: &mut Lines<impl BufRead>) -> Result<Option<Record>> {
    loop {
        let number = lines.number() + 1;
        let Some(line) = lines.next()? else {
            return Ok(None);
        };
        if line.is_empty() {
            continue;
        }
        let Some(tab) = line.iter().position(|b| *b == b'\t') else {
            return malformed(number, "there is no TAB between key and value");
        };
        if tab == 0 {
            return malformed(number, "the key before the TAB is empty");
        }
        return Ok(Some(Record {
            key: Bytes::copy_from_slice(&line[..tab]),
            value: Bytes::copy_from_slice(&line[tab + 1..]),
            line: number,
        }));
    }
}
