//! The engine against its model: the same operations, the same answers, whatever the settings.

mod checkpoint;
mod conformance;
mod corruption;
mod crash;
mod faults;
mod ingest;
mod inspect;
mod options;
mod read_only;
mod workload;
