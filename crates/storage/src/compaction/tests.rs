//! Policy and garbage rules.
