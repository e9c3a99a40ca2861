//! A consumer whose runtime ends under it, as when `main` returns without draining: the callbacks of the
//! Kafka library, which have nothing to run on any more, must not bring the process down.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use quorate_outbox::Consumer;
use quorate_outbox::inbox::PgInbox;
use tokio::runtime::Runtime;

use crate::{Settings, consumer};

const SOON: Duration = Duration::from_secs(60);

/// Starts a consumer in a runtime, ends the runtime, and waits until the consumer's thread has ended.
pub fn run(settings: Settings) -> Result<()> {
    let runtime = Runtime::new()?;
    let started: Result<_> = runtime.block_on(async {
        let inbox = PgInbox::open(settings.pool().await?).await?;
        let mut options = consumer::options(settings.get("topic")?, 10);
        options.group = Some(format!("abandon-{}", uuid::Uuid::now_v7()));
        let handler = Arc::new(consumer::Effects::default());
        let broker = Arc::new(settings.kafka()?);
        let consumer = Consumer::start(inbox, broker, handler, options).await?;
        let end = Instant::now() + SOON;
        while consumer.status().partitions.is_empty() {
            if Instant::now() > end {
                bail!("no partition: {:?}", consumer.status());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(consumer)
    });
    // Not drained, not even dropped.
    std::mem::forget(started?);
    runtime.shutdown_background();
    let end = Instant::now() + SOON;
    while polls()? {
        if Instant::now() > end {
            bail!("the consumer's thread does not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Whether the thread that polls is there.
fn polls() -> Result<bool> {
    for task in std::fs::read_dir("/proc/self/task")? {
        let name = std::fs::read_to_string(task?.path().join("comm"));
        if name.is_ok_and(|name| name.trim() == "quorate-kafka") {
            return Ok(true);
        }
    }
    Ok(false)
}
