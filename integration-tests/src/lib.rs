//! Nothing here: the tests are in `tests/it`, and the processes that they start for the outbox in
//! `src/bin/outbox_role`.
