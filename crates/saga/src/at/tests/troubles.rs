//! Bad input, bad tables, databases that are not there.

use std::sync::Arc;
use std::time::Duration;

use super::support::*;
use crate::ErrorKind;
use crate::at::postgres::{PgAt, PgHome};
use crate::at::sqlite::{SqliteAt, SqliteHome};
use crate::at::{
    AtCoordinator, Ending, Global, GlobalStatus, Insert, Op, Order, Ordered, Rows, Value,
};

const LONG: Duration = Duration::from_secs(120);

#[tokio::test]
async fn at_statements_that_can_not_be_undone_are_refused_before_anything_is_written() {
    for db in Db::both().await {
        db.accounts(2).await;
        db.run(
            "CREATE TABLE nokey (v bigint);
             CREATE TABLE parent (id bigint PRIMARY KEY, code bigint UNIQUE, v bigint);
             CREATE TABLE child (id bigint PRIMARY KEY,
                parent bigint REFERENCES parent (id) ON DELETE CASCADE,
                code bigint REFERENCES parent (code) ON UPDATE CASCADE);
             CREATE VIEW seen AS SELECT id, balance FROM account",
        )
        .await;
        let coordinator = db.coordinator().await;
        let global = coordinator.begin(LONG);
        let mut tx = db.begin(&global, "bad").await.expect("begins");
        let one = |table: &str| Rows::of(table).key(1);
        use ErrorKind::{Invalid, NotFound, Unsupported};
        let updates = [
            (
                one("account").update().set("id", 5),
                Unsupported,
                "primary key",
            ),
            (one("account").update(), Invalid, "needs a column"),
            (
                one("account").update().set("no\"ne", 5),
                Invalid,
                "no column",
            ),
            (
                Rows::of("account").update().set("balance", 5),
                Invalid,
                "all()",
            ),
            (
                Rows::of("account").keys([]).update().set("balance", 5),
                Invalid,
                "0",
            ),
            (one("missing").update().set("v", 5), NotFound, "missing"),
            (
                one("nokey").update().set("v", 5),
                Unsupported,
                "primary key",
            ),
            (one("seen").update().set("balance", 5), Unsupported, "view"),
            (
                one("parent").update().set("code", 5),
                Unsupported,
                "follows",
            ),
        ];
        for (update, kind, words) in updates {
            let text = assert_kind(tx.update(&update).await, kind, words);
            assert!(text.contains(words), "{}: {text}", db.kind());
        }
        let text = assert_kind(
            tx.delete(&one("parent").delete()).await,
            Unsupported,
            "cascade",
        );
        assert!(text.contains("follows"), "{text}");
        let ragged = Insert::rows("account", ["id", "balance"], vec![vec![Value::Int(7)]]);
        assert_kind(tx.insert(&ragged).await, Invalid, "a row without a value");
        // The transaction is as good as new after what was never sent.
        let none = Rows::of("account")
            .is_in("id", [])
            .update()
            .set("balance", 0);
        assert_eq!(tx.update(&none).await.expect("no row"), 0);
        let null = Rows::of("account")
            .filter("note", Op::Eq, Value::Null)
            .update()
            .set("balance", 0);
        assert_eq!(tx.update(&null).await.expect("null equals nothing"), 0);
        let null = Rows::of("account")
            .is_null("note")
            .filter("id", Op::Gt, 1)
            .update();
        assert_eq!(
            tx.update(&null.set("note", "'); DROP TABLE account; --"))
                .await
                .expect("one"),
            1
        );
        // A constraint's refusal ends it.
        let twice = Insert::into("account").value("id", 1).value("balance", 0);
        assert_kind(
            tx.insert(&twice).await,
            ErrorKind::Conflict,
            "a key that is there",
        );
        assert_kind(tx.update(&add(1, 1)).await, Invalid, "after an error");
        assert_kind(tx.commit().await, Invalid, "nor is it committed");
        assert_eq!(
            db.number("SELECT count(*) FROM account WHERE note IS NOT NULL")
                .await,
            0
        );
        db.assert_clean("refused").await;
        db.end().await;
    }
}

#[tokio::test]
async fn at_names_and_texts_of_global_transactions_are_checked() {
    let db = Db::lite().await;
    let coordinator = db.coordinator().await;
    let global = coordinator.begin(LONG);
    assert_eq!(global.to_string().parse::<Global>().expect("reads"), global);
    for text in [
        "",
        "a;b",
        "a;b;c;d",
        "a';b;1;2",
        "a;b;1;2;3",
        ";b;1;2",
        "a;b;1;99999999999999999999",
    ] {
        assert_kind(text.parse::<Global>(), ErrorKind::Invalid, text);
    }
    let long = "x".repeat(101);
    for branch in ["", "a b", "a'b", long.as_str()] {
        assert_kind(
            db.begin(&global, branch).await.map(|_| ()),
            ErrorKind::Invalid,
            branch,
        );
    }
    let foreign: Global = "gid;elsewhere;1;9999999999999".parse().expect("reads");
    let text = assert_kind(
        coordinator.commit(&foreign).await,
        ErrorKind::Invalid,
        "another home",
    );
    assert!(text.contains("elsewhere"), "{text}");
    let late: Global = format!("gid;{};1;2", global.home()).parse().expect("reads");
    assert_kind(
        db.begin(&late, "a").await.map(|_| ()),
        ErrorKind::Fenced,
        "past its deadline",
    );
    let resources = vec![db.resource(), db.resource()];
    let made = AtCoordinator::new(db.home().await, resources).map(|_| ());
    assert_kind(made, ErrorKind::Invalid, "two of one name");
    assert_kind(
        AtCoordinator::new(db.home().await, vec![]).map(|_| ()),
        ErrorKind::Invalid,
        "none",
    );
}

#[tokio::test]
async fn at_tables_of_another_version_or_half_made_are_a_clear_error() {
    for db in Db::both().await {
        let _ = db.coordinator().await;
        async fn open(db: &Db) -> (crate::Result<()>, crate::Result<()>) {
            match db {
                Db::Pg { at, .. } => {
                    let pool = at.pool().clone();
                    let home = PgHome::open(pool.clone()).await.map(|_| ());
                    (PgAt::open(pool, "a").await.map(|_| ()), home)
                }
                Db::Lite { at, .. } => {
                    let pool = at.pool().clone();
                    let home = SqliteHome::open(pool.clone()).await.map(|_| ());
                    (SqliteAt::open(pool, "a").await.map(|_| ()), home)
                }
            }
        }
        let (resource, home) = open(&db).await;
        resource.expect("opens");
        home.expect("opens");
        db.run("UPDATE quorate_at_schema SET version = 9; UPDATE quorate_at_home SET version = 9")
            .await;
        let (resource, home) = open(&db).await;
        assert!(assert_kind(resource, ErrorKind::Schema, "newer").contains("version 9"));
        assert!(assert_kind(home, ErrorKind::Schema, "newer").contains("version 9"));
        db.run("UPDATE quorate_at_schema SET version = 1; DROP TABLE quorate_at_undo")
            .await;
        let text = assert_kind(open(&db).await.0, ErrorKind::Schema, "incomplete");
        assert!(text.contains("quorate_at_undo is missing"), "{text}");
        db.run("DELETE FROM quorate_at_schema").await;
        assert_kind(open(&db).await.0, ErrorKind::Schema, "no version");
        db.run("DROP TABLE quorate_at_schema; DROP TABLE quorate_at_home")
            .await;
        let (resource, home) = open(&db).await;
        assert_kind(resource, ErrorKind::Missing, "none");
        assert_kind(home, ErrorKind::Missing, "none");
        let migrated = match &db {
            Db::Pg { at, .. } => PgAt::migrate(at.pool().clone(), "a").await.map(|_| ()),
            Db::Lite { at, .. } => SqliteAt::migrate(at.pool().clone(), "a").await.map(|_| ()),
        };
        let text = assert_kind(migrated, ErrorKind::Schema, "half made");
        assert!(text.contains("without a version"), "{text}");
        db.end().await;
    }
}

/// A table changed between the branch and its undo: the operator is asked, nothing loops.
#[tokio::test]
async fn at_table_changed_or_dropped_before_the_undo_needs_an_operator() {
    for db in Db::both().await {
        db.accounts(1).await;
        db.run(
            "CREATE TABLE gone (id bigint PRIMARY KEY, v bigint); INSERT INTO gone VALUES (1, 1)",
        )
        .await;
        let coordinator = db.coordinator().await;
        let dropped = coordinator.begin(LONG);
        let update = Rows::of("gone").key(1).update().set("v", 2);
        db.change(&dropped, "a", &[update, add(1, 1)])
            .await
            .expect("changes");
        db.run("DROP TABLE gone").await;
        let ending = coordinator.rollback(&dropped).await.expect("answers");
        let Ending::NeedsOperator(found) = ending else {
            panic!("{ending:?}")
        };
        let reason = found[0].1[0].reason.clone().expect("a reason");
        assert!(reason.contains("gone"), "{reason}");
        let accept = Ordered::new(Order::Accept, "ann", "the table is history");
        let done = coordinator
            .order("shop", dropped.gid(), &accept)
            .await
            .expect("accepts");
        assert_eq!(done, Ending::Complete);
        assert_eq!(db.balance(1).await, 100, "the rest is undone");
        let changed = coordinator.begin(LONG);
        db.change(&changed, "a", &[add(1, 1)])
            .await
            .expect("changes");
        db.run("ALTER TABLE account ADD COLUMN more bigint").await;
        let ending = coordinator.rollback(&changed).await.expect("answers");
        assert!(matches!(ending, Ending::NeedsOperator(_)), "{ending:?}");
        let force = Ordered::new(Order::Force, "ann", "the column is new");
        let done = coordinator
            .order("shop", changed.gid(), &force)
            .await
            .expect("forces");
        assert_eq!(done, Ending::Complete);
        assert_eq!(db.balance(1).await, 100, "{}", db.kind());
        db.assert_clean("changed table").await;
        db.end().await;
    }
}

/// A resource that does not answer holds up its own part only, and is completed by a later sweep.
#[tokio::test]
async fn at_resource_that_is_down_is_completed_later() {
    let (up, down) = (Db::lite().await, Db::pg().await);
    for db in [&up, &down] {
        db.accounts(2).await;
    }
    let Db::Pg { at, schema } = &down else {
        unreachable!()
    };
    let broken = PgAt::open(pg_pool(schema).await, "second")
        .await
        .expect("opens");
    let whole = PgAt::open(at.pool().clone(), "second")
        .await
        .expect("opens");
    let home = up.home().await;
    let with = |second: PgAt| {
        AtCoordinator::new(home.clone(), vec![up.resource(), Arc::new(second)])
            .expect("a coordinator")
    };
    let coordinator = with(broken.clone());
    let (kept, undone) = (coordinator.begin(LONG), coordinator.begin(LONG));
    for (global, id) in [(&kept, 1), (&undone, 2)] {
        up.change(global, "a", &[add(id, -10)])
            .await
            .expect("changes");
        down.change(global, "b", &[add(id, 10)])
            .await
            .expect("changes");
    }
    broken.pool().close().await;
    let ending = coordinator.commit(&kept).await.expect("it is decided");
    assert!(matches!(ending, Ending::Pending(_)), "{ending:?}");
    let ending = coordinator.rollback(&undone).await.expect("it is decided");
    assert!(matches!(ending, Ending::Pending(_)), "{ending:?}");
    let swept = coordinator.sweep().await.expect("sweeps");
    assert!(!swept.failures.is_empty() && swept.failures.iter().all(|(name, _)| name == "second"));
    assert_eq!(
        coordinator.status(kept.gid()).await.expect("status"),
        GlobalStatus::Committing
    );
    up.assert_clean("the one that is up").await;
    let swept = with(whole).sweep().await.expect("sweeps");
    assert_eq!(
        (swept.committed, swept.rolled_back, swept.failures.len()),
        (1, 1, 0)
    );
    for (db, kept) in [(&up, 90), (&down, 110)] {
        assert_eq!((db.balance(1).await, db.balance(2).await), (kept, 100));
        db.assert_clean("completed").await;
    }
    down.end().await;
}
