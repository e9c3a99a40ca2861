//! Values apart from their keys: large ones lie in *value files*, and tables hold pointers to them.
//!
//! ```text
//!   table   apple ─► 7 · 64 · 5000       value file 7   header | record | record | record | footer
//!           pear  ─► 7 · 9064 · 4100                             ▲ apple    (dead)   ▲ pear
//! ```
//!
//! So compaction, which writes keys again and again, leaves large values where they are. A flush writes
//! them once. They are never looked for: a pointer says file, offset and size.
//!
//! *What is alive.* Each table's properties say how many records of which value file its pointers need,
//! its [`Share`]s. A record has one pointer in all levels: compaction passes a pointer on or drops it. So
//! what is alive of a file is the sum of the shares of all tables, exactly, whatever dropped the rest:
//! overwriting, deletions, range deletions, removed ranges. [`ValueFiles`] keeps the sums, by each edit
//! what comes and what goes. A file that no table needs any more goes with the edit that says so, and
//! its name when the last reader lets go of it, as tables do.
//!
//! *Collection.* A file of which enough is dead is *collected*: a compaction that meets a pointer into it
//! moves the value to a new file. Compactions that run anyhow do so as they go; if none does, one is
//! chosen for it. There is no collector beside compaction that would have to find out whether keys are
//! still there, or write them again as a user does (as in Titan and Badger, which lost values so).
//!
//! Invariants:
//! - Levels with a pointer hold its file; a file in levels has a pointer to it.
//! - No record has two pointers in one state of the levels.
//! - What a pointer points to is written and synced before the manifest has the pointer's table.

mod builder;
mod check;
mod collect;
mod file;
mod format;
mod live;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use check::{Records, check_values, describe_values};
pub(crate) use collect::{Collect, choose_collection};
pub(crate) use file::ValueFile;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use format::seal_of;
pub(crate) use format::{Pointer, Share, ValueMeta, value_path};
pub(crate) use live::{Held, ValueFiles};
pub(crate) use reader::ValueReader;
pub(crate) use writer::{ValueOptions, ValueWriter};
