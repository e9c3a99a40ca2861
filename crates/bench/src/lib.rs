//! Workloads and their reports
