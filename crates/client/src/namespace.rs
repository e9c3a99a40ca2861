//! [`NamespaceKv`]: one namespace of a cluster, as a [`Kv`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_kv::{
    Batch, BatchResult, BoxFuture, Compare, CompareResult, Delete, Domain, Entry, Error, ErrorKind,
    Get, Kv, Limits, Mutation, Op, Put, ReadLevel, Result, Scan, ScanPage, Token, Version, Written,
};
use quorate_sharding::{Answer, Encoding, Namespace, NamespaceId, Operation};
use tokio::time::Instant;

use crate::call::Call;
use crate::client::Inner;
use crate::routes::Place;

/// What no server allows; a server's own limits may be lower, and it enforces those.
const CAPS: Limits = Limits {
    key_bytes: Limits::KEY_BYTES_CAP,
    value_bytes: Limits::VALUE_BYTES_CAP,
    batch_bytes: Limits::BATCH_BYTES_CAP,
};

/// One namespace of a cluster. Cheap to clone.
#[derive(Clone)]
pub struct NamespaceKv {
    pub(crate) inner: Arc<Inner>,
    pub(crate) id: NamespaceId,
    pub(crate) encoding: Encoding,
    domain: Domain,
}

impl NamespaceKv {
    pub(crate) fn new(inner: Arc<Inner>, cluster: u128, namespace: &Namespace) -> Self {
        NamespaceKv {
            inner,
            id: namespace.id,
            encoding: namespace.kind.encoding(),
            domain: Domain {
                cluster,
                namespace: namespace.id,
                incarnation: namespace.incarnation,
            },
        }
    }

    /// Whether a scan over this range can go in the order of keys.
    pub fn is_ordered(&self, start: &[u8], end: &[u8]) -> bool {
        self.encoding.encode_range(start, end).is_some()
    }

    pub(crate) fn deadline(&self, timeout: Option<Duration>) -> Instant {
        Instant::now() + timeout.unwrap_or(self.inner.options.timeout)
    }

    fn token(&self, version: Version) -> Token {
        Token {
            domain: self.domain,
            version,
        }
    }

    pub(crate) fn check_level(&self, level: &ReadLevel) -> Result<()> {
        match level {
            ReadLevel::AtLeast(token) => token.check(&self.domain),
            _ => Ok(()),
        }
    }

    async fn call(
        &self,
        routed: &Bytes,
        operation: Operation,
        timeout: Option<Duration>,
    ) -> Result<Answer> {
        let place = Place::Holds(self.encoding.encode_bytes(routed));
        let call = Call::new(
            &self.inner,
            self.id,
            place,
            operation,
            self.deadline(timeout),
        );
        call.run().await.map(|(_, answer)| answer)
    }

    async fn write_one(
        &self,
        key: Bytes,
        operation: Operation,
        timeout: Option<Duration>,
    ) -> Result<Written> {
        match self.call(&key, operation, timeout).await? {
            Answer::Written {
                applied,
                version,
                group_version,
            } => Ok(Written {
                applied,
                version,
                token: self.token(group_version.max(version)),
            }),
            other => Err(unexpected(&other)),
        }
    }

    async fn write_batch(&self, batch: Batch) -> Result<BatchResult> {
        let Some(first) = batch.mutations.first() else {
            return Err(Error::new(ErrorKind::InvalidArgument, "the batch is empty"));
        };
        check_mutations(batch.mutations.iter())?;
        let routed = first.key().clone();
        let operation = Operation::Batch {
            mutations: batch.mutations,
        };
        match self.call(&routed, operation, batch.timeout).await? {
            Answer::Batch { version } => Ok(BatchResult {
                version,
                token: self.token(version),
            }),
            other => Err(unexpected(&other)),
        }
    }

    async fn run_compare(&self, compare: Compare) -> Result<CompareResult> {
        let ops = || compare.then_ops.iter().chain(&compare.else_ops);
        let keys = || {
            compare
                .conditions
                .iter()
                .map(|c| &c.0)
                .chain(ops().map(Op::key))
        };
        let Some(routed) = keys().next().cloned() else {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "the compare names no key",
            ));
        };
        keys().try_for_each(|key| CAPS.check_key(key))?;
        check_mutations(ops().filter_map(|op| match op {
            Op::Mutate(mutation) => Some(mutation),
            _ => None,
        }))?;
        let operation = Operation::Compare {
            conditions: compare.conditions,
            then_ops: compare.then_ops,
            else_ops: compare.else_ops,
        };
        match self.call(&routed, operation, compare.timeout).await? {
            Answer::Compare {
                succeeded,
                results,
                version,
            } => Ok(CompareResult {
                succeeded,
                results,
                version,
                token: self.token(version),
            }),
            other => Err(unexpected(&other)),
        }
    }
}

impl Kv for NamespaceKv {
    fn domain(&self) -> Domain {
        self.domain
    }

    fn get(&self, get: Get) -> BoxFuture<'_, Result<Option<Entry>>> {
        Box::pin(async move {
            CAPS.check_key(&get.key)?;
            self.check_level(&get.level)?;
            let operation = Operation::Get {
                key: get.key.clone(),
                level: get.level,
            };
            match self.call(&get.key, operation, get.timeout).await? {
                Answer::Entry(entry) => Ok(entry),
                other => Err(unexpected(&other)),
            }
        })
    }

    fn put(&self, put: Put) -> BoxFuture<'_, Result<Written>> {
        Box::pin(async move {
            CAPS.check_key(&put.key)?;
            CAPS.check_value(&put.value)?;
            let operation = Operation::Put {
                key: put.key.clone(),
                value: put.value,
                condition: put.condition,
            };
            self.write_one(put.key, operation, put.timeout).await
        })
    }

    fn delete(&self, delete: Delete) -> BoxFuture<'_, Result<Written>> {
        Box::pin(async move {
            CAPS.check_key(&delete.key)?;
            let operation = Operation::Delete {
                key: delete.key.clone(),
                condition: delete.condition,
            };
            self.write_one(delete.key, operation, delete.timeout).await
        })
    }

    fn batch(&self, batch: Batch) -> BoxFuture<'_, Result<BatchResult>> {
        Box::pin(self.write_batch(batch))
    }

    fn compare(&self, compare: Compare) -> BoxFuture<'_, Result<CompareResult>> {
        Box::pin(self.run_compare(compare))
    }

    fn scan(&self, scan: Scan) -> BoxFuture<'_, Result<ScanPage>> {
        Box::pin(self.read_page(scan))
    }
}

fn check_mutations<'a>(mutations: impl Iterator<Item = &'a Mutation>) -> Result<()> {
    let mut bytes = 0;
    for mutation in mutations {
        CAPS.check_key(mutation.key())?;
        if let Mutation::Put { value, .. } = mutation {
            CAPS.check_value(value)?;
        }
        bytes += mutation.size_bytes();
    }
    CAPS.check_batch(bytes)
}

/// The error for an answer of the wrong kind: a bug of the other side.
pub(crate) fn unexpected(answer: &Answer) -> Error {
    let kind = match answer {
        Answer::Entry(_) => "get",
        Answer::Written { .. } => "put or delete",
        Answer::Batch { .. } => "batch",
        Answer::Compare { .. } => "compare",
        Answer::Scan { .. } => "scan",
    };
    Error::new(
        ErrorKind::Internal,
        format!("the server gave the answer of a {kind} to another operation"),
    )
    .with_outcome(quorate_kv::Outcome::Unknown)
}
