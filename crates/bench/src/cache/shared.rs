//! [`Telling`]: a tier in memory that processes share, and that tells who follows it of what is written.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_cache::Result;
use quorate_cache::core::{Cached, Invalidation, Looked, Mark, Put};
use quorate_cache::invalidations::{Batch, Invalidations, Message, Position, Told};
use quorate_cache::tier::{Memory, Tier};
use quorate_kv::BoxFuture;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::rows::Shared;

/// The tier.
pub struct Telling {
    memory: Memory,
    told: Mutex<Vec<Told>>,
    said: Notify,
    /// Messages of which it tells everybody that they say nothing: one in so many. 0: none.
    hides_one_in: u64,
}

impl Telling {
    /// An empty one.
    pub fn new(hides_one_in: u64) -> Arc<Telling> {
        Arc::new(Telling {
            memory: Memory::new(1 << 24),
            told: Mutex::default(),
            said: Notify::new(),
            hides_one_in,
        })
    }

    /// What a process has of it.
    pub fn shared(self: &Arc<Self>) -> Shared {
        Shared {
            tier: self.clone(),
            told: Box::new(End(self.clone())),
        }
    }

    fn tell(&self, told: Told) {
        self.told.lock().push(told);
        self.said.notify_waiters();
    }

    fn batch(&self, position: Option<&Position>) -> Batch {
        let told = self.told.lock();
        let heard = position.map_or(told.len(), |at| at.number as usize);
        let message = |(told, number): (&Told, u64)| Message {
            number,
            told: match number.is_multiple_of(self.hides_one_in) {
                true => Told::Nothing,
                false => told.clone(),
            },
        };
        Batch {
            stream: "one".into(),
            messages: told[heard..]
                .iter()
                .zip(heard as u64 + 1..)
                .map(message)
                .collect(),
            end: Some(told.len() as u64),
        }
    }
}

impl Tier for Telling {
    fn look<'a>(&'a self, key: &'a Bytes) -> BoxFuture<'a, Result<Looked<Bytes>>> {
        self.memory.look(key)
    }

    fn put<'a>(
        &'a self,
        key: &'a Bytes,
        mark: Mark,
        cached: Cached<Bytes>,
    ) -> BoxFuture<'a, Result<Put>> {
        self.memory.put(key, mark, cached)
    }

    fn invalidate<'a>(
        &'a self,
        key: &'a Bytes,
        invalidation: Invalidation,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            // Who hears of it finds nothing older here.
            self.memory.invalidate(key, invalidation).await?;
            self.tell(Told::Key(key.clone(), invalidation));
            Ok(())
        })
    }

    fn clear(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.memory.clear().await?;
            self.tell(Told::All);
            Ok(())
        })
    }
}

struct End(Arc<Telling>);

impl Invalidations for End {
    fn after<'a>(
        &'a mut self,
        position: Option<&'a Position>,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Batch>> {
        let of = &self.0;
        Box::pin(async move {
            let mut said = std::pin::pin!(of.said.notified());
            said.as_mut().enable();
            let batch = of.batch(position);
            if position.is_none() || !batch.messages.is_empty() {
                return Ok(batch);
            }
            // Whether it comes or not, what there is then is the answer.
            let _ = timeout(wait, said).await;
            Ok(of.batch(position))
        })
    }
}
