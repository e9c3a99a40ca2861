//! [`PgInvalidations`]: what a PostgreSQL database notifies.
//!
//! Whoever writes notifies a channel in the same transaction, as a trigger does for all writers, also those that know
//! no cache:
//!
//! ```sql
//! CREATE FUNCTION tell_cache() RETURNS trigger LANGUAGE plpgsql AS $$
//!   BEGIN PERFORM pg_notify('cache', 'user/' || NEW.id); RETURN NULL; END $$;
//! CREATE TRIGGER tell_cache AFTER INSERT OR UPDATE ON users FOR EACH ROW EXECUTE FUNCTION tell_cache();
//! ```
//!
//! The server hands a notification out after the commit is visible, in the order of commits, and to who listens at the
//! time alone. So the stream of invalidations is a session: its name is the session's, the numbers are counted here,
//! and a session that ends takes its stream along, after which the tier of this process is emptied. `PgListener::recv`
//! of sqlx makes a new session without a word and loses what was notified in between; its `try_recv` tells, and
//! that is what is used here.
//!
//! That all was heard is proven by a notification to oneself, on a channel of one's own: what was committed before it
//! comes before it. A notification takes a lock of the whole database at commit: with many writers that notify,
//! measure.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_kv::BoxFuture;
use sqlx::PgPool;
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::time::{Instant, timeout};

use super::{Batch, Invalidations, Message, Position, Told};
use crate::core::Invalidation;
use crate::{Error, ErrorKind, Result};

/// Room for what is appended to a name of at most 63 bytes.
const CHANNEL_BYTES_MAX: usize = 40;

/// What a payload says; `None`: it can't be read, and all is dropped.
type Decode = Box<dyn Fn(&str) -> Option<(Bytes, Invalidation)> + Send + Sync>;

/// What a PostgreSQL database notifies on a channel. Has a connection of its own, by the pool's options, and now and then
/// takes one from the pool for a moment.
pub struct PgInvalidations {
    pool: PgPool,
    channel: String,
    /// The channel of this listener alone.
    beats: String,
    read: Decode,
    patience: Duration,
    session: Option<Session>,
    sessions: u64,
}

struct Session {
    listener: PgListener,
    name: Arc<str>,
    number: u64,
    /// What was heard past the position that was asked for last.
    messages: VecDeque<Message>,
    beat: u64,
    beaten: Option<Instant>,
}

enum Said {
    Message,
    Beat(u64),
}

impl PgInvalidations {
    /// Listens to a channel of at most 40 bytes. A payload is the key that was written, at an unknown version; an empty
    /// one is all keys. Connects later.
    ///
    /// # Errors
    /// `Invalid`: that can't be a channel.
    pub fn new(pool: PgPool, channel: &str) -> Result<Self> {
        if channel.is_empty() || channel.len() > CHANNEL_BYTES_MAX || channel.contains('\0') {
            let message =
                format!("a channel has 1 to {CHANNEL_BYTES_MAX} bytes and no zero: {channel:?}");
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let number = RandomState::new().build_hasher().finish();
        Ok(PgInvalidations {
            pool,
            channel: channel.to_owned(),
            beats: format!("{channel}.{number:016x}"),
            read: Box::new(|key| {
                let key = Bytes::copy_from_slice(key.as_bytes());
                (!key.is_empty()).then_some((key, Invalidation::Unknown))
            }),
            patience: Duration::from_secs(2),
            session: None,
            sessions: 0,
        })
    }

    /// Reads payloads in another way, as one with a version. Of what it answers `None` to all is dropped.
    pub fn read_by(
        mut self,
        read: impl Fn(&str) -> Option<(Bytes, Invalidation)> + Send + Sync + 'static,
    ) -> Self {
        self.read = Box::new(read);
        self
    }

    async fn ask(&mut self, position: Option<&Position>, wait: Duration) -> Result<Batch> {
        let Some(session) = &mut self.session else {
            return self.begin().await;
        };
        let here = position.filter(|at| at.stream == session.name);
        let heard = here.map_or(u64::MAX, |at| at.number);
        session.messages.retain(|message| message.number > heard);
        let heard = self.hear(here.is_some(), wait).await;
        let Some(session) = self.session.as_mut().filter(|_| heard.is_ok()) else {
            self.session = None;
            return Err(heard.err().unwrap_or_else(ended));
        };
        if here.is_none() {
            session.messages.clear();
        }
        Ok(Batch {
            stream: session.name.clone(),
            messages: session.messages.iter().cloned().collect(),
            end: heard?.then_some(session.number),
        })
    }

    /// A new session, which hears what is committed from now on.
    async fn begin(&mut self) -> Result<Batch> {
        // A pool of its own each time: what a lost connection still holds is not the others'.
        let options = self.pool.connect_options().as_ref().clone();
        let own = PgPoolOptions::new().max_connections(1);
        let own = own
            .acquire_timeout(self.patience)
            .connect_lazy_with(options);
        let mut listener = PgListener::connect_with(&own).await.map_err(failed)?;
        listener.eager_reconnect(false);
        let channels = [self.channel.as_str(), self.beats.as_str()];
        listener.listen_all(channels).await.map_err(failed)?;
        self.sessions += 1;
        let name: Arc<str> = format!("{}/{}", self.beats, self.sessions).into();
        self.session = Some(Session {
            listener,
            name: name.clone(),
            number: 0,
            messages: VecDeque::new(),
            beat: 0,
            beaten: None,
        });
        Ok(Batch {
            stream: name,
            messages: Vec::new(),
            end: Some(0),
        })
    }

    /// Waits for a message; and answers whether all was heard that was committed before.
    async fn hear(&mut self, may_wait: bool, wait: Duration) -> Result<bool> {
        let session = self.session.as_mut().ok_or_else(ended)?;
        if may_wait && session.messages.is_empty() {
            // Dropping the wait loses nothing: the connection keeps what it has read.
            if let Ok(said) = timeout(wait, session.next(&self.read, &self.beats)).await {
                said?;
            }
        }
        let is_recent = session.beaten.is_some_and(|at| at.elapsed() < wait);
        if may_wait && is_recent && !session.messages.is_empty() {
            return Ok(false);
        }
        session.beat += 1;
        let beat = session.beat;
        let until_heard = async {
            sqlx::query("SELECT pg_notify($1, $2)")
                .bind(&self.beats)
                .bind(beat.to_string())
                .execute(&self.pool)
                .await
                .map_err(failed)?;
            loop {
                match session.next(&self.read, &self.beats).await? {
                    Said::Beat(number) if number >= beat => return Ok(()),
                    _ => {}
                }
            }
        };
        let patience = self.patience;
        let in_time = timeout(patience, until_heard).await;
        in_time.unwrap_or_else(|_| {
            let message = format!("PostgreSQL did not notify within {patience:?}");
            Err(Error::new(ErrorKind::Timeout, message))
        })?;
        session.beaten = Some(Instant::now());
        Ok(true)
    }
}

impl Session {
    async fn next(&mut self, read: &Decode, beats: &str) -> Result<Said> {
        // `None`: the connection was lost, and what is notified from now on.
        let notification = self.listener.try_recv().await.map_err(failed)?;
        let notification = notification.ok_or_else(ended)?;
        if notification.channel() == beats {
            let number = notification.payload().parse();
            return Ok(Said::Beat(number.unwrap_or_default()));
        }
        self.number += 1;
        let said = read(notification.payload());
        self.messages.push_back(Message {
            number: self.number,
            told: said.map_or(Told::All, |(key, invalidation)| {
                Told::Key(key, invalidation)
            }),
        });
        Ok(Said::Message)
    }
}

impl Invalidations for PgInvalidations {
    fn after<'a>(
        &'a mut self,
        position: Option<&'a Position>,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Batch>> {
        Box::pin(self.ask(position, wait))
    }
}

fn ended() -> Error {
    let message = "the session that listens to PostgreSQL has ended";
    Error::new(ErrorKind::Unavailable, message)
}

fn failed(error: sqlx::Error) -> Error {
    Error::new(ErrorKind::Unavailable, format!("PostgreSQL: {error}"))
}
