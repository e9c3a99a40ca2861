//! Segmented, checksummed, group-committed append log
