//! Tests on real databases of one server, and kills of the coordinator.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};

use super::{BranchName, Settled, TwoPhase, TwoPhaseOptions, TwoPhaseOutcome, failed};
use crate::at::tests::support::{assert_kind, eventually, pg_pool, postgres_url, unique};
use crate::{ErrorKind, Result};

const SHORT: TwoPhaseOptions = TwoPhaseOptions {
    timeout: Duration::from_millis(300),
    alarm_age: Duration::from_millis(300),
    retention: Duration::from_secs(3600),
};

async fn pool_of(database: &str) -> PgPool {
    let options: PgConnectOptions = postgres_url().parse().expect("a URL");
    let pool = PgPoolOptions::new()
        .max_connections(4)
        .acquire_timeout(Duration::from_secs(60));
    pool.connect_with(options.database(database))
        .await
        .expect("connects")
}

async fn run(pool: &PgPool, text: &str) {
    let done = sqlx::raw_sql(AssertSqlSafe(text)).execute(pool).await;
    done.unwrap_or_else(|error| panic!("{text}: {error}"));
}

async fn number(pool: &PgPool, text: &str) -> i64 {
    let read = sqlx::query_scalar(AssertSqlSafe(text.to_owned()));
    read.fetch_one(pool).await.expect("reads")
}

/// Three databases: the log, accounts, stock.
struct Stage {
    names: [String; 3],
    pools: [PgPool; 3],
}

impl Stage {
    async fn new() -> Stage {
        let base = unique("2pc");
        let names = ["log", "accounts", "stock"].map(|name| format!("{base}_{name}"));
        let admin = pg_pool("public").await;
        for name in &names {
            run(&admin, &format!("CREATE DATABASE {name}")).await;
        }
        admin.close().await;
        let stage = Stage::of(names).await;
        for pool in &stage.pools[1..] {
            run(pool, "CREATE TABLE account (id bigint PRIMARY KEY, balance bigint NOT NULL CHECK (balance >= 0))").await;
            run(pool, "CREATE TABLE moved (transaction text PRIMARY KEY)").await;
            run(pool, "INSERT INTO account VALUES (1, 100), (2, 100)").await;
        }
        stage
    }

    async fn of(names: [String; 3]) -> Stage {
        let mut pools = Vec::new();
        for name in &names {
            pools.push(pool_of(name).await);
        }
        let pools = <[PgPool; 3]>::try_from(pools).expect("three");
        Stage { names, pools }
    }

    async fn coordinator(&self, name: &str, options: TwoPhaseOptions) -> TwoPhase {
        let databases = vec![
            ("accounts".to_owned(), self.pools[1].clone()),
            ("stock".to_owned(), self.pools[2].clone()),
        ];
        let log = self.pools[0].clone();
        TwoPhase::migrate(log, name, databases, options)
            .await
            .expect("a coordinator")
    }

    async fn balances(&self) -> (i64, i64) {
        let read = "SELECT balance FROM account WHERE id = 1";
        (
            number(&self.pools[1], read).await,
            number(&self.pools[2], read).await,
        )
    }

    async fn prepared(&self) -> i64 {
        let read = "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()";
        number(&self.pools[1], read).await + number(&self.pools[2], read).await
    }

    async fn end(self) {
        for pool in &self.pools {
            pool.close().await;
        }
        let admin = pg_pool("public").await;
        for name in &self.names {
            run(&admin, &format!("DROP DATABASE {name} WITH (FORCE)")).await;
        }
        admin.close().await;
    }
}

/// Moves money from accounts to stock, and leaves the transaction's name on both sides.
async fn transfer(coordinator: &TwoPhase, amount: i64) -> Result<Settled> {
    let mut tx = coordinator.begin();
    let name = tx.name().to_owned();
    for (database, amount) in [("accounts", -amount), ("stock", amount)] {
        let branch = tx.branch(database).await?;
        sqlx::query("UPDATE account SET balance = balance + $1 WHERE id = 1")
            .bind(amount)
            .execute(&mut *branch)
            .await?;
        sqlx::query("INSERT INTO moved VALUES ($1)")
            .bind(&name)
            .execute(&mut *branch)
            .await?;
    }
    tx.commit().await
}

#[tokio::test]
async fn two_phase_commit_and_rollback_settle_both_databases() {
    let stage = Stage::new().await;
    let coordinator = stage.coordinator("shop", TwoPhaseOptions::default()).await;
    assert_eq!(
        transfer(&coordinator, 30).await.expect("commits"),
        Settled::Complete
    );
    assert_eq!(stage.balances().await, (70, 130));
    let mut tx = coordinator.begin();
    assert_kind(
        tx.branch("elsewhere").await.map(|_| ()),
        ErrorKind::NotFound,
        "no such database",
    );
    let branch = tx.branch("accounts").await.expect("begins");
    sqlx::query("UPDATE account SET balance = 0")
        .execute(branch)
        .await
        .expect("updates");
    tx.rollback().await.expect("rolls back");
    let mut tx = coordinator.begin();
    let branch = tx.branch("accounts").await.expect("begins");
    sqlx::query("UPDATE account SET balance = 0")
        .execute(branch)
        .await
        .expect("updates");
    drop(tx);
    assert_eq!(
        coordinator.begin().commit().await.expect("nothing"),
        Settled::Complete
    );
    assert_eq!(stage.balances().await, (70, 130));
    assert_eq!(stage.prepared().await, 0);
    let (ours, failures) = coordinator.prepared().await;
    assert!(ours.is_empty() && failures.is_empty());
    stage.end().await;
}

/// PREPARE of a failed transaction answers ROLLBACK and no error: the other branch must not commit.
#[tokio::test]
async fn two_phase_branch_that_failed_aborts_all() {
    let stage = Stage::new().await;
    let coordinator = stage.coordinator("shop", TwoPhaseOptions::default()).await;
    for failing in ["accounts", "stock"] {
        let mut tx = coordinator.begin();
        let name = tx.name().to_owned();
        for database in ["accounts", "stock"] {
            let amount = if database == failing { -1000 } else { 5 };
            let branch = tx.branch(database).await.expect("begins");
            let update = sqlx::query("UPDATE account SET balance = balance + $1").bind(amount);
            assert_eq!(update.execute(branch).await.is_err(), database == failing);
        }
        assert_kind(tx.commit().await, ErrorKind::Conflict, failing);
        assert_eq!(stage.balances().await, (100, 100));
        assert_eq!(stage.prepared().await, 0);
        assert_eq!(
            coordinator.outcome(&name).await.expect("answers"),
            None,
            "presumed"
        );
    }
    // And one that can't be prepared at all.
    let mut tx = coordinator.begin();
    let branch = tx.branch("accounts").await.expect("begins");
    sqlx::query("UPDATE account SET balance = 0")
        .execute(branch)
        .await
        .expect("updates");
    let branch = tx.branch("stock").await.expect("begins");
    sqlx::query("CREATE TEMP TABLE x (v int)")
        .execute(branch)
        .await
        .expect("makes");
    assert_kind(
        tx.commit().await,
        ErrorKind::Unsupported,
        "a temporary table",
    );
    assert_eq!(stage.balances().await, (100, 100));
    assert_eq!(stage.prepared().await, 0);
    stage.end().await;
}

/// What is undecided is rolled back when it is too old, and its coordinator, late, learns that.
#[tokio::test]
async fn two_phase_orphan_is_rolled_back_and_others_are_left_alone() {
    let stage = Stage::new().await;
    let coordinator = stage.coordinator("shop", SHORT).await;
    let log = &coordinator.inner.log.name;
    let names = [
        format!("quorate:shop:{log}:orphan:accounts"),
        "quorate:shop:otherlog:t1:accounts".to_owned(),
        format!("quorate:other:{log}:t2:accounts"),
        format!("quorate:shop:{log}:a:b:c"),
        "somebody''s own".to_owned(),
    ];
    for (id, name) in names.iter().enumerate() {
        let text = format!(
            "BEGIN; INSERT INTO account VALUES ({}, 0); PREPARE TRANSACTION '{name}'",
            id + 10
        );
        run(&stage.pools[1], &text).await;
    }
    let young = stage.coordinator("shop", TwoPhaseOptions::default()).await;
    let swept = young.sweep().await.expect("sweeps");
    assert_eq!(
        (swept.rolled_back, swept.alarms),
        (0, 0),
        "it may still be decided"
    );
    let undone = std::sync::atomic::AtomicU64::new(0);
    eventually("it is too old", || async {
        let swept = coordinator
            .sweep()
            .await
            .map_err(|error| error.to_string())?;
        assert_eq!(swept.committed, 0);
        undone.fetch_add(swept.rolled_back, std::sync::atomic::Ordering::Relaxed);
        // By then the others are old enough to be warned of.
        if swept.alarms == 4 {
            Ok(())
        } else {
            Err(format!("{swept:?}"))
        }
    })
    .await;
    assert_eq!(undone.into_inner(), 1, "the orphan, and no other");
    let outcome = coordinator.outcome("orphan").await.expect("answers");
    assert_eq!(outcome, Some(TwoPhaseOutcome::Aborted));
    let committing = TwoPhaseOutcome::Committing;
    let late = coordinator
        .inner
        .log
        .decide("orphan", committing, &[])
        .await
        .expect("answers");
    assert_eq!(
        late,
        TwoPhaseOutcome::Aborted,
        "the late coordinator learns it"
    );
    let swept = coordinator.sweep().await.expect("sweeps");
    assert_eq!((swept.rolled_back, swept.alarms), (0, 4));
    let (found, _) = coordinator.prepared().await;
    assert_eq!(found.len(), 4, "what is others' is shown, and left");
    assert!(found.iter().all(|one| one.ours.is_none()));
    for name in &names[1..] {
        run(&stage.pools[1], &format!("ROLLBACK PREPARED '{name}'")).await;
    }
    stage.end().await;
}

/// A coordinator that is past its time-out gives up by itself.
#[tokio::test]
async fn two_phase_commit_past_the_time_out_is_refused() {
    let stage = Stage::new().await;
    let coordinator = stage.coordinator("shop", SHORT).await;
    let mut tx = coordinator.begin();
    let branch = tx.branch("accounts").await.expect("begins");
    let slow = "UPDATE account SET balance = 0 WHERE pg_sleep(0.4) IS NOT NULL AND id = 1";
    sqlx::query(slow).execute(branch).await.expect("updates");
    assert_kind(tx.commit().await, ErrorKind::Fenced, "too late");
    assert_eq!(stage.balances().await, (100, 100));
    assert_eq!(stage.prepared().await, 0);
    stage.end().await;
}

/// A database that is down holds up its own branch only; the decision stands, and is carried out later.
#[tokio::test]
async fn two_phase_decided_branch_is_committed_when_its_database_is_back() {
    let stage = Stage::new().await;
    let coordinator = stage.coordinator("shop", SHORT).await;
    let log = &coordinator.inner.log;
    for (pool, branch, amount) in [(1, "accounts", -10), (2, "stock", 10)] {
        let name = BranchName {
            coordinator: "shop".into(),
            log: log.name.clone(),
            transaction: "decided".into(),
            branch: branch.into(),
        };
        let text = format!(
            "BEGIN; UPDATE account SET balance = balance + {amount} WHERE id = 1; PREPARE TRANSACTION '{name}'"
        );
        run(&stage.pools[pool], &text).await;
    }
    let branches = ["accounts".to_owned(), "stock".to_owned()];
    let committing = TwoPhaseOutcome::Committing;
    log.decide("decided", committing, &branches)
        .await
        .expect("decides");
    let closed = pool_of(&stage.names[2]).await;
    closed.close().await;
    let databases = vec![
        ("accounts".to_owned(), stage.pools[1].clone()),
        ("stock".to_owned(), closed),
    ];
    let half = TwoPhase::open(stage.pools[0].clone(), "shop", databases, SHORT).await;
    let half = half.expect("opens without it");
    let swept = half.sweep().await.expect("sweeps");
    assert_eq!((swept.committed, swept.ended), (1, 0));
    assert_eq!(swept.failures.len(), 1);
    assert_eq!(stage.balances().await, (90, 100), "seen in between");
    let only = vec![("accounts".to_owned(), stage.pools[1].clone())];
    let only = TwoPhase::open(stage.pools[0].clone(), "shop", only, SHORT)
        .await
        .expect("opens");
    let swept = only.sweep().await.expect("sweeps");
    assert_eq!(
        (swept.ended, swept.failures.len()),
        (0, 1),
        "it does not know stock, and says so"
    );
    let swept = coordinator.sweep().await.expect("sweeps");
    assert_eq!(
        (swept.committed, swept.ended, swept.failures.len()),
        (1, 1, 0)
    );
    assert_eq!(stage.balances().await, (90, 110));
    let outcome = coordinator.outcome("decided").await.expect("answers");
    assert_eq!(outcome, Some(TwoPhaseOutcome::Committed));
    assert_eq!(
        coordinator.sweep().await.expect("again"),
        super::TwoPhaseSwept::default()
    );
    stage.end().await;
}

#[tokio::test]
async fn two_phase_names_options_and_tables_are_checked() {
    let stage = Stage::new().await;
    let open = |name: String, databases: Vec<(String, PgPool)>, options| {
        TwoPhase::open(stage.pools[0].clone(), name, databases, options)
    };
    let defaults = TwoPhaseOptions::default;
    let pool = || stage.pools[1].clone();
    let opened = |result: Result<TwoPhase>| result.map(|_| ());
    let missing = opened(open("shop".into(), vec![], defaults()).await);
    assert_kind(missing, ErrorKind::Missing, "not migrated");
    stage.coordinator("shop", defaults()).await;
    for name in ["", "a:b", "a'b", "ä"] {
        let made = opened(open(name.into(), vec![], defaults()).await);
        assert_kind(made, ErrorKind::Invalid, name);
    }
    let made = opened(open("x".repeat(61), vec![], defaults()).await);
    assert_kind(made, ErrorKind::TooLarge, "a long name");
    let twice = vec![("a".to_owned(), pool()), ("a".to_owned(), pool())];
    assert_kind(
        opened(open("shop".into(), twice, defaults()).await),
        ErrorKind::Invalid,
        "twice",
    );
    let forgetful = TwoPhaseOptions {
        retention: Duration::from_secs(60),
        ..defaults()
    };
    let made = opened(open("shop".into(), vec![], forgetful).await);
    assert_kind(made, ErrorKind::Invalid, "forgets too soon");
    run(&stage.pools[0], "UPDATE quorate_2pc_schema SET version = 7").await;
    let text = assert_kind(
        opened(open("shop".into(), vec![], defaults()).await),
        ErrorKind::Schema,
        "newer",
    );
    assert!(text.contains("version 7"), "{text}");
    run(&stage.pools[0], "DROP TABLE quorate_2pc_schema").await;
    let made = TwoPhase::migrate(stage.pools[0].clone(), "shop", vec![], defaults()).await;
    assert_kind(opened(made), ErrorKind::Schema, "half made");
    // The longest names make a name that PostgreSQL takes.
    let name = BranchName {
        coordinator: "x".repeat(60),
        log: "y".repeat(12),
        transaction: "z".repeat(32),
        branch: "w".repeat(60),
    };
    let text = name.checked().expect("fits");
    assert_eq!(BranchName::parse(&text).as_ref(), Some(&name));
    run(
        &stage.pools[1],
        &format!("BEGIN; PREPARE TRANSACTION '{text}'"),
    )
    .await;
    run(&stage.pools[1], &format!("ROLLBACK PREPARED '{text}'")).await;
    for text in [
        "",
        "quorate",
        "quorate:a:b:c",
        "quorate:a:b:c:d:e",
        "other:a:b:c:d",
        "quorate:a::c:d",
    ] {
        assert_eq!(BranchName::parse(text), None, "{text}");
    }
    stage.end().await;
}

/// A server as it is installed: the error says which setting to change.
#[tokio::test]
async fn two_phase_server_that_prepares_nothing_is_a_clear_error() {
    let pool = pg_pool("public").await;
    // What such a server answers, from a function with its words and its code.
    let raise = "DO $$ BEGIN RAISE EXCEPTION 'prepared transactions are disabled' USING ERRCODE = '55000'; END $$";
    let error = sqlx::raw_sql(raise)
        .execute(&pool)
        .await
        .expect_err("raises");
    let error = failed("stock", error);
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(
        error.to_string().contains("max_prepared_transactions"),
        "{error}"
    );
    assert!(error.to_string().contains("stock"), "{error}");
    let full = "DO $$ BEGIN RAISE EXCEPTION 'maximum number of prepared transactions reached'
                USING ERRCODE = '53200'; END $$";
    let error = sqlx::raw_sql(full)
        .execute(&pool)
        .await
        .expect_err("raises");
    let error = failed("stock", error);
    assert!(
        error.is_retryable() && error.to_string().contains("raise it"),
        "{error}"
    );
    pool.close().await;
}

#[cfg(feature = "crash-points")]
mod kills {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    const ROLE: &str = "QUORATE_2PC_CHILD";
    const POINTS: [(&str, u32); 17] = [
        ("2pc.prepared-one", 1),
        ("2pc.prepared-one", 2),
        ("2pc.prepared-one", 4),
        ("2pc.prepared-all", 1),
        ("2pc.prepared-all", 2),
        ("2pc.decided", 1),
        ("2pc.decided", 2),
        ("2pc.committed-one", 1),
        ("2pc.committed-one", 2),
        ("2pc.committed-one", 3),
        ("2pc.committed-all", 1),
        ("2pc.ended", 2),
        ("2pc.aborted-one", 1),
        ("2pc.sweep-listed", 1),
        ("2pc.sweep-aborted", 1),
        ("2pc.sweep-settled", 1),
        ("2pc.sweep-ending", 1),
    ];

    /// So that no machine is too slow for it.
    const PATIENT: TwoPhaseOptions = TwoPhaseOptions {
        timeout: Duration::from_secs(120),
        ..SHORT
    };

    /// Not a test of its own: what the test below starts as a process, to be killed.
    #[tokio::test]
    async fn two_phase_kills_child() {
        let Ok(role) = std::env::var(ROLE) else {
            return;
        };
        let names: Vec<String> = role.split(' ').map(str::to_owned).collect();
        let stage = Stage::of(names.try_into().expect("three")).await;
        let coordinator = stage.coordinator("shop", PATIENT).await;
        for amount in [7, 3] {
            transfer(&coordinator, amount).await.expect("commits");
        }
        transfer(&coordinator, 1000)
            .await
            .expect_err("the account has not so much");
        let mut tx = coordinator.begin();
        for database in ["accounts", "stock"] {
            let branch = tx.branch(database).await.expect("begins");
            let update = sqlx::query("UPDATE account SET balance = balance - 1000 WHERE id = 2");
            let wanted = if database == "stock" {
                update.execute(branch).await.err()
            } else {
                None
            };
            assert_eq!(wanted.is_some(), database == "stock");
        }
        tx.commit().await.expect_err("one branch has failed");
        let log = &coordinator.inner.log.name;
        let orphan = format!(
            "BEGIN; UPDATE account SET balance = 0 WHERE id = 2; PREPARE TRANSACTION 'quorate:shop:{log}:o:stock'"
        );
        run(&stage.pools[2], &orphan).await;
        let hasty = stage.coordinator("shop", SHORT).await;
        eventually("the orphan is rolled back", || async {
            let swept = hasty.sweep().await.map_err(|error| error.to_string())?;
            if swept.rolled_back > 0 {
                Ok(())
            } else {
                Err("not yet".to_owned())
            }
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn two_phase_coordinator_killed_at_any_point_leaves_nothing_prepared() {
        let stage = Stage::new().await;
        stage.coordinator("shop", SHORT).await;
        for (point, count) in POINTS {
            let what = format!("killed at {point}:{count}");
            run(&stage.pools[0], "DELETE FROM quorate_2pc_decision").await;
            for pool in &stage.pools[1..] {
                run(pool, "DELETE FROM moved; UPDATE account SET balance = 100").await;
            }
            let mut child = Command::new(std::env::current_exe().expect("this test"));
            child.args([
                "--exact",
                "two_phase::tests::kills::two_phase_kills_child",
                "--nocapture",
            ]);
            child.env(ROLE, stage.names.join(" "));
            child.env("QUORATE_CRASH_AT", format!("{point}:{count}"));
            let ended = tokio::task::spawn_blocking(move || child.output())
                .await
                .expect("runs");
            let ended = ended.expect("starts");
            let said = String::from_utf8_lossy(&ended.stdout);
            assert_eq!(
                ended.status.signal(),
                Some(9),
                "{what}: the point is passed; {said}"
            );
            let coordinator = stage.coordinator("shop", SHORT).await;
            eventually(&what, || async {
                let swept = coordinator
                    .sweep()
                    .await
                    .map_err(|error| error.to_string())?;
                assert_eq!(swept.failures, [], "{what}");
                if stage.prepared().await == 0 {
                    Ok(())
                } else {
                    Err(format!("{swept:?}"))
                }
            })
            .await;
            coordinator.sweep().await.expect("sweeps");
            let (accounts, stock) = stage.balances().await;
            assert_eq!(accounts + stock, 200, "{what}: money is conserved");
            let second = "SELECT balance FROM account WHERE id = 2";
            for pool in &stage.pools[1..] {
                assert_eq!(
                    number(pool, second).await,
                    100,
                    "{what}: what failed left nothing"
                );
            }
            let states = "SELECT coalesce(string_agg(transaction, ',' ORDER BY transaction), '')
                 FROM quorate_2pc_decision WHERE state = 3";
            let decided: String = sqlx::query_scalar(states)
                .fetch_one(&stage.pools[0])
                .await
                .expect("reads");
            let moved =
                "SELECT coalesce(string_agg(transaction, ',' ORDER BY transaction), '') FROM moved";
            for pool in &stage.pools[1..] {
                let moved: String = sqlx::query_scalar(moved)
                    .fetch_one(pool)
                    .await
                    .expect("reads");
                assert_eq!(moved, decided, "{what}: what is decided is what is there");
            }
            let open = "SELECT count(*) FROM quorate_2pc_decision WHERE state = 1";
            assert_eq!(number(&stage.pools[0], open).await, 0, "{what}");
        }
        stage.end().await;
    }
}
