//! Shard map, routing and first placement; pure
