//! Tests of the protocol: random schedules against a model, and that each guard is missed when it is away.

mod feeds;
mod model;
pub(crate) mod schedules;
mod source;
mod teeth;
