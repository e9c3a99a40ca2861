//! Compaction: what to merge, what to drop, and the merging itself.
//!
//! The policy looks at the levels and returns a [`Choice`]; it touches no file. Carrying a choice
//! out is the engine's part.

mod dead;
mod garbage;
mod policy;
mod revise;
mod run;
#[cfg(test)]
mod tests;

pub(crate) use dead::find_dead;
pub(crate) use garbage::Keep;
pub(crate) use policy::{Choice, CompactionPolicy, How, View, choose, policy};
pub(crate) use run::{Failure, Input, LostValues, Outputs, Written, compact, write_table};
