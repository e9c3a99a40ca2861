//! Joins storage, replication and sharding into a node; opens no sockets
