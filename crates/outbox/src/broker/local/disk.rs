//! The file of a durable local broker: an SQLite database with WAL, synced at every commit.

use std::path::Path;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqliteLockingMode, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{Row, SqlitePool};

use super::group::Group;
use super::log::{Log, Record};
use super::{LocalOptions, Outbatch, Placed, State};
use crate::message::{headers_from_text, headers_to_text};
use crate::{Error, ErrorKind, Partition, Result, points};

const VERSION: i64 = 1;
const TABLES: &str = "\
    CREATE TABLE quorate_broker_topic (
        topic TEXT NOT NULL, number INTEGER NOT NULL, next INTEGER NOT NULL,
        PRIMARY KEY (topic, number)) WITHOUT ROWID;
    CREATE TABLE quorate_broker_log (
        topic TEXT NOT NULL, number INTEGER NOT NULL, at INTEGER NOT NULL, key TEXT,
        headers TEXT NOT NULL, payload BLOB NOT NULL,
        PRIMARY KEY (topic, number, at)) WITHOUT ROWID;
    CREATE TABLE quorate_broker_committed (
        consumers TEXT NOT NULL, topic TEXT NOT NULL, number INTEGER NOT NULL, next INTEGER NOT NULL,
        PRIMARY KEY (consumers, topic, number)) WITHOUT ROWID;
    CREATE TABLE quorate_broker_fence (
        source TEXT NOT NULL, part INTEGER NOT NULL, epoch INTEGER NOT NULL,
        PRIMARY KEY (source, part)) WITHOUT ROWID;
    PRAGMA user_version = 1";

/// The file.
pub(super) struct Disk {
    pool: SqlitePool,
}

impl Disk {
    /// Opens or makes the file and reads all of it.
    pub(super) async fn open(path: &Path, options: &LocalOptions) -> Result<(Disk, State)> {
        let connect = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .locking_mode(SqliteLockingMode::Exclusive)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full);
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(connect)
            .await?;
        let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
        let row = sqlx::query("PRAGMA user_version")
            .fetch_one(&mut *tx)
            .await?;
        match row.try_get::<i64, _>(0)? {
            VERSION => {}
            0 => {
                sqlx::raw_sql(TABLES).execute(&mut *tx).await?;
            }
            other => {
                let text = format!(
                    "the broker's file is of version {other}, this program knows {VERSION}"
                );
                return Err(Error::new(ErrorKind::Schema, text));
            }
        }
        tx.commit().await?;
        let disk = Disk { pool };
        let state = disk.load(options).await?;
        Ok((disk, state))
    }

    async fn load(&self, options: &LocalOptions) -> Result<State> {
        let mut state = State::default();
        let rows = sqlx::query(
            "SELECT t.topic, t.number, coalesce(min(l.at), t.next) FROM quorate_broker_topic t
             LEFT JOIN quorate_broker_log l ON l.topic = t.topic AND l.number = t.number
             GROUP BY t.topic, t.number ORDER BY t.topic, t.number",
        )
        .fetch_all(&self.pool)
        .await?;
        for row in rows {
            let logs: &mut Vec<Log> = state.topics.entry(row.try_get(0)?).or_default();
            let number = row.try_get::<i64, _>(1)? as usize;
            // Partitions that never had a record have no row.
            logs.resize_with(logs.len().max(number), Log::default);
            logs.push(Log::starting_at(row.try_get(2)?));
        }
        for logs in state.topics.values_mut() {
            let wanted = logs.len().max(options.partitions.max(1) as usize);
            logs.resize_with(wanted, Log::default);
        }
        let rows = sqlx::query(
            "SELECT topic, number, key, headers, payload FROM quorate_broker_log
             ORDER BY topic, number, at",
        )
        .fetch_all(&self.pool)
        .await?;
        for row in rows {
            let record = Record {
                key: row.try_get(2)?,
                headers: headers_from_text(row.try_get(3)?)?,
                payload: row.try_get::<Vec<u8>, _>(4)?.into(),
            };
            if let Some(logs) = state.topics.get_mut(row.try_get::<&str, _>(0)?) {
                logs[row.try_get::<i64, _>(1)? as usize].push(record);
            }
        }
        self.load_positions(&mut state).await?;
        Ok(state)
    }

    async fn load_positions(&self, state: &mut State) -> Result<()> {
        let rows =
            sqlx::query("SELECT consumers, topic, number, next FROM quorate_broker_committed")
                .fetch_all(&self.pool)
                .await?;
        for row in rows {
            let group: &mut Group = state.groups.entry(row.try_get(0)?).or_default();
            let partition = Partition {
                topic: row.try_get(1)?,
                number: row.try_get(2)?,
            };
            group.commit(partition, row.try_get(3)?);
        }
        let rows = sqlx::query("SELECT source, part, epoch FROM quorate_broker_fence")
            .fetch_all(&self.pool)
            .await?;
        for row in rows {
            let part = row.try_get::<i64, _>(1)? as u16;
            state
                .fences
                .insert((row.try_get(0)?, part), row.try_get(2)?);
        }
        Ok(())
    }

    /// Writes a batch and its fence, synced.
    pub(super) async fn append(&self, batch: &Outbatch<'_>, placed: &[Placed]) -> Result<()> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        for one in placed {
            sqlx::query(
                "INSERT INTO quorate_broker_topic VALUES ($1, $2, $3)
                 ON CONFLICT (topic, number) DO UPDATE SET next = excluded.next",
            )
            .bind(&one.at.topic)
            .bind(one.at.number)
            .bind(one.offset + 1)
            .execute(&mut *tx)
            .await?;
            sqlx::query(
                "INSERT OR REPLACE INTO quorate_broker_log VALUES ($1, $2, $3, $4, $5, $6)",
            )
            .bind(&one.at.topic)
            .bind(one.at.number)
            .bind(one.offset)
            .bind(&one.record.key)
            .bind(headers_to_text(&one.record.headers))
            .bind(&one.record.payload[..])
            .execute(&mut *tx)
            .await?;
        }
        sqlx::query(
            "INSERT INTO quorate_broker_fence VALUES ($1, $2, $3)
             ON CONFLICT (source, part) DO UPDATE SET epoch = excluded.epoch",
        )
        .bind(batch.source)
        .bind(i64::from(batch.fence.part))
        .bind(batch.fence.epoch)
        .execute(&mut *tx)
        .await?;
        points::pass("broker.appended");
        tx.commit().await?;
        points::pass("broker.append-committed");
        Ok(())
    }

    /// Writes positions of a group and forgets what all groups are past.
    pub(super) async fn commit(
        &self,
        group: &str,
        next: &[(Partition, i64)],
        oldest: &[(Partition, i64)],
    ) -> Result<()> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        for (partition, offset) in next {
            sqlx::query(
                "INSERT INTO quorate_broker_committed VALUES ($1, $2, $3, $4)
                 ON CONFLICT (consumers, topic, number) DO UPDATE SET next = excluded.next",
            )
            .bind(group)
            .bind(&partition.topic)
            .bind(partition.number)
            .bind(offset)
            .execute(&mut *tx)
            .await?;
        }
        for (partition, offset) in oldest {
            sqlx::query(
                "DELETE FROM quorate_broker_log WHERE topic = $1 AND number = $2 AND at < $3",
            )
            .bind(&partition.topic)
            .bind(partition.number)
            .bind(offset)
            .execute(&mut *tx)
            .await?;
        }
        points::pass("broker.positions");
        tx.commit().await?;
        Ok(())
    }
}
