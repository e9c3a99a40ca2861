//! Nothing: the tests with real processes are in `tests/it`, one binary.
