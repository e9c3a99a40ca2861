//! Tables: sorted, immutable files of entries.
//!
//! ```text
//! header | data block … | index block | filter | properties | footer
//! ```
//!
//! A table is written once, front to back, synced, and never changed. Its index has for each data
//! block a key at or after the block's last entry and before the next block's first.

mod append;
pub(crate) mod block;
mod builder;
mod check;
pub(crate) mod filter;
pub(crate) mod format;
pub(crate) mod index;
mod reader;

pub(crate) use append::Appender;
pub(crate) use block::Block;
pub(crate) use builder::{TableBuilder, TableOptions};
pub(crate) use check::{PointerCheck, Problem, check_blocks, describe, lost_blocks};
pub(crate) use filter::hash_place;
pub(crate) use format::{
    KeyspaceProperties, Properties, checked_block, payload_of, reseal_block, seal_block,
};
pub(crate) use reader::{Found, Near, Table, TableCursor};
