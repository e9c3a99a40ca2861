//! Unmanaged writers: seen, shown, settled by an operator, or kept out by the guard.

use std::time::Duration;

use super::support::*;
use crate::ErrorKind;
use crate::at::{Ending, Global, GlobalStatus, Insert, Order, Ordered, Rows};

const LONG: Duration = Duration::from_secs(120);

/// A branch on accounts 1 and 2; then somebody sets account 1 to 55.
async fn dirty(db: &Db) -> (crate::at::AtCoordinator, Global) {
    db.accounts(3).await;
    let coordinator = db.coordinator().await;
    let global = coordinator.begin(LONG);
    db.change(&global, "pay", &[add(1, -10), add(2, 10)])
        .await
        .expect("changes");
    db.run("UPDATE account SET balance = 55 WHERE id = 1").await;
    (coordinator, global)
}

fn ordered(order: Order) -> Ordered {
    Ordered::new(order, "ann", "ticket 7")
}

/// Seata #1991, #2848, #3833, #5586: a dirty row made the rollback fail again and again. Here it fails once, writes
/// nothing, says what it found, and is not tried again until somebody says so.
#[tokio::test]
async fn at_dirty_write_waits_for_an_operator_and_never_loops_seata_1991_2848_3833_5586() {
    for db in Db::both().await {
        let (coordinator, global) = dirty(&db).await;
        let ending = coordinator.rollback(&global).await.expect("answers");
        let Ending::NeedsOperator(found) = ending else {
            panic!("{ending:?}")
        };
        assert_eq!(found.len(), 1);
        let (resource, differences) = &found[0];
        assert_eq!(resource, "shop");
        assert_eq!(differences.len(), 1, "account 2 is as it was left");
        let balance =
            |image: &Option<crate::at::Image>| image.as_ref().and_then(|i| i["balance"].clone());
        let difference = &differences[0];
        assert_eq!(balance(&difference.before).as_deref(), Some("100"));
        assert_eq!(balance(&difference.expected).as_deref(), Some("90"));
        assert_eq!(balance(&difference.found).as_deref(), Some("55"));
        let status = coordinator.status(global.gid()).await.expect("status");
        assert_eq!(status, GlobalStatus::NeedsOperator);
        for _ in 0..3 {
            let swept = coordinator.sweep().await.expect("sweeps");
            assert_eq!(swept, crate::at::Swept::default(), "nothing is tried again");
        }
        assert_eq!(
            (db.balance(1).await, db.balance(2).await),
            (55, 110),
            "nothing is written"
        );
        assert_eq!(db.locks().await, 2, "and others are kept away");
        let stuck = coordinator.stuck().await.expect("lists");
        assert_eq!(stuck.len(), 1);
        assert_eq!(
            (&stuck[0].1.gid, &stuck[0].1.differences),
            (&global.gid, differences)
        );
        // Not repaired: the same answer. Repaired: done.
        let again = coordinator
            .order("shop", global.gid(), &ordered(Order::Retry))
            .await;
        assert!(matches!(again.expect("answers"), Ending::NeedsOperator(_)));
        db.run("UPDATE account SET balance = 90 WHERE id = 1").await;
        let unasked = coordinator.rollback(&global).await.expect("answers");
        assert!(
            matches!(unasked, Ending::NeedsOperator(_)),
            "not without an order: {unasked:?}"
        );
        let done = coordinator
            .order("shop", global.gid(), &ordered(Order::Retry))
            .await;
        assert_eq!(done.expect("answers"), Ending::Complete);
        assert_eq!(
            (db.balance(1).await, db.balance(2).await),
            (100, 100),
            "{}",
            db.kind()
        );
        let audit = "SELECT action || ' ' || who || ' ' || why FROM quorate_at_audit ORDER BY id";
        assert_eq!(db.texts(audit).await, ["retry ann ticket 7"; 2]);
        db.assert_clean("retry").await;
        db.end().await;
    }
}

#[tokio::test]
async fn at_operator_forces_the_image_of_before() {
    for db in Db::both().await {
        let (coordinator, global) = dirty(&db).await;
        coordinator.rollback(&global).await.expect("answers");
        let done = coordinator
            .order("shop", global.gid(), &ordered(Order::Force))
            .await;
        assert_eq!(done.expect("forces"), Ending::Complete);
        assert_eq!(
            (db.balance(1).await, db.balance(2).await),
            (100, 100),
            "{}",
            db.kind()
        );
        let audit = "SELECT action || who || differences FROM quorate_at_audit";
        let audit = db.texts(audit).await;
        assert!(
            audit[0].starts_with("forceann[") && audit[0].contains("55"),
            "{audit:?}"
        );
        let again = coordinator
            .order("shop", global.gid(), &ordered(Order::Force))
            .await;
        assert_kind(again, ErrorKind::NotFound, "it waits no more");
        db.assert_clean("force").await;
        db.end().await;
    }
}

#[tokio::test]
async fn at_operator_accepts_what_is_there_and_the_rest_is_undone() {
    for db in Db::both().await {
        let (coordinator, global) = dirty(&db).await;
        coordinator.rollback(&global).await.expect("answers");
        let nobody = Ordered::new(Order::Accept, " ", "");
        let refused = coordinator.order("shop", global.gid(), &nobody).await;
        assert_kind(refused, ErrorKind::Invalid, "without a name");
        let refused = coordinator
            .order("elsewhere", global.gid(), &ordered(Order::Accept))
            .await;
        assert_kind(refused, ErrorKind::NotFound, "no such resource");
        let done = coordinator
            .order("shop", global.gid(), &ordered(Order::Accept))
            .await;
        assert_eq!(done.expect("accepts"), Ending::Complete);
        assert_eq!(
            (db.balance(1).await, db.balance(2).await),
            (55, 100),
            "{}",
            db.kind()
        );
        let status = coordinator.status(global.gid()).await.expect("status");
        assert_eq!(status, GlobalStatus::RolledBack);
        db.assert_clean("accept").await;
        db.end().await;
    }
}

/// A row deleted, one inserted under a deleted key, and one that a constraint keeps: all are shown.
#[tokio::test]
async fn at_dirty_rows_that_vanished_came_back_or_are_referred_to_are_shown() {
    for db in Db::both().await {
        db.accounts(3).await;
        db.run("CREATE TABLE note (id bigint PRIMARY KEY, account bigint REFERENCES account (id))")
            .await;
        let coordinator = db.coordinator().await;
        let vanished = coordinator.begin(LONG);
        db.change(&vanished, "a", &[add(1, 1)])
            .await
            .expect("changes");
        db.run("DELETE FROM account WHERE id = 1").await;
        let came_back = coordinator.begin(LONG);
        let mut tx = db.begin(&came_back, "a").await.expect("begins");
        tx.delete(&account(2).delete()).await.expect("deletes");
        tx.commit().await.expect("commits");
        db.run("INSERT INTO account VALUES (2, 1, 'new')").await;
        let referred = coordinator.begin(LONG);
        let mut tx = db.begin(&referred, "a").await.expect("begins");
        let insert = Insert::into("account").value("id", 9).value("balance", 0);
        tx.insert(&insert).await.expect("inserts");
        tx.commit().await.expect("commits");
        db.run("INSERT INTO note VALUES (1, 9)").await;
        for global in [&vanished, &came_back, &referred] {
            let ending = coordinator.rollback(global).await.expect("answers");
            let Ending::NeedsOperator(found) = ending else {
                panic!("{ending:?}")
            };
            let difference = &found[0].1[0];
            match global {
                _ if global == &vanished => assert!(difference.found.is_none()),
                _ if global == &came_back => assert!(difference.expected.is_none()),
                _ => assert!(
                    difference.reason.is_some(),
                    "the database's reason is shown"
                ),
            }
        }
        for (global, order) in [
            (&vanished, Order::Force),
            (&came_back, Order::Force),
            (&referred, Order::Accept),
        ] {
            let done = coordinator
                .order("shop", global.gid(), &ordered(order))
                .await;
            assert_eq!(done.expect("settles"), Ending::Complete);
        }
        assert_eq!(
            (db.balance(1).await, db.balance(2).await),
            (100, 100),
            "{}",
            db.kind()
        );
        assert_eq!(db.balance(9).await, 0, "what is referred to is kept");
        db.assert_clean("vanished").await;
        db.end().await;
    }
}

#[tokio::test]
async fn at_guard_refuses_unmanaged_writes_to_locked_rows_only() {
    for db in Db::both().await {
        db.accounts(3).await;
        db.install_guard("account").await.expect("installs");
        db.install_guard("account").await.expect("again");
        let coordinator = db.coordinator().await;
        let global = coordinator.begin(LONG);
        let mut tx = db.begin(&global, "a").await.expect("begins");
        tx.update(&add(1, -10)).await.expect("the owner passes");
        tx.delete(&account(2).delete())
            .await
            .expect("the owner passes");
        tx.commit().await.expect("commits");
        for text in [
            "UPDATE account SET balance = 0 WHERE id = 1",
            "UPDATE account SET balance = 0",
            "DELETE FROM account WHERE id = 1",
            "INSERT INTO account VALUES (2, 5, NULL)",
            "UPDATE account SET id = 2 WHERE id = 3",
        ] {
            let error = db.try_run(text).await.expect_err(text).to_string();
            assert!(
                error.contains("is locked by global transaction") && error.contains(global.gid()),
                "{text}: {error}"
            );
        }
        db.run("UPDATE account SET balance = 5 WHERE id = 3").await;
        db.run("INSERT INTO account VALUES (4, 5, NULL)").await;
        // Another branch is told by the lock, whether or not the guard sees it first.
        let younger = coordinator.begin(LONG);
        let told = db.change(&younger, "b", &[add(1, 1)]).await;
        assert_kind(told, ErrorKind::Locked, "a younger branch gives way");
        db.change(&global, "more", &[add(1, -10)])
            .await
            .expect("its own second branch");
        assert_eq!(
            coordinator.rollback(&global).await.expect("undoing passes"),
            Ending::Complete
        );
        db.run("UPDATE account SET balance = 7 WHERE id = 1").await;
        assert_eq!(
            (db.balance(1).await, db.balance(2).await),
            (7, 100),
            "{}",
            db.kind()
        );
        let second = coordinator.begin(LONG);
        db.change(&second, "a", &[add(1, 1)])
            .await
            .expect("changes");
        if let Db::Pg { .. } = db {
            let error = db
                .try_run("TRUNCATE account")
                .await
                .expect_err("refuses")
                .to_string();
            assert!(error.contains("locked by global transaction"), "{error}");
        }
        db.remove_guard("account").await.expect("removes");
        db.remove_guard("account").await.expect("again");
        db.run("UPDATE account SET balance = 9 WHERE id = 1").await;
        db.end().await;
    }
}

/// An older transaction that the guard turns away waits like any other.
#[tokio::test]
async fn at_guard_lets_an_older_branch_wait_for_the_lock() {
    for db in Db::both().await {
        db.accounts(1).await;
        db.install_guard("account").await.expect("installs");
        let coordinator = db.coordinator().await;
        let older = coordinator.begin(LONG);
        let younger = later(&coordinator, &older).await;
        db.change(&younger, "a", &[add(1, 1)])
            .await
            .expect("changes");
        let updates = [add(1, 10)];
        let (waited, ended) = tokio::join!(db.change(&older, "a", &updates), async {
            tokio::task::yield_now().await;
            coordinator.commit(&younger).await
        });
        waited.expect("waits, and gets it");
        ended.expect("commits");
        coordinator.commit(&older).await.expect("commits");
        assert_eq!(db.balance(1).await, 111, "{}", db.kind());
        db.assert_clean("guard and wait").await;
        db.end().await;
    }
}

/// One that is younger by the clock.
async fn later(coordinator: &crate::at::AtCoordinator, than: &Global) -> Global {
    loop {
        let global = coordinator.begin(LONG);
        if than.is_older_than(global.began_ms, &global.gid) {
            return global;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn at_guard_sees_writers_with_another_search_path() {
    let db = Db::pg().await;
    db.accounts(1).await;
    db.install_guard("account").await.expect("installs");
    let coordinator = db.coordinator().await;
    let global = coordinator.begin(LONG);
    db.change(&global, "a", &[add(1, 1)])
        .await
        .expect("changes");
    let Db::Pg { schema, .. } = &db else {
        unreachable!()
    };
    let other = pg_pool("public").await;
    let text = format!("SET TimeZone = 'Asia/Tokyo'; UPDATE {schema}.account SET balance = 0");
    let error = sqlx::raw_sql(sqlx::AssertSqlSafe(text))
        .execute(&other)
        .await;
    let error = error.expect_err("refuses");
    let code = error
        .as_database_error()
        .and_then(|from| from.code())
        .map(|code| code.into_owned());
    assert_eq!(code.as_deref(), Some("55006"), "{error}");
    other.close().await;
    coordinator.commit(&global).await.expect("commits");
    assert!(db.begin(&global, "x").await.is_ok());
    let rows = Rows::of(format!("{schema}.account")).key(1);
    let global = coordinator.begin(LONG);
    db.change(&global, "a", &[rows.update().add("balance", 1)])
        .await
        .expect("by its full name");
    coordinator.rollback(&global).await.expect("undoes");
    assert_eq!(db.balance(1).await, 101);
    db.end().await;
}
