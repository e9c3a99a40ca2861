//! The limits on what a client may send. Settings, each with a hard cap.

use crate::{Error, ErrorKind, Result};

/// Limits on keys, values and batches, in bytes. [`Limits::default`] is what a server starts with.
///
/// What the gets of a [`Compare`](crate::Compare) answer is held to the limit of a batch too: see
/// [`OpResult::size_bytes`](crate::OpResult::size_bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest key. At most [`Limits::KEY_BYTES_CAP`].
    pub key_bytes: usize,
    /// The largest value. At most [`Limits::VALUE_BYTES_CAP`].
    pub value_bytes: usize,
    /// The largest batch: keys and values added up. At most [`Limits::BATCH_BYTES_CAP`].
    pub batch_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            key_bytes: 4096,
            value_bytes: 1 << 20,
            batch_bytes: 4 << 20,
        }
    }
}

impl Limits {
    /// No setting may allow longer keys.
    pub const KEY_BYTES_CAP: usize = 16 << 10;
    /// No setting may allow larger values.
    pub const VALUE_BYTES_CAP: usize = 16 << 20;
    /// No setting may allow larger batches.
    pub const BATCH_BYTES_CAP: usize = 32 << 20;

    /// Checks one key: not empty, not too long.
    pub fn check_key(&self, key: &[u8]) -> Result<()> {
        if key.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "the key is empty: a key has at least one byte",
            ));
        }
        if key.len() > self.key_bytes {
            return Err(too_large("key", key.len(), self.key_bytes));
        }
        Ok(())
    }

    /// Checks one value's size.
    pub fn check_value(&self, value: &[u8]) -> Result<()> {
        if value.len() > self.value_bytes {
            return Err(too_large("value", value.len(), self.value_bytes));
        }
        Ok(())
    }

    /// Checks the size of a whole batch, keys and values added up.
    pub fn check_batch(&self, bytes: usize) -> Result<()> {
        if bytes > self.batch_bytes {
            return Err(too_large("batch", bytes, self.batch_bytes));
        }
        Ok(())
    }

    /// The error of a compare whose gets would answer at least so many bytes.
    pub fn answer_too_large(&self, bytes: usize) -> Error {
        let limit = self.batch_bytes;
        let message = format!(
            "the gets of the compare answer at least {bytes} bytes, more than the limit of {limit}: \
             nothing was changed; read fewer keys at once"
        );
        Error::new(ErrorKind::TooLarge, message)
    }
}

fn too_large(what: &str, is: usize, limit: usize) -> Error {
    Error::new(
        ErrorKind::TooLarge,
        format!("the {what} has {is} bytes, more than the limit of {limit}"),
    )
}
