//! Disk, clock, randomness and background jobs: real, and simulated with faults
