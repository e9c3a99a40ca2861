//! The engine against its model: the same operations, the same answers, whatever the settings.

mod backup;
mod budget;
mod bulk;
mod busy;
mod checkpoint;
mod closing;
mod conditions;
mod conformance;
mod corruption;
mod crash;
mod damage;
mod expiry;
mod faults;
mod filter;
mod ingest;
mod inspect;
mod options;
mod policies;
mod prefix;
mod ranges;
mod read_only;
#[cfg(shuttle)]
mod schedules;
mod slow_disk;
mod teeth;
mod torture;
mod values;
mod workload;
