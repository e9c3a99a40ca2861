//! The engine against its model: the same operations, the same answers, whatever the settings.

mod conditions;
mod conformance;
mod corruption;
mod crash;
mod faults;
mod ranges;
mod teeth;
mod workload;
