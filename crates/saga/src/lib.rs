//! Sagas: work over several services that ends done, or undone, and never between.
//!
//! A step of a saga is a transaction of one service. What a later step can't do, the earlier ones make
//! good: each has a *compensation*. One step may be the *pivot*, after which nothing is undone; what comes
//! after it is tried until it is done.
//!
//! Beside them: TCC, which is a saga whose branches are all tried first ([`Tcc`]); AT, transactions that record
//! what they change and undo it by themselves (`at`); and two-phase commit over PostgreSQL (`two_phase`).
//!
//! Without features the crate has the machine, and journals in memory and over a
//! [`Kv`](quorate_kv::Kv). Features: `postgres`, `sqlite`.

#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub mod at;
pub mod coordinator;
pub mod definition;
mod error;
pub mod journal;
pub mod machine;
pub mod message;
pub mod ops;
pub mod participant;
pub mod plan;
#[cfg(not(feature = "crash-points"))]
mod points;
#[cfg(feature = "crash-points")]
pub mod points;
pub mod tcc;
#[cfg(all(test, feature = "postgres", feature = "sqlite"))]
mod tests;
#[cfg(feature = "postgres")]
pub mod two_phase;

pub use coordinator::{Begun, Coordinator, CoordinatorOptions, CoordinatorStatus, Sagas};
pub use definition::{Context, Definition, Kind, Op, Registry, Retry, Saga, Step};
pub use error::{Error, ErrorKind, Result};
pub use machine::{Order, Outcome, Status};
pub use ops::Operations;
pub use participant::{ExternalParticipant, Participant};
pub use plan::{Begin, Planner};
pub use tcc::Tcc;
