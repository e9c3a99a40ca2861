//! Records read ahead of their use, on a thread of their own, in bounded memory.

use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::input::{InputError, Record, Records};

/// What may be read and not yet used up, in KiB of keys and values. More than any one record.
const ROOM_KIB: usize = 64 << 10;
/// How many records may be read ahead.
const AHEAD: usize = 1024;

/// One record, or what stands in its place.
pub struct Item {
    /// Its number in the input, from 0; malformed ones are counted too.
    pub number: u64,
    /// The record.
    pub record: std::result::Result<Record, InputError>,
    /// Its share of the memory; given back when dropped.
    _room: Option<OwnedSemaphorePermit>,
}

/// The records of an input as they are read.
pub struct Feed {
    items: mpsc::Receiver<Item>,
}

impl Feed {
    /// Begins to read.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(records: Records) -> Result<Feed> {
        let (sender, items) = mpsc::channel(AHEAD);
        let room = Arc::new(Semaphore::new(ROOM_KIB));
        let runtime = Handle::current();
        std::thread::Builder::new()
            .name("input".into())
            .spawn(move || {
                for (number, record) in (0..).zip(records) {
                    let room = record.as_ref().ok().and_then(|record| {
                        let kib = (record.key.len() + record.value.len()).div_ceil(1024);
                        let share = room.clone().acquire_many_owned(kib.min(ROOM_KIB) as u32);
                        runtime.block_on(share).ok()
                    });
                    let item = Item {
                        number,
                        record,
                        _room: room,
                    };
                    // Nobody listens any more: the command has ended.
                    if sender.blocking_send(item).is_err() {
                        return;
                    }
                }
            })
            .context("start the thread that reads")?;
        Ok(Feed { items })
    }

    /// The next record; `None` at the end.
    pub async fn next(&mut self) -> Option<Item> {
        self.items.recv().await
    }
}
