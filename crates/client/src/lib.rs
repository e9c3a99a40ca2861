//! Client: routing, batching, safe retries
