//! LISTEN and NOTIFY as a hint between processes.
//!
//! A NOTIFY inside every business transaction takes a lock of the whole database at commit and costs a
//! third of its throughput and more. So enqueuing does not notify; who needs the last milliseconds calls
//! [`PgOutbox::notify`] after the commit. A lost hint costs one polling interval, never a message.

use sqlx::postgres::PgListener;

use super::PgOutbox;
use crate::Result;

const CHANNEL: &str = "quorate_outbox";

impl PgOutbox {
    /// Tells relays of other processes that something was committed.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn notify(&self) -> Result<()> {
        sqlx::query("SELECT pg_notify($1, '')")
            .bind(CHANNEL)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Listens for [`PgOutbox::notify`] of other processes and wakes the relays of this one, until it is
    /// dropped. Reconnects by itself.
    ///
    /// # Errors
    /// `Unavailable` when the first connection fails.
    pub async fn listen(&self) -> Result<PgHints> {
        let mut listener = PgListener::connect_with(&self.pool).await?;
        listener.listen(CHANNEL).await?;
        let hint = self.inner.hint.clone();
        let task = tokio::spawn(async move {
            let mut wait = crate::backoff::Backoff::new(
                std::time::Duration::from_millis(50),
                std::time::Duration::from_secs(5),
            );
            loop {
                match listener.recv().await {
                    Ok(_) => {
                        wait.reset();
                        hint.notify_waiters();
                    }
                    Err(error) => {
                        tracing::debug!(%error, "hints are not heard for now");
                        tokio::time::sleep(wait.next()).await;
                    }
                }
            }
        });
        Ok(PgHints { task })
    }
}

/// Listens as long as it lives.
pub struct PgHints {
    task: tokio::task::JoinHandle<()>,
}

impl Drop for PgHints {
    fn drop(&mut self) {
        self.task.abort();
    }
}
