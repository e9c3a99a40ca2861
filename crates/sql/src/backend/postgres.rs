//! PostgreSQL: positions in its log, row and advisory locks, COPY.

use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgDatabaseError, PgRow, PgSeverity};
use sqlx::{AssertSqlSafe, ConnectOptions, Postgres, Row, SqlStr};

use super::{Answer, Backend, Observation, Patience, Settlement, Standing, int_value, text_value};
use crate::bulk::{Cell, copy_text};
use crate::pool::PoolOptions;
use crate::shard::{Kind, Value, Wire};
use crate::token::{Position, parse_lsn, record_end};
use crate::transaction::Isolation;
use crate::{Error, ErrorKind, Result};

/// The first version with `WAIT FOR LSN`.
const WAITS_SINCE: u32 = 190_000;

// The timeline is taken of the name of a log file: the control file names it only after the first
// checkpoint that follows a promotion.
const STANDING: &str = "\
    SELECT r.recovers, l.lsn::text AS lsn, \
           CASE WHEN r.recovers THEN NULL ELSE substr(pg_walfile_name(l.lsn), 1, 8) END AS timeline, \
           (SELECT system_identifier FROM pg_control_system()) AS system, \
           current_setting('wal_block_size')::bigint AS page, \
           (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size') AS segment \
    FROM (SELECT pg_is_in_recovery() AS recovers) r, \
         LATERAL (SELECT CASE WHEN r.recovers THEN NULL ELSE pg_current_wal_insert_lsn() END AS lsn) l";

// A crash takes back what a replica had shown, also one that its postmaster survives: then it recovers anew,
// by another startup process. Its start tells the runs apart.
const REPLAYED: &str = "\
    SELECT pg_is_in_recovery() AS recovers, pg_last_wal_replay_lsn()::text AS lsn, \
           (SELECT system_identifier FROM pg_control_system()) AS system, \
           (extract(epoch FROM coalesce( \
               (SELECT backend_start FROM pg_stat_activity WHERE backend_type = 'startup'), \
               pg_postmaster_start_time())) * 1000000)::bigint AS run";

// Asked for after what was replayed, never before: so that what was replayed is of this timeline or of one
// that it began from. Its columns are NULL for who may not see them (pg_read_all_stats).
const RECEIVED: &str = "SELECT received_tli FROM pg_stat_wal_receiver";

impl Backend for Postgres {
    const REPLICAS: bool = true;
    const POSITIONS: bool = true;
    const ROW_LOCKS: bool = true;
    const NULLS_FIRST: bool = false;
    const PARAMETERS_MAX: usize = 65_535;

    fn connect_options(url: &str, options: &PoolOptions) -> Result<PgConnectOptions> {
        let mut connect: PgConnectOptions = url.parse()?;
        if let Some(longest) = options.statement_max {
            connect = connect.options([("statement_timeout", milliseconds(longest))]);
        }
        if let Some(longest) = options.hold_max {
            let longest = milliseconds(longest);
            connect = connect.options([("idle_in_transaction_session_timeout", longest)]);
        }
        Ok(connect.log_slow_statements(log::LevelFilter::Warn, options.slow))
    }

    fn prepare<'c>(_: &'c mut PgConnection, _: &'c PoolOptions) -> Answer<'c, ()> {
        Box::pin(async { Ok(()) })
    }

    fn standing(connection: &mut PgConnection) -> Answer<'_, Standing> {
        Box::pin(async move {
            let row = sqlx::query(STANDING).fetch_one(connection).await?;
            let recovers: bool = row.try_get("recovers")?;
            let lsn: Option<String> = row.try_get("lsn")?;
            let timeline: Option<String> = row.try_get("timeline")?;
            let system: i64 = row.try_get("system")?;
            let page: i64 = row.try_get("page")?;
            let segment: i64 = row.try_get("segment")?;
            let lsn = lsn.as_deref().and_then(parse_lsn);
            let timeline = timeline.and_then(|t| u32::from_str_radix(&t, 16).ok());
            let position = lsn.zip(timeline).map(|(lsn, timeline)| Position {
                system: system.cast_unsigned(),
                timeline,
                lsn: record_end(lsn, page.cast_unsigned(), segment.cast_unsigned()),
            });
            Ok(Standing {
                writable: !recovers,
                position,
            })
        })
    }

    fn observe(connection: &mut PgConnection) -> Answer<'_, Observation> {
        Box::pin(async move {
            let row = sqlx::query(REPLAYED).fetch_one(&mut *connection).await?;
            let received = sqlx::query_scalar(RECEIVED)
                .fetch_optional(connection)
                .await?;
            let timeline: Option<i32> = received.flatten();
            let lsn: Option<String> = row.try_get("lsn")?;
            let system: i64 = row.try_get("system")?;
            let replica: bool = row.try_get("recovers")?;
            let timeline = timeline.and_then(|t| u32::try_from(t).ok());
            let lsn = lsn.as_deref().and_then(parse_lsn);
            let position = lsn.zip(timeline).map(|(lsn, timeline)| Position {
                system: system.cast_unsigned(),
                timeline,
                lsn,
            });
            Ok(Observation {
                replica,
                system: Some(system.cast_unsigned()),
                run: Some(row.try_get("run")?),
                position: position.filter(|_| replica),
            })
        })
    }

    fn pause<'c>(
        connection: &'c mut PgConnection,
        wanted: Option<Position>,
        longest: Duration,
    ) -> Answer<'c, ()> {
        let waits = connection.server_version_num() >= Some(WAITS_SINCE);
        Box::pin(async move {
            let Some(wanted) = wanted.filter(|_| waits) else {
                tokio::time::sleep(longest).await;
                return Ok(());
            };
            let (high, low) = (wanted.lsn >> 32, wanted.lsn & 0xffff_ffff);
            let pause = longest;
            let longest = milliseconds(longest);
            // It knows no timelines: what it says is not used, only that it says it. The next look decides.
            let statement =
                format!("WAIT FOR LSN '{high:X}/{low:X}' WITH (TIMEOUT '{longest}ms', NO_THROW)");
            let waited = sqlx::raw_sql(AssertSqlSafe(statement));
            match waited.execute(connection).await {
                Ok(_) => Ok(()),
                // It does not know the statement after all: as with older ones.
                Err(sqlx::Error::Database(_)) => {
                    tokio::time::sleep(pause).await;
                    Ok(())
                }
                Err(error) => Err(error),
            }
        })
    }

    fn run(connection: &mut PgConnection, statement: SqlStr) -> Answer<'_, u64> {
        Box::pin(async move {
            let done = sqlx::query(statement).execute(connection).await?;
            Ok(done.rows_affected())
        })
    }

    fn number(connection: &mut PgConnection, statement: SqlStr) -> Answer<'_, Option<i64>> {
        Box::pin(async move {
            sqlx::query_scalar(statement)
                .fetch_optional(connection)
                .await
        })
    }

    fn begin(isolation: Isolation) -> (Option<&'static str>, &'static str) {
        let begin = match isolation {
            Isolation::ReadCommitted => "BEGIN ISOLATION LEVEL READ COMMITTED",
            Isolation::RepeatableRead => "BEGIN ISOLATION LEVEL REPEATABLE READ",
            Isolation::Serializable => "BEGIN ISOLATION LEVEL SERIALIZABLE",
        };
        (None, begin)
    }

    fn synchronous(connection: &mut PgConnection) -> Answer<'_, ()> {
        Box::pin(async move {
            // A statement's time-out would end the wait for the replicas, and the commit be told as done.
            let set = "SELECT set_config('synchronous_commit', 'remote_apply', true), \
                       set_config('statement_timeout', '0', true)";
            sqlx::query(set).execute(connection).await?;
            Ok(())
        })
    }

    fn settle(connection: &mut PgConnection) -> Answer<'_, Settlement> {
        Box::pin(async move {
            let id: Option<String> =
                sqlx::query_scalar("SELECT pg_current_xact_id_if_assigned()::text")
                    .fetch_one(connection)
                    .await?;
            Ok(match id {
                Some(_) => Settlement::Wrote,
                None => Settlement::ReadOnly,
            })
        })
    }

    fn refused_commit(error: &sqlx::Error) -> bool {
        // After the commit's record is written there are no errors of this severity: only worse ones, which
        // end the session, and a lost connection.
        let error = error.as_database_error();
        let error = error.and_then(|e| e.try_downcast_ref::<PgDatabaseError>());
        error.is_some_and(|e| matches!(e.severity(), PgSeverity::Error))
    }

    fn plan(connection: &mut PgConnection, statement: String) -> Answer<'_, Vec<String>> {
        Box::pin(async move {
            // With the options in brackets the statement can't begin with ANALYZE, which would run it.
            let text = AssertSqlSafe(format!("EXPLAIN (COSTS) {statement}"));
            sqlx::query_scalar(text).fetch_all(connection).await
        })
    }

    fn lock<'c>(
        connection: &'c mut PgConnection,
        key: &'c str,
        patience: Patience,
    ) -> BoxFuture<'c, Result<bool>> {
        let key = lock_number(key);
        Box::pin(async move {
            let Patience::Limited(longest) = patience else {
                let taken = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(key);
                return Ok(taken.fetch_one(connection).await?);
            };
            let set = "SELECT set_config('lock_timeout', $1, false), \
                       set_config('statement_timeout', '0', false)";
            let longest = milliseconds(longest).to_string();
            sqlx::query(set)
                .bind(longest)
                .execute(&mut *connection)
                .await?;
            let locked = sqlx::query("SELECT pg_advisory_lock($1)").bind(key);
            let locked = locked.execute(&mut *connection).await.map_err(Error::from);
            let reset = "RESET lock_timeout; RESET statement_timeout";
            sqlx::raw_sql(reset).execute(connection).await?;
            match locked {
                Ok(_) => Ok(true),
                Err(error) if error.kind() == ErrorKind::Locked => Ok(false),
                Err(error) => Err(error),
            }
        })
    }

    fn unlock<'c>(connection: &'c mut PgConnection, key: &'c str) -> BoxFuture<'c, Result<bool>> {
        let key = lock_number(key);
        Box::pin(async move {
            let gave = sqlx::query_scalar("SELECT pg_advisory_unlock($1)").bind(key);
            Ok(gave.fetch_one(connection).await?)
        })
    }

    fn insert<'c>(
        connection: &'c mut PgConnection,
        table: &'c str,
        columns: &'c [String],
        rows: &'c [Vec<Cell>],
    ) -> BoxFuture<'c, Result<u64>> {
        Box::pin(async move {
            let text = copy_text(rows)?;
            let names: Vec<String> = columns.iter().map(|name| Self::quote(name)).collect();
            let statement = format!(
                "COPY {} ({}) FROM STDIN",
                Self::quote(table),
                names.join(", ")
            );
            let mut copy = connection.copy_in_raw(&statement).await?;
            if let Err(error) = copy.send(text).await {
                // The server has said why by now, or never will.
                let _ = copy.abort("the rows could not be sent").await;
                return Err(error.into());
            }
            Ok(copy.finish().await?)
        })
    }

    fetch_by_cells!(PgConnection);

    fn value(row: &PgRow, at: usize, wire: Wire) -> Result<Value> {
        match wire {
            Wire::Plain(Kind::Int) => Ok(int_value(row.try_get(at)?)),
            Wire::Plain(Kind::Float) => {
                let number: Option<f64> = row.try_get(at)?;
                Ok(number.map_or(Value::Null, Value::Float))
            }
            Wire::Plain(Kind::Text) | Wire::Sum => text_value(row.try_get(at)?, wire),
        }
    }

    fn reading(column: &str, kind: Kind) -> String {
        match kind {
            Kind::Int => format!("CAST({column} AS bigint)"),
            Kind::Float => format!("CAST({column} AS double precision)"),
            Kind::Text => format!("CAST({column} AS text) COLLATE \"C\""),
        }
    }

    fn sum_text(column: &str) -> String {
        format!("CAST(SUM(CAST({column} AS bigint)) AS text)")
    }

    fn quote(name: &str) -> String {
        let parts = name.split('.');
        let quoted: Vec<String> = parts
            .map(|part| format!("\"{}\"", part.replace('"', "\"\"")))
            .collect();
        quoted.join(".")
    }

    fn parameter(number: usize) -> String {
        format!("${number}")
    }
}

/// At least 1: 0 would be no limit at all.
fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis())
        .unwrap_or(u64::MAX)
        .clamp(1, i32::MAX as u64)
}

/// The number by which PostgreSQL knows a lock.
fn lock_number(key: &str) -> i64 {
    xxhash_rust::xxh3::xxh3_64(key.as_bytes()).cast_signed()
}
