//! Compaction: what to merge, what to drop, and the merging itself.
//!
//! The policy looks at the levels and returns a [`Choice`]; it touches no file. Carrying a choice
//! out is the engine's part.

mod garbage;
mod policy;
mod run;
#[cfg(test)]
mod tests;

pub(crate) use garbage::Keep;
pub(crate) use policy::{Choice, CompactionPolicy, Leveled, View, choose};
pub(crate) use run::{Failure, Input, LostValues, Outputs, Written, compact, write_table};
