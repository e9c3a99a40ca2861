//! Workloads and their reports: the same generator drives Quorate and what it is compared with.
//!
//! A [`Workload`] is so many clients, each with one operation in flight, for a time. It runs against
//! a [`Target`], and gives a [`Measured`]: throughput and latencies. A [`Report`] puts ours beside a
//! peer's, as a ratio that is above 1 when ours is better, whatever the metric.
//!
//! How stale caches are is measured by the module `cache`, behind the feature of that name. The drivers of peers and
//! the program that starts both sides are behind the feature `peers`.

#[cfg(feature = "cache")]
pub mod cache;
mod generator;
mod report;
#[cfg(test)]
mod tests;

pub use generator::{BATCH, Measured, Operation, Target, Workload, run};
pub use report::{Report, Row, Series};
