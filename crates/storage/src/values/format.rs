//! The bytes of value files: pointers, records, the footer. `docs/formats.md` has it byte by byte.

use std::path::{Path, PathBuf};

use crate::codec::{Reader, put_varint};
use crate::error::{Error, Result};
use crate::header::{FOOTER_BYTES, HEADER_BYTES, Magic};
use crate::options::Compression;
use crate::planted::{self, Bug};

pub(super) const MAGIC: Magic = *b"QUORVAL\0";
/// Before each record's block: its size.
pub(super) const LENGTH_BYTES: usize = 4;

/// Where a value file is.
pub(crate) fn value_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.values"))
}

/// Where a value lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pointer {
    /// The number of the value file.
    pub(crate) file: u64,
    pub(crate) offset: u64,
    /// Of the whole record, its length included.
    pub(crate) size: u32,
}

impl Pointer {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.file);
        put_varint(out, self.offset);
        put_varint(out, u64::from(self.size));
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Pointer> {
        let mut reader = Reader::new(bytes);
        let pointer = Pointer {
            file: reader.varint()?,
            offset: reader.varint()?,
            size: u32::try_from(reader.varint()?).ok()?,
        };
        reader.is_empty().then_some(pointer)
    }

    pub(super) fn end(&self) -> u64 {
        self.offset.saturating_add(u64::from(self.size))
    }
}

/// What a block's checksum knows of its place: the file and the offset, so that a record of another
/// file does not match either.
pub(crate) fn seal_of(file: u64, offset: u64) -> u64 {
    match planted::is_on(Bug::ValuesForgetTheirFile) {
        true => offset,
        false => file.rotate_left(40) ^ offset,
    }
}

/// Part of a value file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Share {
    pub(crate) records: u64,
    /// Of those records, as they lie in the file.
    pub(crate) bytes: u64,
}

impl Share {
    /// Counts one more record.
    pub(crate) fn add(&mut self, pointer: &Pointer) {
        self.records += 1;
        self.bytes += u64::from(pointer.size);
    }
}

/// What the manifest knows of a value file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ValueMeta {
    pub(crate) number: u64,
    /// All records.
    pub(crate) all: Share,
    /// Of the values, plain.
    pub(crate) value_bytes: u64,
    /// How records were to be compressed.
    pub(crate) compression: Compression,
}

impl ValueMeta {
    /// The file's size.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.all
            .bytes
            .saturating_add((HEADER_BYTES + FOOTER_BYTES) as u64)
    }

    /// Where the records end.
    pub(super) fn records_end(&self) -> u64 {
        self.all.bytes.saturating_add(HEADER_BYTES as u64)
    }

    /// What stands in the manifest and in the footer, in this order.
    fn numbers(&self) -> [u64; 5] {
        [
            self.number,
            self.all.records,
            self.all.bytes,
            self.value_bytes,
            u64::from(self.compression.code()),
        ]
    }

    /// Reads its numbers by `next`.
    fn from_numbers(mut next: impl FnMut() -> Option<u64>) -> Option<ValueMeta> {
        Some(ValueMeta {
            number: next()?,
            all: Share {
                records: next()?,
                bytes: next()?,
            },
            value_bytes: next()?,
            compression: Compression::from_code(next()?)?,
        })
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        self.numbers().iter().for_each(|n| put_varint(out, *n));
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Option<ValueMeta> {
        ValueMeta::from_numbers(|| reader.varint())
    }

    /// With the checksum of all that is before the footer.
    pub(super) fn encode_footer(&self, file_crc: u32) -> [u8; FOOTER_BYTES] {
        let mut out = [0; FOOTER_BYTES];
        out[48..52].copy_from_slice(&file_crc.to_le_bytes());
        for (place, number) in out.chunks_exact_mut(8).zip(self.numbers()) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let crc = crc32c::crc32c(&out[..52]);
        out[52..56].copy_from_slice(&crc.to_le_bytes());
        out[56..].copy_from_slice(&MAGIC);
        out
    }

    pub(super) fn decode_footer(path: &Path, bytes: &[u8; FOOTER_BYTES]) -> Result<ValueMeta> {
        let wrong = || Error::corrupt(path, "its footer is not that of a value file");
        let crc = Reader::new(&bytes[52..]).u32();
        if bytes[56..] != MAGIC || crc != Some(crc32c::crc32c(&bytes[..52])) {
            return Err(wrong());
        }
        let mut reader = Reader::new(bytes);
        ValueMeta::from_numbers(|| reader.u64()).ok_or_else(wrong)
    }
}
