//! The bounds between the shards of a new namespace.

use bytes::Bytes;

use crate::{Encoding, Error, Result};

/// Most shards that a namespace may begin with: the number of values of two bytes.
const SHARDS_CAP: usize = 1 << 16;

/// Even first bounds: `n` ranges (start, end) over the two leading bytes of encoded keys.
///
/// For a hashed encoding that is the space of the hash, so shards get equal shares. For an ordered
/// one it is right only if keys begin with evenly spread bytes; better give split keys
/// ([`bounds_from_splits`]).
///
/// # Errors
/// [`Error::InvalidArgument`] unless `n` is 1 to 65,536.
pub fn initial_bounds(_encoding: Encoding, n: usize) -> Result<Vec<(Bytes, Bytes)>> {
    if n == 0 || n > SHARDS_CAP {
        return Err(Error::InvalidArgument(format!(
            "a namespace begins with 1 to {SHARDS_CAP} shards, not {n}"
        )));
    }
    let splits: Vec<Bytes> = (1..n)
        .map(|i| Bytes::copy_from_slice(&((i * SHARDS_CAP / n) as u16).to_be_bytes()))
        .collect();
    bounds_from_splits(&splits)
}

/// The ranges between given encoded split keys: one more than there are splits.
///
/// # Errors
/// [`Error::InvalidArgument`] if a split key is empty or they do not ascend.
pub fn bounds_from_splits(splits: &[Bytes]) -> Result<Vec<(Bytes, Bytes)>> {
    let mut start = Bytes::new();
    let mut bounds = Vec::with_capacity(splits.len() + 1);
    for split in splits {
        if *split <= start {
            return Err(Error::InvalidArgument(
                "split keys must not be empty and must ascend".into(),
            ));
        }
        bounds.push((start, split.clone()));
        start = split.clone();
    }
    bounds.push((start, Bytes::new()));
    Ok(bounds)
}
