//! The engine against its model: the same operations, the same answers, whatever the settings.

mod checkpoint;
mod conditions;
mod conformance;
mod corruption;
mod crash;
mod faults;
mod ingest;
mod inspect;
mod options;
mod ranges;
mod read_only;
mod teeth;
mod values;
mod workload;
