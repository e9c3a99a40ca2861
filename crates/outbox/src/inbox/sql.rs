//! The ledger in SQL. PostgreSQL and SQLite take the same statements but for the tables and row locks; MySQL
//! shares what is read of messages that were set aside.

use uuid::Uuid;

use crate::message::{HEADER_ID, HEADER_SEQ, HEADER_SOURCE};

/// What is read of a message that was set aside.
pub(super) const WAITING: &str = "\
    p.message_id, p.topic, p.number, p.at, p.key, p.headers, p.payload, p.state, p.reason, p.attempts,
    p.wish, p.source, p.seq";
/// Those of a consumer (`$1`) whose turn it is, the oldest first, so many (`$2`).
pub(super) const READY: &str = "\
    FROM quorate_inbox_parked p
    LEFT JOIN quorate_inbox_key k ON k.consumer = p.consumer
        AND k.source = p.source AND k.topic = p.topic AND k.key = p.key
    WHERE p.consumer = $1 AND (
        (p.state = 2 AND p.wish <> 0)
        OR (p.state <> 2 AND p.seq <= coalesce(k.last_seq, 0))
        OR ((p.state = 0 OR (p.state = 1 AND p.wish <> 0)) AND p.seq <= coalesce(k.last_seq, 0) + 1)
        OR (p.state = 0 AND p.wish <> 0 AND NOT EXISTS (
            SELECT 1 FROM quorate_inbox_parked b WHERE b.consumer = p.consumer
            AND b.source = p.source AND b.topic = p.topic AND b.key = p.key AND b.seq < p.seq)))
    ORDER BY p.parked_ms LIMIT $2";

/// Makes a ledger of a kind of pool. `$begin` says how a transaction begins in which handlers may take so long;
/// `$lock` is what ends a SELECT that locks its rows, `$rows` makes rows `t (value)` of the JSON array `$2`, and
/// `$id` an id of such a row.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
macro_rules! sql_ledger {
    ($ledger:ident, $tx:ident, $database:ty, $connection:ty, $row:ty, $begin:ident, $lock:literal,
     $rows:literal, $id:literal) => {
        /// A transaction of the inbox.
        pub struct $tx(sqlx::Transaction<'static, $database>);

        /// Reads a row of [`WAITING`], and says whether it could be read whole. Headers that can't be are no
        /// error, so that other messages go on: it is shown, with its place, and can be skipped.
        fn waiting_of(row: &$row) -> Result<(Waiting, bool)> {
            let id: Uuid = row.try_get(0)?;
            let mut reason: String = row.try_get(8)?;
            let read = headers_from_text(row.try_get(5)?);
            let is_whole = read.is_ok();
            let headers = match read {
                Ok(headers) => headers,
                Err(error) => {
                    reason = error.to_string();
                    super::sql::place(id, row.try_get(11)?, row.try_get(12)?)
                }
            };
            let waiting = Waiting {
                id,
                message: Delivery {
                    partition: Partition {
                        topic: row.try_get(1)?,
                        number: row.try_get(2)?,
                    },
                    offset: row.try_get(3)?,
                    assignment: 0,
                    key: row.try_get(4)?,
                    headers,
                    payload: row.try_get::<Vec<u8>, _>(6)?.into(),
                },
                state: State::of(row.try_get(7)?),
                reason,
                attempts: row.try_get(9)?,
                wish: Wish::of(i64::from(row.try_get::<i32, _>(10)?)),
            };
            Ok((waiting, is_whole))
        }

        impl Ledger for $ledger {
            type Connection = $connection;
            type Tx = $tx;

            async fn begin(&self, patience: Duration) -> Result<$tx> {
                Ok($tx(self.pool.begin_with($begin(patience)).await?))
            }

            async fn claim(&self, consumer: &str, partition: &Partition) -> Result<Position> {
                let row = sqlx::query(
                    "INSERT INTO quorate_inbox_position AS p
                        (consumer, topic, number, generation, next) VALUES ($1, $2, $3, 1, -1)
                     ON CONFLICT (consumer, topic, number)
                     DO UPDATE SET generation = p.generation + 1 RETURNING generation, next",
                )
                .bind(consumer)
                .bind(&partition.topic)
                .bind(partition.number)
                .fetch_one(&self.pool)
                .await?;
                let next: i64 = row.try_get(1)?;
                Ok(Position {
                    generation: row.try_get(0)?,
                    next: (next >= 0).then_some(next),
                })
            }

            async fn ready(&self, consumer: &str, limit: usize) -> Result<Vec<Waiting>> {
                let text = format!("SELECT {WAITING} {READY}");
                let rows = sqlx::query(sqlx::AssertSqlSafe(text))
                    .bind(consumer)
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
                let (topic, key, id) = Which::parameters(which);
                let text = format!(
                    "SELECT {WAITING} FROM quorate_inbox_parked p WHERE p.consumer = $1
                     AND ($2 IS NULL OR (p.topic = $2 AND p.key = $3))
                     AND ($4 IS NULL OR p.message_id = $4)
                     ORDER BY p.source, p.topic, p.key, p.seq, p.parked_ms LIMIT $5"
                );
                let rows = sqlx::query(sqlx::AssertSqlSafe(text))
                    .bind(consumer)
                    .bind(topic)
                    .bind(key)
                    .bind(id)
                    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
                    .fetch_all(&self.pool)
                    .await?;
                rows.iter().map(|row| Ok(waiting_of(row)?.0)).collect()
            }

            async fn consumers(&self) -> Result<Vec<String>> {
                let text = "SELECT consumer FROM quorate_inbox_position
                     UNION SELECT consumer FROM quorate_inbox_parked ORDER BY 1";
                let rows = sqlx::query(text).fetch_all(&self.pool).await?;
                rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
            }

            async fn count(&self, consumer: &str) -> Result<i64> {
                let text = "SELECT count(*) FROM quorate_inbox_parked WHERE consumer = $1";
                let row = sqlx::query(text)
                    .bind(consumer)
                    .fetch_one(&self.pool)
                    .await?;
                Ok(row.try_get(0)?)
            }

            async fn wish(&self, consumer: &str, which: &Which, wish: Wish) -> Result<u64> {
                let number = i32::from(wish.number());
                let query = match which {
                    Which::Stream { topic, key } => sqlx::query(
                        "UPDATE quorate_inbox_parked SET wish = $1
                         WHERE consumer = $2 AND topic = $3 AND key = $4 AND state <> 0",
                    )
                    .bind(number)
                    .bind(consumer)
                    .bind(topic)
                    .bind(key),
                    Which::Message(id) => sqlx::query(
                        "UPDATE quorate_inbox_parked SET wish = $1
                         WHERE consumer = $2 AND message_id = $3",
                    )
                    .bind(number)
                    .bind(consumer)
                    .bind(id),
                };
                Ok(query.execute(&self.pool).await?.rows_affected())
            }

            async fn forget(&self, consumer: &str, before_ms: i64) -> Result<u64> {
                let text = "DELETE FROM quorate_inbox_seen WHERE consumer = $1 AND at_ms < $2";
                let done = sqlx::query(text)
                    .bind(consumer)
                    .bind(before_ms)
                    .execute(&self.pool)
                    .await?;
                Ok(done.rows_affected())
            }
        }

        impl LedgerTx for $tx {
            type Connection = $connection;

            fn connection(&mut self) -> &mut $connection {
                &mut self.0
            }

            async fn advance(
                &mut self,
                consumer: &str,
                partition: &Partition,
                generation: i64,
                next: i64,
            ) -> Result<i64> {
                let before = sqlx::query(concat!(
                    "SELECT next FROM quorate_inbox_position WHERE consumer = $1 AND topic = $2
                     AND number = $3 AND generation = $4",
                    $lock
                ))
                .bind(consumer)
                .bind(&partition.topic)
                .bind(partition.number)
                .bind(generation)
                .fetch_optional(&mut *self.0)
                .await?;
                let Some(before) = before else {
                    let text = format!(
                        "partition {} of `{}` is another consumer's by now",
                        partition.number, partition.topic
                    );
                    return Err(Error::new(ErrorKind::Fenced, text));
                };
                sqlx::query(
                    "UPDATE quorate_inbox_position SET next = $1
                     WHERE consumer = $2 AND topic = $3 AND number = $4",
                )
                .bind(next)
                .bind(consumer)
                .bind(&partition.topic)
                .bind(partition.number)
                .execute(&mut *self.0)
                .await?;
                Ok(before.try_get(0)?)
            }

            async fn last_seqs(
                &mut self,
                consumer: &str,
                streams: &[Stream],
            ) -> Result<HashMap<Stream, i64>> {
                let rows = sqlx::query(concat!(
                    "SELECT source, topic, key, last_seq FROM quorate_inbox_key
                     WHERE consumer = $1 AND (source, topic, key) IN (
                        SELECT t.value->>0, t.value->>1, t.value->>2 FROM ",
                    $rows,
                    ") ORDER BY source, topic, key",
                    $lock
                ))
                .bind(consumer)
                .bind(super::sql::array(streams.iter().map(|s| (&s.source, &s.topic, &s.key))))
                .fetch_all(&mut *self.0)
                .await?;
                let last = rows.iter().map(|row| {
                    let stream = Stream {
                        source: row.try_get(0)?,
                        topic: row.try_get(1)?,
                        key: row.try_get(2)?,
                    };
                    Ok((stream, row.try_get(3)?))
                });
                last.collect()
            }

            async fn set_seqs(&mut self, consumer: &str, seqs: &[(Stream, i64)]) -> Result<()> {
                let values = seqs.iter().map(|(s, seq)| (&s.source, &s.topic, &s.key, seq));
                sqlx::query(concat!(
                    "INSERT INTO quorate_inbox_key (consumer, source, topic, key, last_seq)
                     SELECT $1, t.value->>0, t.value->>1, t.value->>2, CAST(t.value->>3 AS bigint) FROM ",
                    $rows,
                    " WHERE true ON CONFLICT (consumer, source, topic, key)
                     DO UPDATE SET last_seq = excluded.last_seq"
                ))
                .bind(consumer)
                .bind(super::sql::array(values))
                .execute(&mut *self.0)
                .await?;
                Ok(())
            }

            async fn note(&mut self, consumer: &str, ids: &[Uuid]) -> Result<HashSet<Uuid>> {
                let rows = sqlx::query(concat!(
                    "INSERT INTO quorate_inbox_seen (consumer, message_id, at_ms) SELECT $1, ",
                    $id,
                    ", $3 FROM ",
                    $rows,
                    " WHERE true ON CONFLICT DO NOTHING RETURNING message_id"
                ))
                .bind(consumer)
                .bind(super::sql::array(ids.iter().map(|id| id.simple().to_string())))
                .bind(now_ms())
                .fetch_all(&mut *self.0)
                .await?;
                rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
            }

            async fn check(&mut self) -> Result<()> {
                sqlx::query("SELECT 1").execute(&mut *self.0).await?;
                Ok(())
            }

            async fn park(&mut self, consumer: &str, waiting: &Waiting) -> Result<()> {
                let message = &waiting.message;
                sqlx::query(
                    "INSERT INTO quorate_inbox_parked
                        (consumer, message_id, source, topic, number, at, key, seq, headers,
                         payload, state, reason, attempts, wish, parked_ms)
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, 0, $14)
                     ON CONFLICT (consumer, message_id) DO UPDATE SET state = excluded.state,
                        reason = excluded.reason, attempts = excluded.attempts, wish = 0",
                )
                .bind(consumer)
                .bind(waiting.id)
                .bind(message.source())
                .bind(&message.partition.topic)
                .bind(message.partition.number)
                .bind(message.offset)
                .bind(&message.key)
                .bind(message.key.as_ref().and_then(|_| message.seq()))
                .bind(headers_to_text(&message.headers))
                .bind(&message.payload[..])
                .bind(waiting.state.number())
                .bind(&waiting.reason)
                .bind(waiting.attempts)
                .bind(now_ms())
                .execute(&mut *self.0)
                .await?;
                Ok(())
            }

            async fn unpark(&mut self, consumer: &str, id: Uuid) -> Result<bool> {
                let done = sqlx::query(
                    "DELETE FROM quorate_inbox_parked WHERE consumer = $1 AND message_id = $2",
                )
                .bind(consumer)
                .bind(id)
                .execute(&mut *self.0)
                .await?;
                Ok(done.rows_affected() == 1)
            }

            async fn commit(self) -> Result<()> {
                self.0.commit().await.map_err(super::sql::commit_error)
            }
        }
    };
}

/// Values as a JSON array.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(super) fn array<T: serde::Serialize>(values: impl Iterator<Item = T>) -> String {
    serde_json::Value::from_iter(values.map(|value| serde_json::json!(value))).to_string()
}

/// The headers that say where a message belongs, for one whose own can't be read.
pub(super) fn place(id: Uuid, source: String, seq: Option<i64>) -> Vec<(String, String)> {
    let mut headers = vec![(HEADER_ID.to_owned(), id.to_string())];
    if let Some(seq) = seq {
        headers.push((HEADER_SEQ.to_owned(), seq.to_string()));
        headers.push((HEADER_SOURCE.to_owned(), source));
    }
    headers
}

/// What a failed commit says. When the database has refused it, it is known that nothing was written.
pub(crate) fn commit_error(error: sqlx::Error) -> crate::Error {
    let refused = error.as_database_error().is_some_and(|from| {
        let of_code = from.code().is_some_and(|code| code.starts_with("40"));
        of_code || !matches!(from.kind(), sqlx::error::ErrorKind::Other)
    });
    let made = crate::Error::from(error);
    if refused {
        made
    } else {
        made.outcome_unknown()
    }
}

/// What a failed look at the version says.
pub(super) fn open_error(error: sqlx::Error) -> crate::Error {
    let made = crate::Error::from(error);
    match made.kind() {
        crate::ErrorKind::Schema => crate::Error::new(
            crate::ErrorKind::Missing,
            "the database has no inbox yet: migrate it (PgInbox::migrate, MySqlInbox::migrate, SqliteInbox::migrate)",
        ),
        _ => made,
    }
}

/// Compares the version of the tables with the program's.
pub(super) fn check_version(found: Option<i64>, known: i64) -> crate::Result<()> {
    if found == Some(known) {
        return Ok(());
    }
    let text = match found {
        None => "quorate_inbox_schema is empty: migrate again".to_owned(),
        Some(found) => format!(
            "the inbox's tables are of version {found}, this program knows {known}: use the program \
             that fits, or migrate them"
        ),
    };
    Err(crate::Error::new(crate::ErrorKind::Schema, text))
}
