//! What AT costs: the same two updates of two rows, bare and as a branch, in turns: `cargo xtask bench saga`.
//!
//! Medians over rounds after one that warms up. The branch's cost is held against the bare transaction; beside it
//! the whole global transaction: branch, decision, and the second phase in batches. `QUORATE_POSTGRES` names the
//! server. The only argument is the JSON file for the results.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_saga::at::postgres::{PgAt, PgHome};
use quorate_saga::at::sqlite::{SqliteAt, SqliteHome};
use quorate_saga::at::{AtCoordinator, Decision, Global, Rows, Update};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, PgPool, SqlitePool};

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const ACCOUNTS: i64 = 8 * PER_CLIENT;
/// More than twice the transactions of a client and round.
const PER_CLIENT: i64 = 5_000;
/// The first warms up: connections, plans, pages.
const ROUNDS: usize = 6;
const UPDATE: &str = "UPDATE account SET balance = balance + $1 WHERE id = $2";
const LONG: Duration = Duration::from_secs(600);

fn add(id: i64, amount: i64) -> Update {
    Rows::of("account").key(id).update().add("balance", amount)
}

/// The two rows of a transaction: nobody else's in this round.
fn pair(client: i64, number: i64) -> (i64, i64) {
    let first = client * PER_CLIENT + number * 2 + 1;
    (first, first + 1)
}

macro_rules! loops {
    ($bare:ident, $branch:ident, $pool:ty, $at:ty, $begin:literal) => {
        async fn $bare(pool: $pool, client: i64, count: i64) -> Outcome<()> {
            for number in 0..count {
                let (from, to) = pair(client, number);
                let mut tx = pool.begin_with($begin).await?;
                sqlx::query(UPDATE)
                    .bind(-1i64)
                    .bind(from)
                    .execute(&mut *tx)
                    .await?;
                sqlx::query(UPDATE)
                    .bind(1i64)
                    .bind(to)
                    .execute(&mut *tx)
                    .await?;
                tx.commit().await?;
            }
            Ok(())
        }

        async fn $branch(
            at: $at,
            coordinator: AtCoordinator,
            client: i64,
            count: i64,
            decides: bool,
        ) -> Outcome<Vec<Global>> {
            let mut done = Vec::new();
            for number in 0..count {
                let (from, to) = pair(client, number);
                let global = coordinator.begin(LONG);
                let mut tx = at.begin(&global, "pay").await?;
                tx.update(&add(from, -1)).await?;
                tx.update(&add(to, 1)).await?;
                tx.commit().await?;
                if decides {
                    coordinator.decide_commit(&global).await?;
                }
                done.push(global);
            }
            Ok(done)
        }
    };
}
loops!(bare_pg, branch_pg, PgPool, PgAt, "BEGIN");
loops!(
    bare_lite,
    branch_lite,
    SqlitePool,
    SqliteAt,
    "BEGIN IMMEDIATE"
);

/// Seconds of one round: bare, branches alone, and whole global transactions.
struct Round {
    bare: f64,
    branch: f64,
    whole: f64,
}

macro_rules! round {
    ($pool:expr, $at:expr, $coordinator:expr, $clients:expr, $count:expr, $bare:ident, $branch:ident) => {{
        let started = Instant::now();
        let tasks: Vec<_> = (0..$clients)
            .map(|c| tokio::spawn($bare($pool.clone(), c, $count)))
            .collect();
        for task in tasks {
            task.await??;
        }
        let bare = started.elapsed().as_secs_f64();
        let mut took = [0.0f64; 2];
        for (which, decides) in [false, true].into_iter().enumerate() {
            let started = Instant::now();
            let branch = |c| $branch($at.clone(), $coordinator.clone(), c, $count, decides);
            let tasks: Vec<_> = (0..$clients).map(|c| tokio::spawn(branch(c))).collect();
            let mut globals = Vec::new();
            for task in tasks {
                globals.extend(task.await??);
            }
            if !decides {
                took[which] = started.elapsed().as_secs_f64();
            }
            for some in globals.chunks(100) {
                if !decides {
                    for global in some {
                        $coordinator.decide_commit(global).await?;
                    }
                }
                let some: Vec<_> = some
                    .iter()
                    .map(|g| (g.gid().to_owned(), Decision::Commit))
                    .collect();
                $coordinator.complete(&some).await?;
            }
            if decides {
                took[which] = started.elapsed().as_secs_f64();
            }
        }
        Round {
            bare,
            branch: took[0],
            whole: took[1],
        }
    }};
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// One line of the report, and its JSON.
fn report(name: &str, clients: i64, transactions: i64, rounds: &[Round]) -> String {
    let rounds = &rounds[1..];
    let of = |pick: fn(&Round) -> f64| median(rounds.iter().map(pick).collect());
    let (bare, branch, whole) = (of(|r| r.bare), of(|r| r.branch), of(|r| r.whole));
    let ratio = of(|r| r.branch / r.bare);
    let whole_ratio = of(|r| r.whole / r.bare);
    let rate = |seconds: f64| transactions as f64 / seconds;
    println!(
        "{name}, {clients} clients: bare {:.0}/s, AT branch {:.0}/s, whole {:.0}/s; cost of a branch {ratio:.2}, \
         of the whole {whole_ratio:.2} times the bare transaction",
        rate(bare),
        rate(branch),
        rate(whole)
    );
    format!(
        "{{\"name\":\"{name}\",\"clients\":{clients},\"bare_per_s\":{:.0},\"branch_per_s\":{:.0},\
         \"whole_per_s\":{:.0},\"branch_ratio\":{ratio:.3},\"whole_ratio\":{whole_ratio:.3}}}",
        rate(bare),
        rate(branch),
        rate(whole)
    )
}

async fn postgres(lines: &mut Vec<String>) -> Outcome<()> {
    let schema = format!("quorate_at_speed_{}", std::process::id());
    let options: PgConnectOptions = std::env::var("QUORATE_POSTGRES")?.parse()?;
    let options = options.options([("search_path", schema.as_str())]);
    let pool = PgPoolOptions::new()
        .max_connections(20)
        .connect_with(options)
        .await?;
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE SCHEMA {schema}")))
        .execute(&pool)
        .await?;
    sqlx::raw_sql(AssertSqlSafe(accounts()))
        .execute(&pool)
        .await?;
    let at = PgAt::migrate(pool.clone(), "bench").await?;
    let home = PgHome::migrate(pool.clone()).await?;
    let coordinator = AtCoordinator::new(Arc::new(home), vec![Arc::new(at.clone())])?;
    for (clients, count) in [(1i64, 2_000i64), (8, 1_000)] {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            rounds.push(round!(
                pool,
                at,
                coordinator,
                clients,
                count,
                bare_pg,
                branch_pg
            ));
        }
        lines.push(report("postgres", clients, clients * count, &rounds));
    }
    sqlx::raw_sql(AssertSqlSafe(format!("DROP SCHEMA {schema} CASCADE")))
        .execute(&pool)
        .await?;
    Ok(())
}

async fn sqlite(lines: &mut Vec<String>) -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let options = SqliteConnectOptions::new()
        .filename(folder.path().join("bench.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .busy_timeout(Duration::from_secs(20));
    let pool = SqlitePoolOptions::new()
        .max_connections(4)
        .connect_with(options)
        .await?;
    sqlx::raw_sql(AssertSqlSafe(accounts()))
        .execute(&pool)
        .await?;
    let at = SqliteAt::migrate(pool.clone(), "bench").await?;
    let home = SqliteHome::migrate(pool.clone()).await?;
    let coordinator = AtCoordinator::new(Arc::new(home), vec![Arc::new(at.clone())])?;
    let mut rounds = Vec::new();
    let (clients, count) = (1i64, 2_000i64);
    for _ in 0..ROUNDS {
        rounds.push(round!(
            pool,
            at,
            coordinator,
            clients,
            count,
            bare_lite,
            branch_lite
        ));
    }
    lines.push(report("sqlite", clients, clients * count, &rounds));
    Ok(())
}

fn accounts() -> String {
    format!(
        "CREATE TABLE account (id bigint PRIMARY KEY, balance bigint NOT NULL, note text);
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ACCOUNTS})
         INSERT INTO account SELECT i, 100, 'an account' FROM n"
    )
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let mut lines = Vec::new();
    postgres(&mut lines).await?;
    sqlite(&mut lines).await?;
    if let Some(file) = std::env::args().nth(1) {
        std::fs::write(file, format!("{{\"at\":[{}]}}\n", lines.join(",")))?;
    }
    Ok(())
}
