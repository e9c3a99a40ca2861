//! Compression: the only file that names the codecs.
//!
//! What is compressed begins with its plain length, a varint.

use bytes::BytesMut;

use crate::codec::{Reader, put_varint};
use crate::options::Compression;

/// No block or value is larger: a batch is at most so large.
const MOST_BYTES: usize = 1 << 30;

/// Appends bytes, compressed if that saves an eighth at least; returns how, for [`decompress`].
pub(crate) fn compress(out: &mut Vec<u8>, bytes: &[u8], how: Compression) -> Compression {
    let start = out.len();
    if how != Compression::None {
        put_varint(out, bytes.len() as u64);
        let from = out.len();
        let written = match how {
            Compression::Lz4 => lz4_compress(out, bytes),
            _ => zstd_compress(out, bytes),
        };
        if written.is_some_and(|written| written < bytes.len() - bytes.len() / 8) {
            out.truncate(from + written.unwrap_or(0));
            return how;
        }
        out.truncate(start);
    }
    out.extend_from_slice(bytes);
    Compression::None
}

/// Puts the plain bytes of what was compressed in this way in place of what is in `plain`; the text says
/// why there are none.
pub(crate) fn decompress(
    how: Compression,
    payload: &[u8],
    plain: &mut BytesMut,
) -> Result<(), &'static str> {
    if how == Compression::None {
        plain.clear();
        plain.extend_from_slice(payload);
        return Ok(());
    }
    let mut reader = Reader::new(payload);
    let length = reader.length().ok_or("a compressed block has no length")?;
    let compressed = &payload[payload.len() - reader.remaining()..];
    let most = match how {
        // LZ4 makes at most 255 bytes of one.
        Compression::Lz4 => compressed.len().saturating_mul(255).saturating_add(64),
        // A frame of ours says how much it makes: what does not is not believed.
        _ => zstd_length(compressed).map_or(0, |length| length.min(MOST_BYTES)),
    };
    if length > most {
        return Err("a compressed block claims an impossible length");
    }
    plain.resize(length, 0);
    let written = match how {
        Compression::Lz4 => lz4_flex::block::decompress_into(compressed, plain).ok(),
        _ => zstd_decompress(compressed, plain),
    };
    match written {
        Some(written) if written == length => Ok(()),
        _ => Err("a compressed block does not decompress"),
    }
}

/// How long what was compressed in this way is when plain; `None` if it does not say.
pub(crate) fn plain_length(how: Compression, payload: &[u8]) -> Option<usize> {
    match how {
        Compression::None => Some(payload.len()),
        _ => Reader::new(payload).length(),
    }
}

/// Returns how many bytes were appended that count; more may follow them.
fn lz4_compress(out: &mut Vec<u8>, bytes: &[u8]) -> Option<usize> {
    let from = out.len();
    let most = lz4_flex::block::get_maximum_output_size(bytes.len());
    out.resize(from + most, 0);
    lz4_flex::block::compress_into(bytes, &mut out[from..]).ok()
}

#[cfg(feature = "zstd")]
mod with_zstd {
    use std::cell::RefCell;

    use zstd::bulk::{Compressor, Decompressor};

    /// What zstd itself calls its default.
    const LEVEL: i32 = 3;
    thread_local! {
        // They hold large tables: made once a thread.
        static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
        static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
    }

    pub(super) fn zstd_compress(out: &mut Vec<u8>, bytes: &[u8]) -> Option<usize> {
        COMPRESSOR.with_borrow_mut(|slot| {
            let compressor = match slot {
                Some(there) => there,
                None => slot.insert(Compressor::new(LEVEL).ok()?),
            };
            let compressed = compressor.compress(bytes).ok()?;
            out.extend_from_slice(&compressed);
            Some(compressed.len())
        })
    }

    pub(super) fn zstd_length(compressed: &[u8]) -> Option<usize> {
        let length = zstd::zstd_safe::get_frame_content_size(compressed);
        usize::try_from(length.ok()??).ok()
    }

    pub(super) fn zstd_decompress(compressed: &[u8], plain: &mut [u8]) -> Option<usize> {
        DECOMPRESSOR.with_borrow_mut(|slot| {
            let decompressor = match slot {
                Some(there) => there,
                None => slot.insert(Decompressor::new().ok()?),
            };
            decompressor.decompress_to_buffer(compressed, plain).ok()
        })
    }
}

#[cfg(not(feature = "zstd"))]
mod with_zstd {
    /// Not reached: options with zstd are refused.
    pub(super) fn zstd_compress(_: &mut Vec<u8>, _: &[u8]) -> Option<usize> {
        None
    }

    /// Files with zstd are refused before their blocks are read; a block that claims it is damaged.
    pub(super) fn zstd_length(_: &[u8]) -> Option<usize> {
        None
    }

    /// Not reached: see above.
    pub(super) fn zstd_decompress(_: &[u8], _: &mut [u8]) -> Option<usize> {
        None
    }
}

use with_zstd::{zstd_compress, zstd_decompress, zstd_length};
