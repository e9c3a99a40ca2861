//! Buckets that move while they are written and read: nothing is lost, doubled or stale, whoever dies when.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::stream::TryStreamExt;
use sqlx::{Connection, Postgres};
use tokio::task::JoinSet;

use super::support::{Pg, open, variable, write};
use crate::points::Planted;
use crate::shard::{
    Aggregate, Buckets, Direction, Key, Kind, Listing, Move, PageToken, Step, Value,
};
use crate::{Database, ErrorKind, Options, Read, Work};

const BUCKETS: u32 = 16;
/// Rows that are always there.
const ROWS: i64 = 900;
const SHARDS: usize = 3;
const SET: &str = "shop";
/// Tells a process that it is a child, and in which schemas to work.
const ROLE: &str = "QUORATE_SQL_MOVE";

const MAKE: [&str; 2] = [
    "CREATE TABLE accounts (id bigint PRIMARY KEY, bucket int NOT NULL, n bigint NOT NULL, \
     note text, part double precision, raw bytea, twice bigint GENERATED ALWAYS AS (n * 2) STORED)",
    "CREATE INDEX ON accounts (bucket, id)",
];

pub(super) fn options(schema: &str) -> Options {
    let url = variable("QUORATE_POSTGRES");
    // No server dies here: commits need not be synced.
    let settings = format!("-c%20search_path%3D{schema}%20-c%20synchronous_commit%3Doff");
    let mut options = Options::new(format!("{url}?options={settings}"));
    // A busy machine makes all slow: that is no reason to let fewer in, or to give up.
    options.pool = crate::PoolOptions::up_to(8);
    options.pool.limit.floor = 8;
    options.pool.patience = Duration::from_secs(60);
    options
}

pub(super) async fn databases(schemas: &[String]) -> Vec<Database<Postgres>> {
    let mut all = Vec::new();
    for schema in schemas {
        all.push(open::<Postgres>(options(schema)).await);
    }
    all
}

/// With limits that a busy machine does not come near.
pub(super) fn patient(set: crate::Result<Buckets>) -> Buckets {
    let long = Duration::from_secs(60);
    set.expect("opens").patience(long).lock_max(long)
}

struct Stage {
    schemas: Vec<Pg>,
    set: Arc<Buckets>,
    /// What was acknowledged of each row.
    acked: Arc<Vec<AtomicI64>>,
}

impl Stage {
    async fn new() -> Stage {
        let mut schemas = Vec::new();
        for _ in 0..SHARDS {
            schemas.push(Pg::new().await);
        }
        let names: Vec<String> = schemas.iter().map(|pg| pg.schema().to_owned()).collect();
        let databases = databases(&names).await;
        for db in &databases {
            write(&db.session(), &MAKE).await;
        }
        let set = patient(Buckets::open(SET, BUCKETS, databases).await);
        for shard in 0..SHARDS {
            let rows = (0..ROWS).filter_map(|id| {
                let bucket = set.bucket(&Key::from(id));
                let here = bucket as usize * SHARDS / BUCKETS as usize == shard;
                here.then(|| format!("({id}, {bucket}, 0, E'a\"\\\\b\\t{id}', 0.1, '\\x00ff')"))
            });
            let rows: Vec<String> = rows.collect();
            let text = format!(
                "INSERT INTO accounts (id, bucket, n, note, part, raw) VALUES {}",
                rows.join(",")
            );
            write(&set.all()[shard].session(), &[&text]).await;
        }
        let acked = (0..ROWS).map(|_| AtomicI64::new(0)).collect();
        Stage {
            schemas,
            set: Arc::new(set),
            acked: Arc::new(acked),
        }
    }

    fn names(&self) -> Vec<String> {
        self.schemas
            .iter()
            .map(|pg| pg.schema().to_owned())
            .collect()
    }

    /// The same set as another process knows it.
    async fn other(&self, planted: Option<Planted>) -> Arc<Buckets> {
        let set = Buckets::open(SET, BUCKETS, databases(&self.names()).await).await;
        let mut set = patient(set);
        set.planted = planted;
        Arc::new(set)
    }

    async fn end(self) {
        drop(self.set);
        for schema in self.schemas {
            schema.end().await;
        }
    }
}

/// Half of the buckets of the first database.
fn plan(source: usize, target: usize) -> Move {
    Move {
        source,
        target,
        buckets: vec![0, 2, 5],
        tables: vec!["accounts".to_owned()],
    }
}

/// What was seen that must not be.
#[derive(Debug, Default)]
struct Wrong {
    lost: AtomicU64,
    stale: AtomicU64,
    miscounted: AtomicU64,
}

impl Wrong {
    fn counts(&self) -> [u64; 3] {
        [&self.lost, &self.stale, &self.miscounted].map(|count| count.load(Ordering::Relaxed))
    }
}

/// Writers, readers and who counts, at work until they are told to end.
struct Traffic {
    tasks: JoinSet<()>,
    done: Arc<AtomicBool>,
    wrong: Arc<Wrong>,
    writes: Arc<AtomicU64>,
}

impl Traffic {
    fn begin(stage: &Stage, writers: i64) -> Traffic {
        let set = &stage.set;
        let mut traffic = Traffic {
            tasks: JoinSet::new(),
            done: Arc::default(),
            wrong: Arc::default(),
            writes: Arc::default(),
        };
        for writer in 0..writers {
            let (set, acked) = (Arc::clone(set), Arc::clone(&stage.acked));
            let (done, wrong) = (Arc::clone(&traffic.done), Arc::clone(&traffic.wrong));
            let writes = Arc::clone(&traffic.writes);
            traffic.tasks.spawn(async move {
                let mut id = writer;
                while !done.load(Ordering::Relaxed) {
                    id = (id + writers * 7) % ROWS;
                    id -= id % writers - writer;
                    if id >= ROWS {
                        continue;
                    }
                    let own = &acked[id as usize];
                    let n = raise(&set, id).await;
                    // Nobody else writes this row.
                    if n != own.load(Ordering::SeqCst) + 1 {
                        wrong.lost.fetch_add(1, Ordering::Relaxed);
                    }
                    own.store(n, Ordering::SeqCst);
                    writes.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for reader in 0..(writers / 2) {
            let (set, acked) = (Arc::clone(set), Arc::clone(&stage.acked));
            let (done, wrong) = (Arc::clone(&traffic.done), Arc::clone(&traffic.wrong));
            traffic.tasks.spawn(async move {
                let mut id = reader * 31;
                while !done.load(Ordering::Relaxed) {
                    id = (id + 17) % ROWS;
                    let least = acked[id as usize].load(Ordering::SeqCst);
                    if look(&set, id).await < least {
                        wrong.stale.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let (set, done) = (Arc::clone(set), Arc::clone(&traffic.done));
        let wrong = Arc::clone(&traffic.wrong);
        traffic.tasks.spawn(async move {
            while !done.load(Ordering::Relaxed) {
                if rows(&set).await != ROWS {
                    wrong.miscounted.fetch_add(1, Ordering::Relaxed);
                }
                // Others need the machine too.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        traffic
    }

    /// Ends it; answers what went wrong, and how many writes there were.
    async fn end(mut self) -> ([u64; 3], u64) {
        self.done.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("no panic");
        }
        (self.wrong.counts(), self.writes.load(Ordering::Relaxed))
    }
}

/// Raises a row's number: of some rows by deleting and inserting it.
async fn raise(set: &Buckets, id: i64) -> i64 {
    let work = Work::default().isolation(crate::Isolation::ReadCommitted);
    let raised = set.write(id, work, |tx, bucket| {
        Box::pin(async move {
            // A write takes its time, so that some are under way whenever a bucket leaves.
            sqlx::query("SELECT pg_sleep(0.002)")
                .execute(&mut **tx)
                .await?;
            if id % 5 != 0 {
                let raise = "UPDATE accounts SET n = n + 1 WHERE id = $1 RETURNING n";
                let raise = sqlx::query_scalar(raise).bind(id);
                return Ok(raise.fetch_one(&mut **tx).await?);
            }
            let remove = "DELETE FROM accounts WHERE id = $1 RETURNING n";
            let n: i64 = sqlx::query_scalar(remove)
                .bind(id)
                .fetch_one(&mut **tx)
                .await?;
            let put = "INSERT INTO accounts (id, bucket, n, part) VALUES ($1, $2, $3, 'NaN')";
            let put = sqlx::query(put).bind(id).bind(bucket).bind(n + 1);
            put.execute(&mut **tx).await?;
            Ok(n + 1)
        })
    });
    match raised.await {
        Ok(n) => n,
        // The row is not where it should be.
        Err(error) if error.kind() == ErrorKind::Missing => -1,
        Err(error) => panic!("a write of {id}: {error}"),
    }
}

async fn look(set: &Buckets, id: i64) -> i64 {
    let found = set.read(id, Read::Primary, |lease, _| {
        Box::pin(async move {
            let look = sqlx::query_scalar("SELECT n FROM accounts WHERE id = $1").bind(id);
            Ok(look.fetch_optional(&mut **lease).await?)
        })
    });
    found.await.expect("reads").unwrap_or(-1)
}

/// How many rows there are.
async fn rows(set: &Buckets) -> i64 {
    let count = Aggregate::over("accounts").count();
    let groups = set.aggregate(Read::Primary, &count).await.expect("asks");
    let groups: Vec<_> = groups.try_collect().await.expect("counts");
    groups[0].values[0].as_i64().expect("a number")
}

/// Every row is there once, as it was last acknowledged, in pages too.
async fn check(stage: &Stage, what: &str) {
    let listing = Listing::of("accounts", ["n"]).order_by("id", Kind::Int, Direction::Ascending);
    let mut token: Option<PageToken> = None;
    let mut id = 0;
    loop {
        let page = stage
            .set
            .page(Read::Primary, &listing, 400, token.as_ref())
            .await;
        let page = page.expect("a page");
        for row in &page.rows {
            let (n, own): (i64, i64) = (sqlx::Row::get(row, 0), sqlx::Row::get(row, 1));
            let expected = stage.acked[id as usize].load(Ordering::SeqCst);
            assert_eq!((own, n), (id, expected), "{what}");
            id += 1;
        }
        token = page.next;
        if token.is_none() {
            break;
        }
    }
    assert_eq!(id, ROWS, "{what}");
}

/// How many rows of the moved buckets a database holds.
async fn held(stage: &Stage, shard: usize) -> i64 {
    let text = "SELECT count(*) FROM accounts WHERE bucket IN (0, 2, 5)";
    let pool = stage.set.all()[shard].primary();
    sqlx::query_scalar(text)
        .fetch_one(&pool)
        .await
        .expect("counts")
}

#[tokio::test(flavor = "multi_thread")]
async fn move_under_writers_loses_doubles_and_stales_nothing() {
    let stage = Stage::new().await;
    let mover = stage.other(None).await;
    let rows_moved = held(&stage, 0).await;
    assert!(rows_moved > 50, "{rows_moved}");
    let traffic = Traffic::begin(&stage, 6);
    let id = mover.plan(&plan(0, 1)).await.expect("plans");
    let status = mover.carry_out(id).await.expect("moves");
    assert_eq!(status.step, Step::Switched);
    assert!(status.copied >= rows_moved, "{status:?}");
    assert!(status.followed > 0, "nobody wrote meanwhile: {status:?}");
    assert_eq!(mover.undo(id).await.expect("undoes").step, Step::Undone);
    assert_eq!(held(&stage, 1).await, 0, "copies are removed");
    let error = mover.carry_out(id).await.expect_err("it is undone");
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let id = mover.plan(&plan(0, 2)).await.expect("plans");
    mover.carry_out(id).await.expect("moves");
    let status = mover.finish(id).await.expect("finishes");
    assert_eq!((status.step, status.backlog), (Step::Finished, 0));
    assert_eq!(held(&stage, 0).await, 0, "the source's rows are removed");
    assert_eq!(held(&stage, 2).await, rows_moved);
    let error = mover.undo(id).await.expect_err("it is finished");
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let (wrong, writes) = traffic.end().await;
    assert_eq!(wrong, [0; 3], "lost, stale, miscounted");
    assert!(writes > 100, "{writes}");
    check(&stage, "after the moves").await;
    let steps: Vec<Step> = mover
        .moves()
        .await
        .expect("says")
        .iter()
        .map(|m| m.step)
        .collect();
    assert_eq!(steps, [Step::Undone, Step::Finished]);
    stage.end().await;
}

/// A row of a bucket.
fn row_of(set: &Buckets, bucket: i32) -> i64 {
    let found = (0..ROWS).find(|id| set.bucket(&Key::from(*id)) == bucket);
    found.expect("a row")
}

/// Waits until a session of the server waits for another.
async fn waits_for(stage: &Stage, pid: i32) {
    super::support::eventually("someone waits", || async {
        let look = "SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY(pg_blocking_pids(pid))";
        let look = sqlx::query_scalar(look).bind(pid);
        let count: i64 = look.fetch_one(&stage.schemas[0].admin).await.expect("says");
        (count > 0).then_some(()).ok_or("nobody".to_owned())
    })
    .await;
}

/// A move that is halted while it copies: the bucket 0 is copied, and a row of the bucket 5 can't be.
struct Halted {
    blocker: sqlx::PgConnection,
    moving: tokio::task::JoinHandle<crate::Result<crate::shard::MoveStatus>>,
}

impl Halted {
    async fn begin(stage: &Stage, mover: &Arc<Buckets>) -> Halted {
        let url = options(&stage.names()[1]).primary;
        let mut blocker = sqlx::PgConnection::connect(&url).await.expect("connects");
        let id = row_of(mover, 5);
        for text in [
            "BEGIN".to_owned(),
            format!("INSERT INTO accounts (id, bucket, n) VALUES ({id}, 9, 0)"),
        ] {
            let text = sqlx::AssertSqlSafe(text);
            sqlx::query(text).execute(&mut blocker).await.expect("runs");
        }
        let pid = "SELECT pg_backend_pid()";
        let pid = sqlx::query_scalar(pid)
            .fetch_one(&mut blocker)
            .await
            .expect("says");
        let mover = Arc::clone(mover);
        let moving = tokio::spawn(async move {
            let id = mover.plan(&plan(0, 1)).await?;
            mover.carry_out(id).await
        });
        waits_for(stage, pid).await;
        Halted { blocker, moving }
    }

    async fn go_on(self) -> tokio::task::JoinHandle<crate::Result<crate::shard::MoveStatus>> {
        self.blocker.close().await.expect("ends");
        self.moving
    }
}

/// A write that is under way when its bucket leaves. Answers what the next write of the row makes of its number, which
/// is 2 if the first was kept.
async fn write_under_way(bug: Option<Planted>) -> i64 {
    let stage = Stage::new().await;
    let set = stage.other(bug).await;
    let halted = Halted::begin(&stage, &set).await;
    let id = row_of(&set, 0);
    let (began, told) = tokio::sync::oneshot::channel();
    let began = Arc::new(parking_lot::Mutex::new(Some(began)));
    let end = Arc::new(tokio::sync::Notify::new());
    let writing = tokio::spawn({
        let (set, end) = (Arc::clone(&set), Arc::clone(&end));
        async move {
            let work = Work::default().isolation(crate::Isolation::ReadCommitted);
            let write = set.write(id, work, move |tx, _| {
                let (began, end) = (Arc::clone(&began), Arc::clone(&end));
                Box::pin(async move {
                    let raise =
                        "UPDATE accounts SET n = n + 1 WHERE id = $1 RETURNING pg_backend_pid()";
                    let pid: i32 = sqlx::query_scalar(raise)
                        .bind(id)
                        .fetch_one(&mut **tx)
                        .await?;
                    if let Some(began) = began.lock().take() {
                        began.send(pid).expect("someone waits");
                    }
                    end.notified().await;
                    Ok(())
                })
            });
            write.await
        }
    });
    let writer = told.await.expect("it has written");
    let moving = halted.go_on().await;
    waits_for(&stage, writer).await;
    end.notify_one();
    writing.await.expect("no panic").expect("it is committed");
    let status = moving.await.expect("no panic").expect("moves");
    assert_eq!(status.step, Step::Switched);
    let n = raise(&set, id).await;
    drop(set);
    stage.end().await;
    n
}

#[tokio::test(flavor = "multi_thread")]
async fn write_under_way_when_its_bucket_leaves_is_waited_for_and_kept() {
    assert_eq!(write_under_way(None).await, 2);
    // The teeth: without the lock, and without the last changes, it is lost.
    assert_eq!(write_under_way(Some(Planted::UnlockedWrites)).await, 1);
    assert_eq!(write_under_way(Some(Planted::EarlySwitch)).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn move_check_notices_reads_that_do_not_look_where_their_bucket_is() {
    let stage = Stage::new().await;
    let stray = stage.other(Some(Planted::BlindReads)).await;
    let id = stage.set.plan(&plan(0, 1)).await.expect("plans");
    stage.set.carry_out(id).await.expect("moves");
    let moved = row_of(&stage.set, 2);
    assert_eq!(raise(&stage.set, moved).await, 1);
    assert_eq!(look(&stray, moved).await, 0, "it reads where the row was");
    assert_eq!(look(&stage.set, moved).await, 1);
    drop(stray);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn move_check_notices_copies_that_count() {
    let stage = Stage::new().await;
    let stray = stage.other(Some(Planted::CopiesCount)).await;
    let id = stage.set.plan(&plan(0, 1)).await.expect("plans");
    stage.set.carry_out(id).await.expect("moves");
    assert!(rows(&stray).await > ROWS);
    assert_eq!(rows(&stage.set).await, ROWS);
    drop(stray);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn move_whose_copy_differs_is_refused_and_can_be_undone() {
    let stage = Stage::new().await;
    let deaf = stage.other(Some(Planted::DeafCopy)).await;
    let halted = Halted::begin(&stage, &deaf).await;
    let changed = row_of(&stage.set, 0);
    stage.acked[changed as usize].store(raise(&stage.set, changed).await, Ordering::SeqCst);
    let ended = halted.go_on().await.await.expect("no panic");
    let error = ended.expect_err("it has missed a change");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(
        error.message().contains("accounts differs in bucket"),
        "{error}"
    );
    let status = deaf.moves().await.expect("says").remove(0);
    assert_eq!(status.step, Step::Following);
    assert!(status.trouble.expect("it is noted").contains("differs"));
    assert_eq!(look(&stage.set, changed).await, 1, "it is where it was");
    deaf.undo(status.id).await.expect("undoes");
    check(&stage, "after it was undone").await;
    drop(deaf);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn move_that_two_carry_out_at_once_does_no_harm() {
    let stage = Stage::new().await;
    let (a, b) = (stage.other(None).await, stage.other(None).await);
    let traffic = Traffic::begin(&stage, 6);
    let id = a.plan(&plan(0, 1)).await.expect("plans");
    let (first, second) = tokio::join!(a.carry_out(id), b.carry_out(id));
    for ended in [&first, &second] {
        if let Err(error) = ended {
            assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
        }
    }
    assert!(first.is_ok() || second.is_ok(), "{first:?} {second:?}");
    assert_eq!(a.finish(id).await.expect("finishes").step, Step::Finished);
    let (wrong, _) = traffic.end().await;
    assert_eq!(wrong, [0; 3], "lost, stale, miscounted");
    check(&stage, "after both").await;
    drop((a, b));
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn move_of_a_process_that_stood_still_is_refused_once_another_has_it() {
    let stage = Stage::new().await;
    let id = stage.set.plan(&plan(0, 1)).await.expect("plans");
    let error = stage
        .set
        .carry_out_late(id)
        .await
        .expect_err("it has lost it");
    assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
    let status = stage.set.moves().await.expect("says").remove(0);
    assert_eq!((status.step, held(&stage, 1).await), (Step::Planned, 0));
    // The teeth: without the fence it goes on.
    let unfenced = stage.other(Some(Planted::NoFence)).await;
    unfenced
        .carry_out_late(id)
        .await
        .expect("nobody refuses it");
    assert!(held(&stage, 1).await > 0);
    drop(unfenced);
    stage.end().await;
}

/// What a child does, where it dies, and for the how manieth time it gets there.
const POINTS: [(&str, &str, u32); 30] = [
    ("carry out", "move-cleared", 1),
    ("carry out", "move-noting", 1),
    ("carry out", "move-batch-read", 2),
    ("carry out", "move-batch-put", 1),
    ("carry out", "move-batch-noted", 2),
    ("carry out", "move-copied", 1),
    ("carry out", "move-change-read", 1),
    ("carry out", "move-change-put", 1),
    ("carry out", "move-change-noted", 1),
    ("carry out", "move-followed", 1),
    ("carry out", "move-given-up", 1),
    ("carry out", "move-last-changes", 1),
    ("carry out", "move-notes-ended", 1),
    ("carry out", "move-taken", 1),
    ("carry out", "move-switched", 1),
    ("undo early", "undo-clearing", 1),
    ("undo", "undo-begun", 1),
    ("undo", "move-change-put", 1),
    ("undo", "undo-followed", 1),
    ("undo", "undo-given-up", 1),
    ("undo", "undo-last-changes", 1),
    ("undo", "undo-notes-ended", 1),
    ("undo", "undo-clearing", 1),
    ("undo", "move-removed", 1),
    ("undo", "undo-cleared", 1),
    ("undo", "move-closed", 1),
    ("finish", "finish-begun", 1),
    ("finish", "finish-notes-ended", 1),
    ("finish", "move-removed", 1),
    ("finish", "finish-cleared", 1),
];

/// Does what its parent asks of it, unless it is killed before. By itself it shows that a child comes to its end.
#[tokio::test(flavor = "multi_thread")]
async fn move_kills_child() {
    let Ok(role) = std::env::var(ROLE) else {
        let stage = Stage::new().await;
        let id = stage.set.plan(&plan(0, 1)).await.expect("plans");
        let ended = child(&stage, "carry out", id, ("nowhere", 1)).await;
        assert!(ended.status.success(), "{ended:?}");
        let status = stage.set.moves().await.expect("says").remove(0);
        assert_eq!(status.step, Step::Switched);
        return stage.end().await;
    };
    let words: Vec<String> = role.split(',').map(str::to_owned).collect();
    let set = Buckets::open(SET, BUCKETS, databases(&words[2..]).await).await;
    let (set, id) = (patient(set), words[1].parse().expect("a number"));
    let done = match words[0].as_str() {
        "carry out" => set.carry_out(id).await,
        "finish" => set.finish(id).await,
        _ => set.undo(id).await,
    };
    done.expect("is done");
}

async fn child(stage: &Stage, what: &str, id: i64, point: (&str, u32)) -> std::process::Output {
    let mut child = Command::new(std::env::current_exe().expect("this test"));
    child.args(["--exact", "tests::moves::move_kills_child", "--nocapture"]);
    child.env(ROLE, format!("{what},{id},{}", stage.names().join(",")));
    child.env("QUORATE_CRASH_AT", format!("{}:{}", point.0, point.1));
    let ended = tokio::task::spawn_blocking(move || child.output()).await;
    ended.expect("runs").expect("starts")
}

#[tokio::test(flavor = "multi_thread")]
async fn move_killed_at_any_point_loses_and_doubles_nothing() {
    let stage = Stage::new().await;
    let traffic = Traffic::begin(&stage, 2);
    let (mut source, mut target) = (0, 1);
    for (what, point, count) in POINTS {
        let said = format!("{what} killed at {point}:{count}");
        let id = stage.set.plan(&plan(source, target)).await;
        let id = id.unwrap_or_else(|error| panic!("{said}: {error}"));
        if matches!(what, "undo" | "finish") {
            stage.set.carry_out(id).await.expect("moves");
        }
        let ended = child(&stage, what, id, (point, count)).await;
        assert_eq!(ended.status.signal(), Some(9), "{said}: {ended:?}");
        // What a dead process had open its server ends by itself, soon.
        let done = super::support::eventually(&said, || async {
            let done = match what {
                "carry out" => stage.set.carry_out(id).await,
                "finish" => stage.set.finish(id).await,
                _ => stage.set.undo(id).await,
            };
            match done {
                Err(error) if error.kind() == ErrorKind::Locked => Err(error.to_string()),
                done => Ok(done.unwrap_or_else(|error| panic!("{said}: {error}"))),
            }
        })
        .await;
        assert_eq!(rows(&stage.set).await, ROWS, "{said}");
        match what {
            "carry out" => {
                assert_eq!(done.step, Step::Switched, "{said}");
                stage.set.finish(id).await.expect("finishes");
            }
            "finish" => assert_eq!(done.step, Step::Finished, "{said}"),
            _ => assert_eq!(done.step, Step::Undone, "{said}"),
        }
        if !what.starts_with("undo") {
            (source, target) = (target, source);
        }
        assert_eq!(held(&stage, target).await, 0, "{said}: nothing is left");
    }
    let (wrong, writes) = traffic.end().await;
    assert_eq!(wrong, [0; 3], "lost, stale, miscounted");
    assert!(writes > 100, "{writes}");
    check(&stage, "after all").await;
    let triggers = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'quorate_move_%' AND \
                    tgrelid = 'accounts'::regclass";
    for db in &stage.set.all()[..2] {
        let left: i64 = sqlx::query_scalar(triggers)
            .fetch_one(&db.primary())
            .await
            .expect("counts");
        assert_eq!(left, 0, "no trigger is left");
    }
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn move_that_cannot_be_is_refused_before_it_begins() {
    let stage = Stage::new().await;
    let set = &stage.set;
    let refused = async |plan: Move, why: &str| {
        let error = set.plan(&plan).await.expect_err(why);
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.message().contains(why), "{why}: {error}");
    };
    refused(plan(0, 0), "between two").await;
    refused(plan(0, 9), "between two").await;
    refused(plan(1, 2), "owns 0 of the 3").await;
    refused(
        Move {
            buckets: vec![],
            ..plan(0, 1)
        },
        "names buckets",
    )
    .await;
    refused(
        Move {
            buckets: vec![1, 1],
            ..plan(0, 1)
        },
        "each once",
    )
    .await;
    refused(
        Move {
            tables: vec![],
            ..plan(0, 1)
        },
        "all tables",
    )
    .await;
    for (kind, why) in [
        ("(id bigint, bucket int)", "no primary key"),
        ("(id bigint PRIMARY KEY)", "no column bucket"),
        (
            "(id bigint PRIMARY KEY, bucket int, n SHARD)",
            "not the same",
        ),
    ] {
        for (shard, differs) in [(0, "bigint"), (1, "text")] {
            let make = format!("CREATE TABLE bad {}", kind.replace("SHARD", differs));
            write(&set.all()[shard].session(), &[&make]).await;
        }
        let named = Move {
            tables: vec!["bad".to_owned(), "accounts".to_owned()],
            ..plan(0, 1)
        };
        refused(named, why).await;
        if why != "no column bucket" {
            refused(plan(0, 1), "the table bad has a column bucket").await;
        }
        for shard in 0..2 {
            write(&set.all()[shard].session(), &["DROP TABLE bad"]).await;
        }
    }
    let id = set.plan(&plan(0, 1)).await.expect("plans");
    refused(
        Move {
            buckets: vec![5],
            ..plan(0, 2)
        },
        &format!("move {id} has some"),
    )
    .await;
    let error = set.finish(id).await.expect_err("it has not switched");
    assert!(error.message().contains("it is planned"), "{error}");
    let error = set.carry_out(4_096 * 7).await.expect_err("there is none");
    assert_eq!(error.kind(), ErrorKind::Missing, "{error}");
    let names = stage.names();
    let turned = vec![names[1].clone(), names[0].clone(), names[2].clone()];
    for (count, names) in [(BUCKETS, turned), (BUCKETS * 2, names.clone())] {
        let error = Buckets::open(SET, count, databases(&names).await).await;
        assert_eq!(error.expect_err("another set").kind(), ErrorKind::Invalid);
    }
    // What is held for too long ends a move's try, and no more.
    let mut holder = sqlx::PgConnection::connect(&stage.schemas[0].url())
        .await
        .expect("connects");
    let mut tx = holder.begin().await.expect("begins");
    let hold = "UPDATE accounts SET n = n WHERE id = 1";
    sqlx::query(hold).execute(&mut *tx).await.expect("writes");
    let hasty = Buckets::open(SET, BUCKETS, databases(&names).await).await;
    let hasty = hasty.expect("opens").lock_max(Duration::from_millis(50));
    let error = hasty.carry_out(id).await.expect_err("the table is held");
    assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
    tx.rollback().await.expect("ends");
    drop((holder, hasty));
    assert_eq!(set.carry_out(id).await.expect("moves").step, Step::Switched);
    assert_eq!(rows(set).await, ROWS);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn buckets_of_an_added_database_are_moved_to_it_and_counted_by_group() {
    let stage = Stage::new().await;
    let added = Pg::new().await;
    let mut names = stage.names();
    names.push(added.schema().to_owned());
    let all = databases(&names).await;
    write(&all[3].session(), &MAKE).await;
    let set = Buckets::open(SET, BUCKETS, all)
        .await
        .expect("opens with one more");
    assert_eq!(rows(&set).await, ROWS, "it owns nothing yet");
    let id = set.plan(&plan(0, 3)).await.expect("plans");
    set.carry_out(id).await.expect("moves");
    let by = Aggregate::over("accounts")
        .group_by("bucket", Kind::Int)
        .count();
    let groups = set.aggregate(Read::Primary, &by).await.expect("asks");
    let groups: Vec<_> = groups.try_collect().await.expect("counts");
    let buckets: Vec<Value> = groups.iter().map(|group| group.keys[0].clone()).collect();
    let expected: Vec<Value> = (0..BUCKETS.into()).map(Value::Int).collect();
    assert_eq!(buckets, expected);
    drop(set);
    added.end().await;
    stage.end().await;
}
