//! How stale caches are: each under readers, writers and one fault, held against the truth.
//!
//! # What is stale?
//!
//! A read is stale if it is answered by something older than a write that was *acknowledged before the read
//! began*. What runs beside a read is exempt. So the ledger ([`Truth`]) is asked twice:
//!
//! ```text
//! writer    commit 7 ─► caches are told ─► acknowledged: noted in the ledger
//! reader    what must I see? 7, by the ledger ─► get ─► judge: 6 is stale, 7 or 8 is not
//! ```
//!
//! What must be seen is taken before the question, and an acknowledgement is noted after the writer has its
//! answer: a right cache is never called stale, whatever the threads do. How long a stale answer had been so counts
//! from the first acknowledgement that it missed.
//!
//! The ledger is the source itself, so it knows all versions of all keys. Values name the write that made them;
//! what a cache says about versions is not believed.
//!
//! # Promises
//!
//! A strategy may promise less than freshness: [`Promise`] says within which time a reader must see a write. An answer
//! that is older than that is *broken*. Naive caches promise nothing; theirs are only counted.
//!
//! # Natural and adversarial
//!
//! In the adversarial schedule every fourth passage of a [`Point`], such as between commit and invalidation, takes up
//! to 20 ms. Natural is what the machine does by itself.
//!
//! What is not here: other caches, which are outside the workspace (`crates/bench/caches`).

mod dice;
mod load;
mod rows;
#[cfg(test)]
mod shared;
#[cfg(test)]
mod tests;
mod truth;
mod weather;

pub use load::{Cell, Outcome, Strike, run};
pub use rows::{Asking, Ours, ROWS, Row, Shared, Subject, Tiering, direct};
pub use truth::{Answer, Promise, Reach, Sight, Stale, Truth, Verdict, Write};
pub use weather::{Ears, Fate, Fault, Point, Weather, Wire};

/// So many processes share a remote tier; each has its own tier in memory, if it has one.
pub const PROCESSES: usize = 3;
