//! Rows that change their shard key while they are used: each is there once, whoever dies or stands still when.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::stream::TryStreamExt;
use sqlx::Row;
use tokio::task::JoinSet;

use super::moves::{databases, patient};
use super::support::{Pg, write};
use crate::points::Planted;
use crate::shard::{Aggregate, Buckets, Key, KeyChange, Move, Step, Try};
use crate::{ErrorKind, Isolation, Read, Work};

const BUCKETS: u32 = 12;
const SHARDS: usize = 3;
const SET: &str = "orders";
const CUSTOMERS: i64 = 48;
const ORDERS: i64 = 24;
const ROLE: &str = "QUORATE_SQL_REKEY";

const MAKE: [&str; 2] = [
    "CREATE TABLE orders (id bigint PRIMARY KEY, customer bigint NOT NULL, bucket int NOT NULL, n bigint NOT NULL, \
     note text, part double precision, twice bigint GENERATED ALWAYS AS (n * 2) STORED)",
    "CREATE TABLE lines (orders bigint NOT NULL, at int, bucket int NOT NULL, \
     raw json, PRIMARY KEY (orders, at))",
];

/// Orders of customers, each with two lines, over three databases.
struct Stage {
    schemas: Vec<Pg>,
    set: Arc<Buckets>,
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
        for id in 0..ORDERS {
            put(&set, id, id).await.expect("an order");
        }
        let set = Arc::new(set);
        Stage { schemas, set }
    }

    fn names(&self) -> Vec<String> {
        let names = self.schemas.iter().map(|pg| pg.schema().to_owned());
        names.collect()
    }

    /// The same set as another process knows it.
    async fn other(&self, planted: Option<Planted>) -> Arc<Buckets> {
        let mut set = patient(Buckets::open(SET, BUCKETS, databases(&self.names()).await).await);
        set.planted = planted;
        Arc::new(set)
    }

    /// In how many databases an order is, whoever owns its bucket.
    async fn copies(&self, id: i64) -> i64 {
        let mut count = 0;
        for db in self.set.all() {
            let look = sqlx::query_scalar("SELECT count(*) FROM orders WHERE id = $1").bind(id);
            let here: i64 = look.fetch_one(&db.primary()).await.expect("counts");
            count += here;
        }
        count
    }

    async fn end(self) {
        drop(self.set);
        for schema in self.schemas {
            schema.end().await;
        }
    }
}

fn work() -> Work {
    Work::default().isolation(Isolation::ReadCommitted)
}

async fn put(set: &Buckets, id: i64, customer: i64) -> crate::Result<()> {
    let put = set.write(customer, work(), |tx, bucket| {
        Box::pin(async move {
            let order = "INSERT INTO orders VALUES ($1, $2, $3, 0, E'a\"\\\\b\\t', 'NaN')";
            let order = sqlx::query(order).bind(id).bind(customer).bind(bucket);
            order.execute(&mut **tx).await?;
            let lines = "INSERT INTO lines SELECT $1, at, $2, '{\"b\":1, \"a\": 0.10,\"b\":2}' \
                         FROM generate_series(1, 2) at";
            let lines = sqlx::query(lines).bind(id).bind(bucket);
            lines.execute(&mut **tx).await?;
            Ok(())
        })
    });
    put.await
}

fn change(id: i64, from: i64, to: i64) -> KeyChange {
    let none: [(&str, i64); 0] = [];
    KeyChange::new(from, to)
        .rows("orders", [("id", id)], [("customer", to)])
        .rows("lines", [("orders", id)], none)
}

/// Raises an order's number under its customer; `None` if it is not there.
async fn raise(set: &Buckets, id: i64, customer: i64) -> Option<i64> {
    let raised = set.write(customer, work(), |tx, bucket| {
        Box::pin(async move {
            let raise = "UPDATE orders SET n = n + 1 WHERE id = $1 AND customer = $2 AND bucket = $3 RETURNING n";
            let raise = sqlx::query_scalar(raise).bind(id).bind(customer);
            Ok(raise.bind(bucket).fetch_optional(&mut **tx).await?)
        })
    });
    raised.await.expect("writes")
}

/// An order's number under a customer; `None` if it is not there.
async fn look(set: &Buckets, id: i64, customer: i64) -> Option<i64> {
    let found = set.read(customer, Read::Primary, |lease, bucket| {
        Box::pin(async move {
            let look = "SELECT n FROM orders WHERE id = $1 AND customer = $2 AND bucket = $3";
            let look = sqlx::query_scalar(look)
                .bind(id)
                .bind(customer)
                .bind(bucket);
            Ok(look.fetch_optional(&mut **lease).await?)
        })
    });
    found.await.expect("reads")
}

async fn count(set: &Buckets, table: &str) -> i64 {
    let count = Aggregate::over(table).count();
    let groups = set.aggregate(Read::Primary, &count).await.expect("asks");
    let groups: Vec<_> = groups.try_collect().await.expect("counts");
    groups[0].values[0].as_i64().expect("a number")
}

async fn begin(set: &Buckets, change: &KeyChange) -> crate::shard::Begun {
    match set.part(change).await.expect("begins") {
        Try::Begun(begun) => begun,
        _ => panic!("not between two databases"),
    }
}

/// A customer whose bucket is in another database, or in the same.
fn customer(set: &Buckets, of: i64, elsewhere: bool) -> i64 {
    let shard = |key: i64| set.bucket(&Key::from(key)) as usize * SHARDS / BUCKETS as usize;
    let mut others =
        (CUSTOMERS..).filter(|other| set.bucket(&Key::from(*other)) != set.bucket(&Key::from(of)));
    let found = others.find(|other| (shard(*other) != shard(of)) == elsewhere);
    found.expect("one")
}

#[tokio::test(flavor = "multi_thread")]
async fn key_change_moves_an_order_and_its_lines_as_they_are() {
    let stage = Stage::new().await;
    let set = &stage.set;
    for db in set.all() {
        let key = "ALTER TABLE lines ADD FOREIGN KEY (orders) REFERENCES orders";
        write(&db.session(), &[key]).await;
    }
    let whole = |set: Arc<Buckets>, customer: i64| async move {
        let rows = set.read(customer, Read::Primary, |lease, bucket| {
            Box::pin(async move {
                let text = "SELECT (o.id, o.n, o.note, o.part, o.twice)::text || string_agg(l.at || l.raw::text, ',' ORDER BY at) \
                            FROM orders o JOIN lines l ON l.orders = o.id AND l.bucket = o.bucket \
                            WHERE o.id = 3 AND o.bucket = $1 GROUP BY o.id";
                let rows = sqlx::query(text).bind(bucket).fetch_optional(&mut **lease).await?;
                Ok(rows.map(|row| row.get::<String, _>(0)))
            })
        });
        rows.await.expect("reads")
    };
    let before = whole(Arc::clone(set), 3).await.expect("it is there");
    let (far, near) = (
        customer(set, 3, true),
        customer(set, customer(set, 3, true), false),
    );
    let bucket = |key: i64| set.bucket(&Key::from(key));
    let twin = (near + 1..)
        .find(|other| bucket(*other) == bucket(near))
        .expect("one");
    let way = [(3, far), (far, near), (near, twin), (twin, 3)];
    for (from, to) in way {
        assert_eq!(
            set.change_key(&change(3, from, to)).await.expect("changes"),
            3
        );
        assert_eq!(look(set, 3, from).await, None, "{from} to {to}");
        assert_eq!(look(set, 3, to).await, Some(0), "{from} to {to}");
        assert_eq!(
            whole(Arc::clone(set), to).await.as_ref(),
            Some(&before),
            "{from} to {to}"
        );
        assert_eq!(stage.copies(3).await, 1);
        assert_eq!(
            (count(set, "orders").await, count(set, "lines").await),
            (ORDERS, ORDERS * 2)
        );
    }
    for db in set.all() {
        let left = "SELECT (SELECT count(*) FROM quorate_key_changes) + (SELECT count(*) FROM quorate_key_outcomes)";
        let left: i64 = sqlx::query_scalar(left)
            .fetch_one(&db.primary())
            .await
            .expect("counts");
        assert_eq!(left, 0, "nothing is left of it");
    }
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn key_change_that_cannot_be_changes_nothing() {
    let stage = Stage::new().await;
    let set = &stage.set;
    let far = customer(set, 3, true);
    let refused = async |change: KeyChange, kind: ErrorKind, why: &str| {
        let error = set.change_key(&change).await.expect_err(why);
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().contains(why), "{why}: {error}");
        let raised = raise(set, 3, 3).await;
        assert!(raised.is_some(), "{why}: it is as it was");
        assert_eq!(count(set, "orders").await, ORDERS, "{why}");
    };
    let of = |column, set| KeyChange::new(3, far).rows("orders", [(column, 3)], [(set, far)]);
    refused(change(7_777, 3, far), ErrorKind::Missing, "no row").await;
    refused(change(3, 4, far), ErrorKind::Missing, "no row").await;
    refused(of("idd", "customer"), ErrorKind::Invalid, "no column idd").await;
    refused(of("id", "twice"), ErrorKind::Invalid, "no column twice").await;
    refused(of("id", "bucket"), ErrorKind::Invalid, "by itself").await;
    let all: [(&str, i64); 0] = [];
    let all = KeyChange::new(3, far).rows("orders", all, [("customer", far)]);
    refused(all, ErrorKind::Invalid, "which rows").await;
    refused(KeyChange::new(3, far), ErrorKind::Missing, "no row").await;
    // The target has an order of that number: decided there, and undone here.
    let taken = change(3, 3, far).rows("lines", [("orders", 3)], [("at", 1)]);
    refused(taken, ErrorKind::Refused, "duplicate key").await;
    assert_eq!(stage.copies(3).await, 1);
    // What stays behind refers to it: found before the target has it, also where the check is deferred.
    for db in set.all() {
        let make = "CREATE TABLE payments AS SELECT id FROM orders";
        let refer = "ALTER TABLE payments ADD FOREIGN KEY (id) REFERENCES orders DEFERRABLE INITIALLY DEFERRED";
        write(&db.session(), &[make, refer]).await;
    }
    refused(change(3, 3, far), ErrorKind::Refused, "foreign key").await;
    assert_eq!(stage.copies(3).await, 1);
    for db in set.all() {
        write(&db.session(), &["DROP TABLE payments"]).await;
    }
    assert_eq!(
        set.change_key(&change(3, 3, far)).await.expect("changes"),
        3
    );
    stage.end().await;
}

/// A change whose process stands still after it has begun it, for longer than others wait. Answers in how many
/// databases the order is in the end.
async fn late(bug: Option<Planted>) -> i64 {
    let stage = Stage::new().await;
    let slow = stage.other(bug).await;
    let change = change(3, 3, customer(&slow, 3, true));
    let begun = begin(&slow, &change).await;
    // Others wait for it, and then end it.
    assert_eq!(raise(&stage.set, 3, 3).await, Some(1));
    let applied = slow.apply(&change, &begun).await;
    if bug.is_none() {
        let error = applied.expect_err("it is too late");
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        assert_eq!(slow.change_key(&change).await.expect("once more"), 3);
    }
    let copies = stage.copies(3).await;
    drop(slow);
    stage.end().await;
    copies
}

#[tokio::test(flavor = "multi_thread")]
async fn key_change_of_a_process_that_stood_still_comes_too_late() {
    assert_eq!(late(None).await, 1);
    // The teeth: without a look at the outcome the order is there twice.
    assert_eq!(late(Some(Planted::LateApply)).await, 2);
}

/// A change whose process dies once the target has committed. Answers in how many databases the order is in the end.
async fn died(bug: Option<Planted>) -> i64 {
    let stage = Stage::new().await;
    let dies = stage.other(None).await;
    let change = change(3, 3, customer(&dies, 3, true));
    let begun = begin(&dies, &change).await;
    assert!(dies.apply(&change, &begun).await.expect("commits"));
    let other = stage.other(bug).await;
    // Who meets the bucket ends the change.
    look(&other, 3, 3).await;
    let copies = stage.copies(3).await;
    drop((dies, other));
    stage.end().await;
    copies
}

#[tokio::test(flavor = "multi_thread")]
async fn key_change_whose_process_died_is_ended_by_who_meets_it() {
    assert_eq!(died(None).await, 1);
    // The teeth: taken for undone without asking, the order is there twice.
    assert_eq!(died(Some(Planted::OutcomeIgnored)).await, 2);
}

/// A write that comes when the source has parted with the bucket. Answers the order's number under its new key, and what
/// the write answered.
async fn written_meanwhile(bug: Option<Planted>) -> (Option<i64>, Option<i64>) {
    let stage = Stage::new().await;
    let set = stage.other(bug).await;
    let far = customer(&set, 3, true);
    let change = change(3, 3, far);
    let begun = begin(&set, &change).await;
    let writing = raise(&set, 3, 3);
    let ending = async {
        if bug.is_some() {
            return;
        }
        set.apply(&change, &begun).await.expect("commits");
        set.close(&begun, true).await.expect("ends");
    };
    let (wrote, ()) = tokio::join!(writing, ending);
    if bug.is_some() {
        set.apply(&change, &begun).await.expect("commits");
        set.close(&begun, true).await.expect("ends");
    }
    let n = look(&set, 3, far).await;
    drop(set);
    stage.end().await;
    (n, wrote)
}

#[tokio::test(flavor = "multi_thread")]
async fn key_change_loses_no_write_that_comes_meanwhile() {
    let (n, wrote) = written_meanwhile(None).await;
    assert_eq!(
        n,
        Some(wrote.unwrap_or(0)),
        "what was acknowledged is there"
    );
    // The teeth: a source that goes on as if nothing were takes a write that is lost.
    assert_eq!(
        written_meanwhile(Some(Planted::NotParted)).await,
        (Some(0), Some(1))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn key_change_half_done_is_not_counted_twice() {
    let stage = Stage::new().await;
    let set = &stage.set;
    let change = change(3, 3, customer(set, 3, true));
    let begun = begin(set, &change).await;
    assert_eq!(count(set, "orders").await, ORDERS, "before it is made");
    let begun = match set.part(&change).await.expect("looks") {
        Try::Moved => begun,
        _ => panic!("it has begun already"),
    };
    set.apply(&change, &begun).await.expect("commits");
    let stray = stage.other(Some(Planted::SumsIgnored)).await;
    assert_eq!(count(&stray, "orders").await, ORDERS + 1, "the teeth");
    assert_eq!(count(set, "orders").await, ORDERS, "it is ended first");
    drop(stray);
    stage.end().await;
}

/// Where a process dies that changes a key, and where the order is then.
const POINTS: [(&str, &str, bool); 5] = [
    ("change", "key-parted", false),
    ("change", "key-applied", true),
    ("change", "key-closed", true),
    ("refused", "key-decided", false),
    ("refused", "key-closed", false),
];

/// Does what its parent asks of it, unless it is killed before. By itself it shows that a child comes to its end.
#[tokio::test(flavor = "multi_thread")]
async fn rekey_kills_child() {
    let Ok(role) = std::env::var(ROLE) else {
        let stage = Stage::new().await;
        let far = customer(&stage.set, 3, true);
        let ended = child(&stage, "change", (3, far), "nowhere").await;
        assert!(ended.status.success(), "{ended:?}");
        assert_eq!(look(&stage.set, 3, far).await, Some(0));
        return stage.end().await;
    };
    let words: Vec<&str> = role.split(',').collect();
    let names: Vec<String> = words[3..].iter().map(|name| (*name).to_owned()).collect();
    let set = patient(Buckets::open(SET, BUCKETS, databases(&names).await).await);
    let (from, to) = (
        words[1].parse().expect("a number"),
        words[2].parse().expect("a number"),
    );
    let mut wanted = change(3, from, to);
    if words[0] == "refused" {
        wanted = wanted.rows("lines", [("orders", 3)], [("at", 1)]);
    }
    set.change_key(&wanted).await.expect("changes");
}

async fn child(stage: &Stage, what: &str, way: (i64, i64), point: &str) -> std::process::Output {
    let mut child = Command::new(std::env::current_exe().expect("this test"));
    child.args(["--exact", "tests::rekeys::rekey_kills_child", "--nocapture"]);
    let names = stage.names().join(",");
    child.env(ROLE, format!("{what},{},{},{names}", way.0, way.1));
    child.env("QUORATE_CRASH_AT", format!("{point}:1"));
    let ended = tokio::task::spawn_blocking(move || child.output()).await;
    ended.expect("runs").expect("starts")
}

#[tokio::test(flavor = "multi_thread")]
async fn key_change_killed_at_any_point_leaves_each_row_once() {
    let stage = Stage::new().await;
    let set = &stage.set;
    let mut here = 3;
    let mut there = customer(set, 3, true);
    for (number, (what, point, moved)) in POINTS.into_iter().enumerate() {
        let said = format!("{what} killed at {point}");
        let ended = child(&stage, what, (here, there), point).await;
        assert_eq!(ended.status.signal(), Some(9), "{said}: {ended:?}");
        if moved {
            (here, there) = (there, here);
        }
        // Counted by who knows nothing of it, and who looks at each key, in turn.
        assert_eq!(count(set, "orders").await, ORDERS, "{said}");
        let n = number as i64;
        assert_eq!(look(set, 3, here).await, Some(n), "{said}");
        assert_eq!(look(set, 3, there).await, None, "{said}");
        assert_eq!(raise(set, 3, here).await, Some(n + 1), "{said}");
        assert_eq!(stage.copies(3).await, 1, "{said}");
        assert_eq!(count(set, "lines").await, ORDERS * 2, "{said}");
    }
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn key_changes_under_writers_and_moves_lose_and_double_nothing() {
    const CHANGES: u64 = 12;
    let stage = Stage::new().await;
    let (done, miscounted) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let mut counter = JoinSet::new();
    {
        let (set, done, miscounted) = (
            Arc::clone(&stage.set),
            Arc::clone(&done),
            Arc::clone(&miscounted),
        );
        counter.spawn(async move {
            let mut counts = 0;
            while !done.load(Ordering::Relaxed) {
                let wrong = count(&set, "orders").await != ORDERS;
                miscounted.fetch_add(wrong.into(), Ordering::Relaxed);
                counts += 1;
            }
            counts
        });
    }
    let mut tasks = JoinSet::new();
    for id in 0..6 {
        let set = Arc::clone(&stage.set);
        tasks.spawn(async move {
            let (mut at, mut n) = (id, 0);
            for round in 1..=CHANGES as i64 {
                let to = (at + 1 + round * 7 + id * 5) % CUSTOMERS;
                let changed = super::support::eventually("a change", || async {
                    match set.change_key(&change(id, at, to)).await {
                        Err(error) if error.kind() == ErrorKind::Conflict => Err(error.to_string()),
                        changed => Ok(changed.expect("changes")),
                    }
                });
                assert_eq!(changed.await, 3);
                let (old, new) = tokio::join!(look(&set, id, at), look(&set, id, to));
                assert_eq!(
                    (old, new),
                    (if at == to { Some(n) } else { None }, Some(n)),
                    "order {id}"
                );
                n += 1;
                assert_eq!(raise(&set, id, to).await, Some(n), "order {id}");
                at = to;
            }
        });
    }
    let mover = stage.other(None).await;
    let plan = |source, target| Move {
        source,
        target,
        buckets: vec![0, 1],
        tables: vec!["orders".to_owned(), "lines".to_owned()],
    };
    for (source, target) in [(0, 1), (1, 2)] {
        let id = super::support::eventually("a plan", || async {
            mover
                .plan(&plan(source, target))
                .await
                .map_err(|error| error.to_string())
        })
        .await;
        let moved = super::support::eventually("a move", || async {
            mover.carry_out(id).await.map_err(|error| error.to_string())
        });
        assert_eq!(moved.await.step, Step::Switched);
        super::support::eventually("it is finished", || async {
            mover.finish(id).await.map_err(|error| error.to_string())
        })
        .await;
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no panic");
    }
    done.store(true, Ordering::Relaxed);
    let counts = counter
        .join_next()
        .await
        .expect("a task")
        .expect("no panic");
    assert!(counts > 0, "nobody counted");
    assert_eq!(miscounted.load(Ordering::Relaxed), 0, "of {counts} counts");
    for id in 0..ORDERS {
        assert_eq!(stage.copies(id).await, 1, "order {id}");
    }
    drop(mover);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn key_changes_in_opposite_directions_both_come_to_their_end() {
    let stage = Stage::new().await;
    let set = &stage.set;
    let far = customer(set, 3, true);
    put(set, 900, far).await.expect("an order");
    let (there, back) = (change(3, 3, far), change(900, far, 3));
    let both = async { tokio::join!(set.change_key(&there), set.change_key(&back)) };
    let (a, b) = tokio::time::timeout(Duration::from_secs(60), both)
        .await
        .expect("in time");
    assert_eq!((a.expect("changes"), b.expect("changes")), (3, 3));
    assert_eq!(
        (look(set, 3, far).await, look(set, 900, 3).await),
        (Some(0), Some(0))
    );
    assert_eq!(count(set, "orders").await, ORDERS + 1);
    stage.end().await;
}
