//! The inbox in a MySQL (8.0 or newer) or MariaDB (10.6 or newer) database.
//!
//! Its statements are not those of the other databases: MySQL has no RETURNING, another ON CONFLICT, and keeps text
//! as bytes here. And a transaction that a deadlock has ended goes on, statement by statement: so before anything
//! is written after a handler, and at the commit, it is made sure that it is the transaction that was begun.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use sqlx::mysql::MySqlRow;
use sqlx::{AssertSqlSafe, Connection, MySql, MySqlConnection, MySqlPool, QueryBuilder, Row};
use uuid::Uuid;

use super::ledger::{Ledger, LedgerTx, Position, State, Stream, Waiting};
use super::now_ms;
use super::sql::{READY, WAITING, place};
use crate::message::{headers_from_text, headers_to_text};
use crate::mysql::session::{self, KEY_BYTES, NAME_BYTES, Tx, fits, text};
use crate::store::{Which, Wish};
use crate::{Delivery, Error, ErrorKind, Partition, Result};

const VERSION: i64 = 1;
/// The version last: without it the rest is made again. MySQL commits each by itself.
const TABLES: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS quorate_inbox_position (
        consumer VARBINARY(255) NOT NULL, topic VARBINARY(255) NOT NULL, number INT NOT NULL,
        generation BIGINT NOT NULL, next BIGINT NOT NULL, PRIMARY KEY (consumer, topic, number)",
    "CREATE TABLE IF NOT EXISTS quorate_inbox_key (
        consumer VARBINARY(255) NOT NULL, source VARBINARY(255) NOT NULL,
        topic VARBINARY(255) NOT NULL, `key` VARBINARY(2048) NOT NULL, last_seq BIGINT NOT NULL,
        PRIMARY KEY (consumer, source, topic, `key`)",
    "CREATE TABLE IF NOT EXISTS quorate_inbox_seen (
        consumer VARBINARY(255) NOT NULL, message_id BINARY(16) NOT NULL, at_ms BIGINT NOT NULL,
        PRIMARY KEY (consumer, message_id), KEY quorate_inbox_seen_at (consumer, at_ms)",
    "CREATE TABLE IF NOT EXISTS quorate_inbox_parked (
        consumer VARBINARY(255) NOT NULL, message_id BINARY(16) NOT NULL,
        source VARBINARY(255) NOT NULL, topic VARBINARY(255) NOT NULL, number INT NOT NULL,
        at BIGINT NOT NULL, `key` VARBINARY(2048), seq BIGINT, headers MEDIUMBLOB NOT NULL,
        payload LONGBLOB NOT NULL, state INT NOT NULL, reason MEDIUMBLOB NOT NULL,
        attempts BIGINT NOT NULL, wish INT NOT NULL, parked_ms BIGINT NOT NULL,
        PRIMARY KEY (consumer, message_id),
        KEY quorate_inbox_parked_stream (consumer, source, topic, `key`, seq)",
    "CREATE TABLE IF NOT EXISTS quorate_inbox_schema (
        only_one TINYINT NOT NULL PRIMARY KEY, version INT NOT NULL",
];
/// So many rows in one statement.
const ROWS: usize = 128;
/// So many rows are deleted at once.
const FORGET_ROWS: u64 = 10_000;
/// Tells whether a transaction is still the one that was begun.
const MARK: &str = "quorate_inbox";

/// The inbox in a MySQL or MariaDB database. Cheap to clone. Its transactions are at READ COMMITTED.
#[derive(Clone)]
pub struct MySqlInbox {
    pool: MySqlPool,
}

/// A transaction of the inbox.
pub struct MySqlInboxTx(Tx);

impl MySqlInbox {
    /// Makes the tables, unless they are there, and opens the inbox. A migration that died half way is gone on
    /// with.
    ///
    /// # Errors
    /// `Schema` when the tables are of another version; `Unavailable`.
    pub async fn migrate(pool: MySqlPool) -> Result<MySqlInbox> {
        let mut connection = crate::mysql::migration_lock(&pool, MARK).await?;
        let found = match version(&mut connection).await {
            Err(error) if error.kind() == ErrorKind::Missing => None,
            found => found?,
        };
        if found.is_none() {
            for table in TABLES {
                let text = format!("{table}{}", crate::mysql::ENGINE);
                session::run(&mut connection, text).await?;
            }
            sqlx::query("INSERT INTO quorate_inbox_schema VALUES (1, ?)")
                .bind(VERSION)
                .execute(&mut connection)
                .await?;
        }
        connection.close().await?;
        MySqlInbox::open(pool).await
    }

    /// Opens an inbox whose tables are there.
    ///
    /// # Errors
    /// `Missing`; `Schema` when they are of another version; `Invalid` when sessions of the pool do not commit
    /// by themselves, or read what is not committed.
    pub async fn open(pool: MySqlPool) -> Result<MySqlInbox> {
        session::check(&pool).await?;
        let found = version(&mut *pool.acquire().await?).await?;
        super::sql::check_version(found, VERSION)?;
        Ok(MySqlInbox { pool })
    }
}

/// The version of the tables; `None` where a migration died before it was written.
async fn version(connection: &mut MySqlConnection) -> Result<Option<i64>> {
    let row = sqlx::query("SELECT version FROM quorate_inbox_schema")
        .fetch_optional(connection)
        .await
        .map_err(super::sql::open_error)?;
    Ok(row.map(|row| row.try_get(0)).transpose()?)
}

/// Reads a row of [`WAITING`], and says whether it could be read whole. What can't be is no error, so that other
/// messages go on: it is shown, with its place, and can be skipped.
fn waiting_of(row: &MySqlRow) -> Result<(Waiting, bool)> {
    let id: Uuid = row.try_get(0)?;
    let mut reason = lossy(row, 8)?.unwrap_or_default();
    let read = text(row, 5).and_then(|text| headers_from_text(&text));
    let names = [1, 4, 11].map(|column| session::optional(row, column).map(|_| ()));
    let read = names.into_iter().collect::<Result<()>>().and(read);
    let is_whole = read.is_ok();
    let headers = match read {
        Ok(headers) => headers,
        Err(error) => {
            reason = error.to_string();
            place(id, lossy(row, 11)?.unwrap_or_default(), row.try_get(12)?)
        }
    };
    let waiting = Waiting {
        id,
        message: Delivery {
            partition: Partition {
                topic: lossy(row, 1)?.unwrap_or_default(),
                number: row.try_get(2)?,
            },
            offset: row.try_get(3)?,
            assignment: 0,
            key: lossy(row, 4)?,
            headers,
            payload: row.try_get::<Vec<u8>, _>(6)?.into(),
        },
        state: State::of(row.try_get(7)?),
        reason,
        attempts: row.try_get(9)?,
        wish: Wish::of(row.try_get(10)?),
    };
    Ok((waiting, is_whole))
}

fn lossy(row: &MySqlRow, column: usize) -> Result<Option<String>> {
    let bytes: Option<Vec<u8>> = row.try_get(column)?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

fn check_consumer(consumer: &str) -> Result<()> {
    fits("the consumer's name", consumer, NAME_BYTES)
}

fn check_stream(stream: &Stream) -> Result<()> {
    fits("source", &stream.source, NAME_BYTES)?;
    fits("topic", &stream.topic, NAME_BYTES)?;
    fits("key", &stream.key, KEY_BYTES)
}

impl Ledger for MySqlInbox {
    type Connection = MySqlConnection;
    type Tx = MySqlInboxTx;

    async fn begin(&self, patience: Duration) -> Result<MySqlInboxTx> {
        // The handler's own time-out comes first, where somebody is awake to notice it.
        let idle = patience.saturating_add(session::IDLE);
        Ok(MySqlInboxTx(Tx::begin(&self.pool, idle, Some(MARK)).await?))
    }

    async fn claim(&self, consumer: &str, partition: &Partition) -> Result<Position> {
        check_consumer(consumer)?;
        fits("topic", &partition.topic, NAME_BYTES)?;
        let claimed = sqlx::query(
            "INSERT INTO quorate_inbox_position (consumer, topic, number, generation, next)
             VALUES (?, ?, ?, LAST_INSERT_ID(1), -1)
             ON DUPLICATE KEY UPDATE generation = LAST_INSERT_ID(generation + 1)",
        )
        .bind(consumer.as_bytes())
        .bind(partition.topic.as_bytes())
        .bind(partition.number)
        .execute(&self.pool)
        .await?;
        // Whoever had it before can't move it any more.
        let row = sqlx::query(
            "SELECT next FROM quorate_inbox_position WHERE consumer = ? AND topic = ? AND number = ?",
        )
        .bind(consumer.as_bytes())
        .bind(partition.topic.as_bytes())
        .bind(partition.number)
        .fetch_one(&self.pool)
        .await?;
        let next: i64 = row.try_get(0)?;
        Ok(Position {
            generation: claimed.last_insert_id() as i64,
            next: (next >= 0).then_some(next),
        })
    }

    async fn ready(&self, consumer: &str, limit: usize) -> Result<Vec<Waiting>> {
        let text = format!("SELECT {WAITING} {READY}");
        let text = text.replace("$1", "?").replace("$2", "?");
        let rows = sqlx::query(AssertSqlSafe(text))
            .bind(consumer.as_bytes())
            .bind(limit as i64)
            .fetch_all(&self.pool)
            .await?;
        let mut ready = Vec::with_capacity(rows.len());
        for row in &rows {
            let (waiting, is_whole) = waiting_of(row)?;
            // Its handler can't be given what can't be read.
            if is_whole || matches!(waiting.wish, Wish::Skip | Wish::Drop) {
                ready.push(waiting);
            }
        }
        Ok(ready)
    }

    async fn waiting(
        &self,
        consumer: &str,
        which: Option<&Which>,
        limit: usize,
    ) -> Result<Vec<Waiting>> {
        let mut query: QueryBuilder<MySql> = QueryBuilder::new(format!(
            "SELECT {WAITING} FROM quorate_inbox_parked p WHERE p.consumer = "
        ));
        query.push_bind(consumer.as_bytes());
        match which {
            None => {}
            Some(Which::Stream { topic, key }) => {
                query.push(" AND p.topic = ").push_bind(topic.as_bytes());
                query.push(" AND p.`key` = ").push_bind(key.as_bytes());
            }
            Some(Which::Message(id)) => {
                query.push(" AND p.message_id = ").push_bind(*id);
            }
        }
        query.push(" ORDER BY p.source, p.topic, p.`key`, p.seq, p.parked_ms LIMIT ");
        query.push_bind(i64::try_from(limit).unwrap_or(i64::MAX));
        let rows = query.build().fetch_all(&self.pool).await?;
        rows.iter().map(|row| Ok(waiting_of(row)?.0)).collect()
    }

    async fn consumers(&self) -> Result<Vec<String>> {
        let text = "SELECT consumer FROM quorate_inbox_position
             UNION SELECT consumer FROM quorate_inbox_parked ORDER BY 1";
        let rows = sqlx::query(text).fetch_all(&self.pool).await?;
        rows.iter().map(|row| session::text(row, 0)).collect()
    }

    async fn count(&self, consumer: &str) -> Result<i64> {
        let text = "SELECT count(*) FROM quorate_inbox_parked WHERE consumer = ?";
        let row = sqlx::query(text)
            .bind(consumer.as_bytes())
            .fetch_one(&self.pool)
            .await?;
        Ok(row.try_get(0)?)
    }

    async fn wish(&self, consumer: &str, which: &Which, wish: Wish) -> Result<u64> {
        let number = i64::from(wish.number());
        let query = match which {
            Which::Stream { topic, key } => sqlx::query(
                "UPDATE quorate_inbox_parked SET wish = ?
                 WHERE consumer = ? AND topic = ? AND `key` = ? AND state <> 0",
            )
            .bind(number)
            .bind(consumer.as_bytes())
            .bind(topic.as_bytes())
            .bind(key.as_bytes()),
            Which::Message(id) => sqlx::query(
                "UPDATE quorate_inbox_parked SET wish = ? WHERE consumer = ? AND message_id = ?",
            )
            .bind(number)
            .bind(consumer.as_bytes())
            .bind(id),
        };
        Ok(query.execute(&self.pool).await?.rows_affected())
    }

    async fn forget(&self, consumer: &str, before_ms: i64) -> Result<u64> {
        let mut forgotten = 0;
        loop {
            // At READ COMMITTED nobody who notes an id waits for it.
            let mut tx = Tx::begin(&self.pool, session::IDLE, None).await?;
            let done = sqlx::query(
                "DELETE FROM quorate_inbox_seen WHERE consumer = ? AND at_ms < ? LIMIT 10000",
            )
            .bind(consumer.as_bytes())
            .bind(before_ms)
            .execute(tx.connection())
            .await?;
            tx.commit().await.map_err(session::commit_error)?;
            forgotten += done.rows_affected();
            if done.rows_affected() < FORGET_ROWS {
                return Ok(forgotten);
            }
        }
    }
}

impl LedgerTx for MySqlInboxTx {
    type Connection = MySqlConnection;

    fn connection(&mut self) -> &mut MySqlConnection {
        self.0.connection()
    }

    async fn advance(
        &mut self,
        consumer: &str,
        partition: &Partition,
        generation: i64,
        next: i64,
    ) -> Result<i64> {
        let before = sqlx::query(
            "SELECT next FROM quorate_inbox_position
             WHERE consumer = ? AND topic = ? AND number = ? AND generation = ? FOR UPDATE",
        )
        .bind(consumer.as_bytes())
        .bind(partition.topic.as_bytes())
        .bind(partition.number)
        .bind(generation)
        .fetch_optional(self.connection())
        .await?;
        let Some(before) = before else {
            let text = format!(
                "partition {} of `{}` is another consumer's by now",
                partition.number, partition.topic
            );
            return Err(Error::new(ErrorKind::Fenced, text));
        };
        sqlx::query(
            "UPDATE quorate_inbox_position SET next = ?
             WHERE consumer = ? AND topic = ? AND number = ?",
        )
        .bind(next)
        .bind(consumer.as_bytes())
        .bind(partition.topic.as_bytes())
        .bind(partition.number)
        .execute(self.connection())
        .await?;
        Ok(before.try_get(0)?)
    }

    async fn last_seqs(
        &mut self,
        consumer: &str,
        streams: &[Stream],
    ) -> Result<HashMap<Stream, i64>> {
        let mut sorted: Vec<&Stream> = streams.iter().collect();
        // Locked in one order for everybody.
        sorted.sort_by(|a, b| (&a.source, &a.topic, &a.key).cmp(&(&b.source, &b.topic, &b.key)));
        let mut last = HashMap::new();
        for streams in sorted.chunks(ROWS) {
            let mut query: QueryBuilder<MySql> = QueryBuilder::new(
                "SELECT source, topic, `key`, last_seq FROM quorate_inbox_key WHERE consumer = ",
            );
            for stream in streams {
                check_stream(stream)?;
            }
            query.push_bind(consumer.as_bytes());
            query.push(" AND (source, topic, `key`) IN ");
            query.push_tuples(streams, |mut tuple, stream| {
                tuple
                    .push_bind(stream.source.as_bytes())
                    .push_bind(stream.topic.as_bytes())
                    .push_bind(stream.key.as_bytes());
            });
            query.push(" ORDER BY source, topic, `key` FOR UPDATE");
            let alone = streams.len() == 1;
            let rows = query.build().persistent(alone).fetch_all(self.connection());
            for row in rows.await? {
                let stream = Stream {
                    source: text(&row, 0)?,
                    topic: text(&row, 1)?,
                    key: text(&row, 2)?,
                };
                last.insert(stream, row.try_get(3)?);
            }
        }
        Ok(last)
    }

    async fn set_seqs(&mut self, consumer: &str, seqs: &[(Stream, i64)]) -> Result<()> {
        self.0.is_alive().await?;
        for seqs in seqs.chunks(ROWS) {
            for (stream, _) in seqs {
                check_stream(stream)?;
            }
            let mut query: QueryBuilder<MySql> = QueryBuilder::new(
                "INSERT INTO quorate_inbox_key (consumer, source, topic, `key`, last_seq) ",
            );
            query.push_values(seqs, |mut row, (stream, seq)| {
                row.push_bind(consumer.as_bytes())
                    .push_bind(stream.source.as_bytes())
                    .push_bind(stream.topic.as_bytes())
                    .push_bind(stream.key.as_bytes())
                    .push_bind(*seq);
            });
            query.push(" ON DUPLICATE KEY UPDATE last_seq = VALUES(last_seq)");
            let query = query.build().persistent(seqs.len() == 1);
            query.execute(self.connection()).await?;
        }
        Ok(())
    }

    async fn note(&mut self, consumer: &str, ids: &[Uuid]) -> Result<HashSet<Uuid>> {
        let mut fresh: HashSet<Uuid> = ids.iter().copied().collect();
        for ids in ids.chunks(ROWS) {
            let mut query: QueryBuilder<MySql> =
                QueryBuilder::new("SELECT message_id FROM quorate_inbox_seen WHERE consumer = ");
            query
                .push_bind(consumer.as_bytes())
                .push(" AND message_id IN (");
            let mut list = query.separated(", ");
            for id in ids {
                list.push_bind(*id);
            }
            query.push(")");
            let query = query.build().persistent(ids.len() == 1);
            for row in query.fetch_all(self.connection()).await? {
                fresh.remove(&row.try_get(0)?);
            }
        }
        // One that another transaction notes at this moment is a duplicate key: then this one is tried again.
        let ids: Vec<Uuid> = fresh.iter().copied().collect();
        for ids in ids.chunks(ROWS) {
            let mut query: QueryBuilder<MySql> =
                QueryBuilder::new("INSERT INTO quorate_inbox_seen (consumer, message_id, at_ms) ");
            query.push_values(ids, |mut row, id| {
                row.push_bind(consumer.as_bytes())
                    .push_bind(*id)
                    .push_bind(now_ms());
            });
            let query = query.build().persistent(ids.len() == 1);
            query.execute(self.connection()).await?;
        }
        Ok(fresh)
    }

    async fn check(&mut self) -> Result<()> {
        self.0.is_alive().await
    }

    async fn park(&mut self, consumer: &str, waiting: &Waiting) -> Result<()> {
        self.0.is_alive().await?;
        let message = &waiting.message;
        fits("source", message.source(), NAME_BYTES)?;
        fits("key", message.key.as_deref().unwrap_or_default(), KEY_BYTES)?;
        sqlx::query(
            "INSERT INTO quorate_inbox_parked
                (consumer, message_id, source, topic, number, at, `key`, seq, headers,
                 payload, state, reason, attempts, wish, parked_ms)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?)
             ON DUPLICATE KEY UPDATE state = VALUES(state), reason = VALUES(reason),
                attempts = VALUES(attempts), wish = 0",
        )
        .bind(consumer.as_bytes())
        .bind(waiting.id)
        .bind(message.source().as_bytes())
        .bind(message.partition.topic.as_bytes())
        .bind(message.partition.number)
        .bind(message.offset)
        .bind(message.key.as_deref().map(str::as_bytes))
        .bind(message.key.as_ref().and_then(|_| message.seq()))
        .bind(headers_to_text(&message.headers).into_bytes())
        .bind(&message.payload[..])
        .bind(waiting.state.number())
        .bind(waiting.reason.as_bytes())
        .bind(waiting.attempts)
        .bind(now_ms())
        .execute(self.connection())
        .await?;
        Ok(())
    }

    async fn unpark(&mut self, consumer: &str, id: Uuid) -> Result<bool> {
        self.0.is_alive().await?;
        let done =
            sqlx::query("DELETE FROM quorate_inbox_parked WHERE consumer = ? AND message_id = ?")
                .bind(consumer.as_bytes())
                .bind(id)
                .execute(self.connection())
                .await?;
        Ok(done.rows_affected() == 1)
    }

    async fn commit(self) -> Result<()> {
        self.0.commit().await.map_err(session::commit_error)
    }
}
