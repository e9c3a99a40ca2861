//! Deterministic simulation of whole clusters: everything follows from a seed.
//!
//! A run has whole nodes (`quorate_node::Node`, with all below it) on simulated disks and clocks, a simulated
//! network between them, the real client, and faults of every kind, in one process and, but for jobs on a full
//! disk, one thread. `run` plays one seed: it sets a cluster up, breaks things while clients work, heals it,
//! and demands that it serves again. The [`oracle`]s judge.
//!
//! ```text
//!  workload ─ client ─ network ─► host: Node over SimDisk, clock, jobs ◄─ faults
//!      │                               │ probes
//!   history ──► oracles (end)       oracles (at once)
//! ```
//!
//! Faults inside the code, planted bugs and probes go through `quorate_env::switch`, which the feature
//! `switches` turns on, and nothing else. Without it this crate is its checkers alone.

pub mod history;
pub mod oracle;

#[cfg(feature = "switches")]
pub mod bugs;
#[cfg(feature = "switches")]
pub mod client;
#[cfg(feature = "switches")]
pub mod clock;
#[cfg(feature = "switches")]
pub mod cluster;
#[cfg(feature = "switches")]
pub mod faults;
#[cfg(feature = "switches")]
pub mod host;
#[cfg(feature = "switches")]
pub mod jobs;
#[cfg(feature = "switches")]
pub mod network;
#[cfg(feature = "switches")]
pub mod report;
#[cfg(feature = "switches")]
pub mod run;
#[cfg(feature = "switches")]
pub mod switches;
#[cfg(feature = "switches")]
pub mod trace;
#[cfg(feature = "switches")]
pub mod workload;

#[cfg(test)]
mod tests;
