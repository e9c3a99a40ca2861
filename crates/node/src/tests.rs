//! Tests of the node, from its bytes up to three nodes in one process.

mod admission;
mod applying;
mod cluster;
mod codecs;
mod coordinator;
mod crash;
mod damage;
mod full_disk;
mod harness;
mod overload;
mod remains;
mod requests;
mod script;
mod snapshots;
mod stopping;
