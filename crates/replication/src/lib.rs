//! Many Raft groups over one shared log
