//! The watch over the primary: what its log held, and when.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::backend::{Backend, Standing};
use crate::pool::Lane;
use crate::route::Watermarks;
use crate::{Error, ErrorKind, Result};

/// What is known of the primary.
#[derive(Debug, Default)]
pub(crate) struct Primary {
    trouble: Mutex<Option<String>>,
}

impl Primary {
    /// Why it can't be relied on; `None` while it can.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }
}

/// An error unless it takes writes. A PostgreSQL server that takes writes does so until it ends its
/// connections: what is checked of a new connection holds for its life.
pub(crate) fn check(standing: &Standing) -> Result<()> {
    if standing.writable {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unavailable,
        "it takes no writes: it is a replica, or read-only",
    ))
}

pub(crate) struct Watch<DB: Backend> {
    pub primary: Arc<Primary>,
    pub lane: Arc<Lane<DB>>,
    pub marks: Arc<Mutex<Watermarks>>,
    pub changed: Arc<tokio::sync::watch::Sender<()>>,
    pub every: Duration,
}

impl<DB: Backend> Watch<DB> {
    pub async fn run(self) {
        let mut connection = None;
        loop {
            let trouble = match self.look(&mut connection).await {
                Ok(()) => None,
                Err(error) => {
                    connection = None;
                    Some(error.message().to_owned())
                }
            };
            *self.primary.trouble.lock() = trouble;
            self.changed.send_replace(());
            tokio::time::sleep(self.every).await;
        }
    }

    async fn look(&self, connection: &mut Option<DB::Connection>) -> Result<()> {
        let mut own = match connection.take() {
            Some(own) => own,
            None => self.lane.connect().await?,
        };
        let asked = Instant::now();
        let asking = DB::standing(&mut own);
        let standing = match tokio::time::timeout(self.lane.options().patience, asking).await {
            Ok(standing) => standing?,
            Err(_) => return Err(Error::new(ErrorKind::Unavailable, "it does not answer")),
        };
        check(&standing)?;
        if let Some(position) = standing.position {
            self.marks.lock().add(asked, position);
        }
        *connection = Some(own);
        Ok(())
    }
}
