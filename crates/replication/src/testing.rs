//! For tests: a network in memory that loses, delays and cuts, and a state machine in memory that
//! forgets what it has not flushed.

mod machine;
mod network;

pub use machine::MemoryMachine;
pub use network::MemoryNetwork;
