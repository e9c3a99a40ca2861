//! Makes the checksums of damaged encodings match again, as far as they can be found.

use bytes::Bytes;

use crate::header::HEADER_BYTES;
use crate::table::block::Block;
use crate::table::format::{
    FOOTER_BYTES, Footer, Handle, TRAILER_BYTES, block_checksum, open_block,
};
use crate::table::index::Index;
use crate::values::seal_of;

fn put_u32(bytes: &mut [u8], at: usize, number: u32) {
    if let Some(to) = bytes.get_mut(at..at + 4) {
        to.copy_from_slice(&number.to_le_bytes());
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_le_bytes(*four))
}

/// The header of a file of ours.
fn header(bytes: &mut [u8]) {
    if let Some(sum) = bytes.get(..60).map(crc32c::crc32c) {
        put_u32(bytes, 60, sum);
    }
}

/// A sealed block that lies at an offset of its file.
pub(super) fn block(bytes: &mut [u8], offset: u64) {
    let end = bytes.len().saturating_sub(4);
    if bytes.len() >= TRAILER_BYTES {
        let sum = block_checksum(offset, &bytes[..end]);
        put_u32(bytes, end, sum);
    }
}

pub(super) fn footer(bytes: &mut [u8]) {
    if let Some(sum) = bytes.get(..52).map(crc32c::crc32c) {
        put_u32(bytes, 52, sum);
    }
}

/// The block of a file that a handle points to.
fn block_at(bytes: &mut [u8], handle: Handle) {
    let (from, to) = (handle.offset as usize, handle.end() as usize);
    if let Some(part) = bytes.get_mut(from..to) {
        let mut sealed = part.to_vec();
        block(&mut sealed, handle.offset);
        part.copy_from_slice(&sealed);
    }
}

/// Header, footer, and every block that they lead to.
pub(super) fn table(bytes: &mut [u8]) {
    header(bytes);
    let Some(at) = bytes.len().checked_sub(FOOTER_BYTES) else {
        return;
    };
    let (bytes, tail) = bytes.split_at_mut(at);
    footer(tail);
    let decoded = tail
        .first_chunk()
        .map(|tail| Footer::decode("/f".as_ref(), tail));
    if let Some(Ok(footer)) = decoded {
        for part in [
            footer.index,
            footer.filter,
            footer.properties,
            footer.tombstones,
        ] {
            block_at(bytes, part);
        }
        let (from, to) = (footer.index.offset as usize, footer.index.end() as usize);
        let sealed = bytes.get(from..to).unwrap_or_default().to_vec();
        let index = open_block(sealed, footer.index.offset);
        let index = index.and_then(Block::new);
        if let Ok(index) = index.and_then(|block| Index::new(block, footer.index.offset)) {
            (0..index.len()).for_each(|n| block_at(bytes, index.handle(n).unwrap_or_default()));
        }
    }
}

/// A value file: header, footer, and its records as long as lengths make sense.
pub(super) fn values(bytes: &mut [u8]) {
    header(bytes);
    let Some(end) = bytes.len().checked_sub(FOOTER_BYTES) else {
        return;
    };
    let (bytes, tail) = bytes.split_at_mut(end);
    footer(tail);
    let mut at = HEADER_BYTES;
    while let Some(length) = u32_at(bytes, at) {
        let to = at + 4 + length as usize;
        let Some(sealed) = bytes.get_mut(at + 4..to) else {
            return;
        };
        block(sealed, seal_of(1, at as u64));
        at = to;
    }
}

pub(super) fn manifest(bytes: &mut [u8]) {
    header(bytes);
    let mut at = HEADER_BYTES;
    while let Some(length) = u32_at(bytes, at) {
        let sum = crc32c::crc32c(&length.to_le_bytes());
        put_u32(bytes, at + 4, sum);
        let end = at + 12 + length as usize;
        let Some(payload) = bytes.get(at + 12..end) else {
            return;
        };
        let sum = crc32c::crc32c(payload);
        put_u32(bytes, at + 8, sum);
        if let Some(last) = bytes.get_mut(end) {
            *last = 0x5a;
        }
        at = end + 1;
    }
}

pub(super) fn current(bytes: &mut [u8]) {
    header(bytes);
    let number = bytes.get(HEADER_BYTES..HEADER_BYTES + 8);
    if let Some(sum) = number.map(crc32c::crc32c) {
        put_u32(bytes, HEADER_BYTES + 8, sum);
    }
}

/// A segment: its header and, as long as lengths make sense, its records.
pub(super) fn log(bytes: &mut [u8]) {
    header(bytes);
    let Some(salt) = bytes.get(24..40).map(Bytes::copy_from_slice) else {
        return;
    };
    let mut at = 64;
    while let Some(length) = u32_at(bytes, at + 4) {
        let end = at + 16 + length as usize;
        let Some(covered) = bytes.get(at + 4..end) else {
            return;
        };
        let sum = crc32c::crc32c_append(crc32c::crc32c(&salt), covered);
        put_u32(bytes, at, sum);
        at = end.next_multiple_of(8);
    }
}
