//! The trait [`Kv`]: one namespace of some store.

use std::future::Future;
use std::pin::Pin;

use crate::{
    Batch, BatchResult, Compare, CompareResult, Delete, Domain, Entry, Error, ErrorKind, Get, Put,
    Result, Scan, ScanPage, Written,
};

/// A boxed future, so that [`Kv`] can be a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One namespace of some store: in memory, embedded or remote. All implementations pass the suite
/// in `quorate-kv`'s `conformance` tests.
///
/// Every method may be called from many tasks at once. A write that returns an error whose
/// [`outcome`](crate::Error::outcome) is `Unknown` may still happen later. New operations come as
/// provided methods that answer `Unsupported`.
pub trait Kv: Send + Sync {
    /// Where this namespace's tokens are valid.
    fn domain(&self) -> Domain;

    /// Reads one key; `None` when it is not there.
    fn get(&self, get: Get) -> BoxFuture<'_, Result<Option<Entry>>>;

    /// Writes one key under a condition. A condition that fails is not an error: `applied` is false.
    fn put(&self, put: Put) -> BoxFuture<'_, Result<Written>>;

    /// Removes one key under a condition. `applied` is false if it was not there.
    fn delete(&self, delete: Delete) -> BoxFuture<'_, Result<Written>>;

    /// Makes several changes of one shard, all or none.
    fn batch(&self, batch: Batch) -> BoxFuture<'_, Result<BatchResult>>;

    /// Compares, then does one of two lists of operations, atomically, on one shard.
    fn compare(&self, _compare: Compare) -> BoxFuture<'_, Result<CompareResult>> {
        unsupported("compare")
    }

    /// Reads one page of a range, across shards.
    fn scan(&self, _scan: Scan) -> BoxFuture<'_, Result<ScanPage>> {
        unsupported("scan")
    }
}

fn unsupported<'a, T: Send + 'a>(what: &'static str) -> BoxFuture<'a, Result<T>> {
    Box::pin(async move {
        Err(Error::new(
            ErrorKind::Unsupported,
            format!("this store has no operation `{what}`"),
        ))
    })
}
