//! LSM storage engine with versioned keyspaces
