//! [`Redis`]: the tier that processes share. Redis 7 or newer, one master at a time, reached without a proxy.
//!
//! A record is a hash, changed by scripts alone, so each step of the protocol is atomic there:
//!
//! ```text
//! g  the generation: which server wrote it      p  1: a value, 2: there is none
//! m  the mark                                   v, s  version, seen      a  as of      e  expires
//! f  the floor                                  d  the value
//! l  the end of a lease, o  whose               t  the marks of its tags
//! ```
//!
//! # What if Redis forgets?
//!
//! A record that was evicted, that expired or was flushed is absent, and so is its mark: fills under way are
//! refused, and the next needs the source's newest state. So no floor has to survive, and any eviction policy
//! will do.
//!
//! A server that took over may lack the last invalidations and have what they removed. So a record counts only
//! on the server that wrote it: its *generation* is the server's run and replication id, read when a connection
//! is made; after a restart or a failover all older records are absent. A connection ends at one server, which
//! is why a proxy must not come between, and why the client's own reconnecting is not used.
//!
//! What is not promised: two servers that both take themselves for the master serve two truths, until a TTL
//! ends one. That is for `min-replicas-to-write` to prevent.

mod connection;
mod scripts;
mod stream;
#[cfg(test)]
mod tests;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use quorate_kv::BoxFuture;

use self::connection::Server;
use self::scripts::Scripts;
use super::{Lease, Tier};
use crate::core::{Cached, Invalidation, Looked, Mark, Put};
use crate::{Error, ErrorKind, Result};

pub use stream::RedisInvalidations;

/// How the tier uses its server. No time may be zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisOptions {
    /// Before each key, so that several caches, or versions of what they keep, share a server (`quorate:`).
    pub prefix: String,
    /// How long making a connection may take (2 s).
    pub connect_timeout: Duration,
    /// How long an answer may take before the connection is given up (200 ms).
    pub response_timeout: Duration,
    /// How long a fill may take (1 min). A later one is not installed.
    pub fill_ttl: Duration,
    /// How long a floor is kept (10 min). Afterwards a fill needs the source's newest state.
    pub floor_ttl: Duration,
    /// How long a value is kept after it has expired (1 min).
    pub stale_ttl: Duration,
    /// How many invalidations at least are kept for processes that hear of them late (10,000). A process that is further
    /// behind drops its own tier. Zero: none are told, and no process may follow. The same in all processes.
    pub backlog: u32,
}

impl Default for RedisOptions {
    fn default() -> Self {
        RedisOptions {
            prefix: "quorate:".to_owned(),
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_millis(200),
            fill_ttl: Duration::from_secs(60),
            floor_ttl: Duration::from_secs(600),
            stale_ttl: Duration::from_secs(60),
            backlog: 10_000,
        }
    }
}

/// Records in a Redis server. It connects when it is first used, and again when a connection failed.
pub struct Redis {
    server: Server,
    options: RedisOptions,
    marks: Marks,
    scripts: Scripts,
}

impl Redis {
    /// A tier at a URL: `redis://[user:password@]host[:port][/database]`. Connects later.
    ///
    /// # Errors
    /// `Invalid`: that is no URL of a Redis server.
    pub fn new(url: &str, options: RedisOptions) -> Result<Self> {
        Ok(Redis {
            server: Server::new(url, &options)?,
            options,
            marks: Marks::new(),
            scripts: Scripts::new(),
        })
    }

    /// What all processes invalidate under this prefix on this server, for [`Cache::follow`](crate::Cache::follow). It has a
    /// connection of its own.
    ///
    /// # Errors
    /// `Invalid`: without a [`backlog`](RedisOptions::backlog) nothing is told.
    pub fn invalidations(&self) -> Result<RedisInvalidations> {
        if self.options.backlog == 0 {
            let message =
                "this tier tells no invalidations: set `RedisOptions::backlog` in all processes";
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let server = self.server.patient();
        Ok(RedisInvalidations::new(server, &self.options))
    }

    fn record(&self, key: &[u8]) -> Vec<u8> {
        [self.options.prefix.as_bytes(), key].concat()
    }

    async fn look_at(&self, key: &[u8]) -> Result<Looked<Bytes>> {
        let found: Vec<Bytes> = self
            .server
            .call(
                &self.scripts.look,
                &self.record(key),
                |generation, script| {
                    script.arg(generation).arg(self.marks.next().0);
                    script.arg(millis(self.options.fill_ttl));
                },
            )
            .await?;
        scripts::looked(&found)
    }

    async fn put_into(&self, key: &[u8], mark: Mark, cached: Cached<Bytes>) -> Result<Put> {
        let put: String = self
            .server
            .call(
                &self.scripts.put,
                &self.record(key),
                |generation, script| {
                    script.arg(generation).arg(mark.0);
                    script.arg(millis(self.options.stale_ttl));
                    scripts::give(script, &cached);
                },
            )
            .await?;
        match put.as_str() {
            "stored" => Ok(Put::Stored),
            "older" => Ok(Put::Older),
            _ => Ok(Put::Overtaken),
        }
    }

    async fn note(&self, key: &[u8], invalidation: Invalidation) -> Result<()> {
        let version = match invalidation {
            Invalidation::At(version) => scripts::text(version),
            Invalidation::Unknown => String::new(),
        };
        self.server
            .call(
                &self.scripts.invalidate,
                &self.record(key),
                |generation, script| {
                    script.arg(generation).arg(self.marks.next().0);
                    script.arg(millis(self.options.floor_ttl)).arg(&version);
                    script.key(stream::name(&self.options));
                    script.arg(self.options.backlog).arg(key);
                },
            )
            .await
    }

    async fn lease_of(&self, key: &[u8], mark: Mark, ttl: Duration) -> Result<Lease> {
        let number = self.marks.next().0;
        let left: u64 = self
            .server
            .call(
                &self.scripts.lease,
                &self.record(key),
                |generation, script| {
                    script.arg(generation).arg(mark.0).arg(number);
                    script.arg(millis(ttl));
                },
            )
            .await?;
        Ok(match left {
            0 => Lease::Granted(number),
            left => Lease::Held(Duration::from_micros(left)),
        })
    }

    /// Those who follow are told last: they must find nothing here that is yet to go.
    async fn remove_all(&self) -> Result<()> {
        let prefix = self.options.prefix.as_bytes();
        self.server.remove_all(prefix).await?;
        if self.options.backlog == 0 {
            return Ok(());
        }
        let give = |_: &str, script: &mut redis::ScriptInvocation<'_>| {
            script.arg(self.marks.next().0);
            script.arg(self.options.backlog).arg(stream::ALL);
        };
        let stream = stream::name(&self.options);
        let _: String = self.server.call(&self.scripts.tell, stream, give).await?;
        Ok(())
    }
}

impl Tier for Redis {
    fn look<'a>(&'a self, key: &'a Bytes) -> BoxFuture<'a, Result<Looked<Bytes>>> {
        Box::pin(self.look_at(key))
    }

    fn put<'a>(
        &'a self,
        key: &'a Bytes,
        mark: Mark,
        cached: Cached<Bytes>,
    ) -> BoxFuture<'a, Result<Put>> {
        Box::pin(self.put_into(key, mark, cached))
    }

    fn invalidate<'a>(
        &'a self,
        key: &'a Bytes,
        invalidation: Invalidation,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.note(key, invalidation))
    }

    fn clear(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.remove_all())
    }

    fn lease<'a>(
        &'a self,
        key: &'a Bytes,
        mark: Mark,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Lease>> {
        Box::pin(self.lease_of(key, mark, ttl))
    }

    fn release<'a>(&'a self, key: &'a Bytes, mark: Mark, number: u64) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let record = self.record(key);
            let give = |_: &str, script: &mut redis::ScriptInvocation<'_>| {
                script.arg(mark.0).arg(number);
            };
            self.server.call(&self.scripts.release, &record, give).await
        })
    }
}

/// Marks that no other process gives: a random beginning, and each number once.
struct Marks {
    next: AtomicU64,
}

impl Marks {
    fn new() -> Self {
        Marks {
            next: AtomicU64::new(RandomState::new().build_hasher().finish()),
        }
    }

    fn next(&self) -> Mark {
        // An odd factor: numbers that differ stay so, and processes that begin near each other part.
        let n = self.next.fetch_add(1, Relaxed);
        Mark(n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis())
        .unwrap_or(u64::MAX)
        .clamp(1, 1 << 40)
}

fn damaged(what: &str) -> Error {
    let message =
        format!("a record in Redis has no {what}: something else writes under this prefix");
    Error::new(ErrorKind::Unavailable, message)
}
