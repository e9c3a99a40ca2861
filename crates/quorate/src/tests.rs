//! The embedded store passes the contract's suite, and keeps what it answered.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use quorate_kv::conformance::{Suite, run};
use quorate_kv::{ErrorKind, Get, Kv, Put};
use quorate_sharding::{Encoding, NamespaceKind, NamespaceSpec, RoutingPrefix};

use crate::{Store, StoreOptions};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// An executor that knows nothing of tokio: the store must not need one.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[test]
fn store_compact_namespace_passes_conformance() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
    let namespace = store.namespace("config").unwrap();
    block_on(run(&namespace, &Suite::new("suite")));
}

#[test]
fn store_hashed_namespace_of_many_shards_passes_conformance() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
    let kind = NamespaceKind::Wide {
        encoding: Encoding::Hashed {
            prefix: RoutingPrefix::Until(b'/'),
        },
    };
    let spec = NamespaceSpec {
        name: "wide".into(),
        kind,
        shards: 4,
        replicas: 1,
        splits: Vec::new(),
    };
    store.create_namespace(&spec).unwrap();
    let namespace = store.namespace("wide").unwrap();
    block_on(run(&namespace, &Suite::new("suite")));
}

#[test]
fn store_reopened_has_all_that_was_answered() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
    let namespace = store.namespace("config").unwrap();
    for n in 0..200 {
        block_on(namespace.put(Put::new(format!("k{n}"), format!("v{n}")))).unwrap();
    }
    let second = Store::open(dir.path(), StoreOptions::default())
        .err()
        .unwrap();
    assert_eq!(second.kind(), ErrorKind::Unavailable);
    assert!(
        second.message().contains("in use by another process"),
        "{second}"
    );
    store.close().unwrap();
    let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
    let namespace = store.namespace("config").unwrap();
    for n in 0..200 {
        let entry = block_on(namespace.get(Get::new(format!("k{n}"))))
            .unwrap()
            .unwrap();
        assert_eq!(entry.value, format!("v{n}").as_bytes());
    }
}
