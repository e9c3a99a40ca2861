//! The embedded store, and the crates of Quorate behind features
