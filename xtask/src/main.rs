//! The workspace's chores: `cargo xtask <verb>`.
fn main() {}
