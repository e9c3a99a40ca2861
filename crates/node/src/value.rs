//! What is stored under a data key.
//!
//! ```text
//! value = format u8 (1), flags u8, create version u64, write count u64, [reserved by flags], bytes
//! ```
//!
//! Flag bits 0 (a lease id follows) and 1 (an expiry stamp follows) are reserved: a reader that does
//! not know a flag refuses the value.

use bytes::Bytes;
use quorate_kv::{Entry, Version};

use crate::codec::{Damaged, Result};

const FORMAT: u8 = 1;
const HEADER_LEN: usize = 18;

/// What every stored value begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub create_version: Version,
    pub write_count: u64,
}

pub(crate) fn encode(header: Header, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_LEN + value.len());
    out.extend_from_slice(&[FORMAT, 0]);
    out.extend_from_slice(&header.create_version.to_be_bytes());
    out.extend_from_slice(&header.write_count.to_be_bytes());
    out.extend_from_slice(value);
    out
}

pub(crate) fn decode_header(stored: &[u8]) -> Result<Header> {
    let Some(header) = stored.first_chunk::<HEADER_LEN>() else {
        return Err(Damaged("a stored value is shorter than its header"));
    };
    if header[0] != FORMAT || header[1] != 0 {
        return Err(Damaged("a stored value has an unknown format"));
    }
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&header[at..at + 8]);
        u64::from_be_bytes(bytes)
    };
    Ok(Header {
        create_version: number(2),
        write_count: number(10),
    })
}

/// The size of the value in it.
pub(crate) fn value_bytes(stored: &[u8]) -> Result<usize> {
    decode_header(stored)?;
    Ok(stored.len() - HEADER_LEN)
}

/// The entry that a stored value says.
pub(crate) fn to_entry(key: Bytes, version: Version, stored: &Bytes) -> Result<Entry> {
    let header = decode_header(stored)?;
    Ok(Entry {
        key,
        value: stored.slice(HEADER_LEN..),
        version,
        create_version: header.create_version,
        write_count: header.write_count,
    })
}
