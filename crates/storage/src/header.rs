//! The first 64 bytes of every file of this crate: what it is, and who may read it; and the last 64 of
//! those that have a footer.

use std::path::Path;

use quorate_env::File;

use crate::codec::Reader;
use crate::error::{Error, ErrorKind, Result};

/// The size of a header.
pub(crate) const HEADER_BYTES: usize = 64;
/// The size of a footer.
pub(crate) const FOOTER_BYTES: usize = 64;

const FORMAT_VERSION: u16 = 1;

/// What a kind of file starts with.
pub(crate) type Magic = [u8; 8];

/// The header of a file that is neither encrypted nor has tags.
pub(crate) fn encode(magic: &Magic) -> [u8; HEADER_BYTES] {
    let mut out = [0; HEADER_BYTES];
    out[..8].copy_from_slice(magic);
    out[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    // 10 cipher u16, 12 incompatible features u32, 16 key id u32, 20 tag bytes of a block u32: 0.
    let crc = crc32c::crc32c(&out[..60]);
    out[60..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Fails unless this engine can read a file that starts so.
pub(crate) fn check(path: &Path, magic: &Magic, bytes: &[u8]) -> Result<()> {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Err(Error::corrupt(path, "it is shorter than its header"));
    };
    if &header[..8] != magic {
        return Err(Error::corrupt(
            path,
            "it does not start with its magic bytes",
        ));
    }
    let crc = Reader::new(&header[60..]).u32();
    if crc != Some(crc32c::crc32c(&header[..60])) {
        return Err(Error::corrupt(
            path,
            "the checksum of its header does not match",
        ));
    }
    let version = u16::from_le_bytes([header[8], header[9]]);
    if version == 0 || version > FORMAT_VERSION || header[10..24] != [0; 14] {
        return Err(Error::new(
            ErrorKind::Incompatible,
            format!(
                "{} has format {version} with cipher, features or tags that this engine does not \
                 know; it reads format {FORMAT_VERSION}: use a newer one",
                path.display()
            ),
        ));
    }
    Ok(())
}

/// Checks the header of a file of this size; returns where its footer begins, and its bytes.
pub(crate) fn read_ends(
    file: &dyn File,
    path: &Path,
    size: u64,
    magic: &Magic,
) -> Result<(u64, [u8; FOOTER_BYTES])> {
    let failed = |e: std::io::Error| Error::disk(path, "can't read", &e);
    let footer_at = size.checked_sub(FOOTER_BYTES as u64);
    let Some(footer_at) = footer_at.filter(|at| *at >= HEADER_BYTES as u64) else {
        let what = format!("it has {size} bytes, less than its header and footer");
        return Err(Error::corrupt(path, what));
    };
    let mut head = [0; HEADER_BYTES];
    file.read_exact_at(&mut head, 0).map_err(failed)?;
    check(path, magic, &head)?;
    let mut footer = [0; FOOTER_BYTES];
    file.read_exact_at(&mut footer, footer_at).map_err(failed)?;
    Ok((footer_at, footer))
}
