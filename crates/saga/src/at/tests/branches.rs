//! What a branch changes, and what its global transaction's end does to it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::support::*;
use crate::ErrorKind;
use crate::at::{Ending, GlobalStatus, Insert, Op, Rows, Value};

const LONG: Duration = Duration::from_secs(120);

#[tokio::test]
async fn at_commit_keeps_changes_and_frees_locks() {
    for db in Db::both().await {
        db.accounts(3).await;
        let coordinator = db.coordinator().await;
        let global = coordinator.begin(LONG);
        assert_eq!(
            coordinator.status(global.gid()).await.expect("status"),
            GlobalStatus::Unknown
        );
        let mut tx = db.begin(&global, "pay").await.expect("begins");
        assert_eq!(tx.update(&add(1, -30)).await.expect("updates"), 1);
        assert_eq!(tx.update(&add(2, 30)).await.expect("updates"), 1);
        assert_eq!(tx.update(&add(99, 1)).await.expect("updates none"), 0);
        tx.commit().await.expect("commits");
        assert_eq!(db.locks().await, 2, "{}", db.kind());
        assert_eq!(
            coordinator.status(global.gid()).await.expect("status"),
            GlobalStatus::Begun
        );
        assert_eq!(
            coordinator.commit(&global).await.expect("commits"),
            Ending::Complete
        );
        assert_eq!(
            coordinator.commit(&global).await.expect("again"),
            Ending::Complete
        );
        assert_eq!(
            coordinator.status(global.gid()).await.expect("status"),
            GlobalStatus::Committed
        );
        assert_kind(
            coordinator.rollback(&global).await,
            ErrorKind::Fenced,
            "too late to undo",
        );
        assert_eq!((db.balance(1).await, db.balance(2).await), (70, 130));
        db.assert_clean("commit").await;
        db.end().await;
    }
}

#[tokio::test]
async fn at_rollback_undoes_insert_update_delete_by_key_and_by_predicate() {
    for db in Db::both().await {
        db.accounts(6).await;
        let all =
            "SELECT CAST(id AS text) || ':' || CAST(balance AS text) || ':' || coalesce(note, '-')
                   FROM account ORDER BY id";
        let before = db.texts(all).await;
        let coordinator = db.coordinator().await;
        let global = coordinator.begin(LONG);
        let mut tx = db.begin(&global, "many").await.expect("begins");
        let insert = Insert::rows(
            "account",
            ["id", "balance"],
            vec![
                vec![Value::Int(8), Value::Int(5)],
                vec![Value::Int(7), Value::Int(6)],
            ],
        );
        assert_eq!(tx.insert(&insert).await.expect("inserts"), 2);
        let rich = Rows::of("account")
            .filter("balance", Op::Ge, 100)
            .filter("id", Op::Le, 4);
        assert_eq!(
            tx.update(&rich.update().set("note", "rich"))
                .await
                .expect("updates"),
            4
        );
        let noted = Rows::of("account")
            .is_not_null("note")
            .filter("id", Op::Ne, 1);
        assert_eq!(tx.delete(&noted.delete()).await.expect("deletes"), 3);
        // The same rows once more, and one that comes back under its key.
        assert_eq!(tx.update(&add(1, 11)).await.expect("updates"), 1);
        let again = Insert::into("account")
            .value("id", 2)
            .value("balance", 1)
            .value("note", "new");
        assert_eq!(tx.insert(&again).await.expect("inserts"), 1);
        let some = Rows::of("account").is_in("id", [Value::Int(7), Value::Int(8)]);
        assert_eq!(tx.delete(&some.delete()).await.expect("deletes"), 2);
        tx.commit().await.expect("commits");
        let mut second = db.begin(&global, "second").await.expect("begins");
        assert_eq!(second.update(&add(1, 1)).await.expect("its own lock"), 1);
        second.commit().await.expect("commits");
        assert_eq!(db.balance(1).await, 112);
        assert_ne!(db.texts(all).await, before);
        assert_eq!(
            coordinator.rollback(&global).await.expect("undoes"),
            Ending::Complete
        );
        assert_eq!(
            coordinator.rollback(&global).await.expect("again"),
            Ending::Complete
        );
        assert_eq!(db.texts(all).await, before, "{}", db.kind());
        assert_eq!(
            coordinator.status(global.gid()).await.expect("status"),
            GlobalStatus::RolledBack
        );
        assert_kind(
            coordinator.commit(&global).await,
            ErrorKind::Fenced,
            "too late to commit",
        );
        db.assert_clean("rollback").await;
        db.end().await;
    }
}

/// Seata #5666: records of one clock tick were undone in any order. Here a sequence orders them, across branches.
#[tokio::test]
async fn at_undo_goes_by_sequence_not_by_time_seata_5666() {
    for db in Db::both().await {
        db.accounts(2).await;
        let coordinator = db.coordinator().await;
        let global = coordinator.begin(LONG);
        for branch in 0..8 {
            let mut tx = db
                .begin(&global, &format!("b{branch}"))
                .await
                .expect("begins");
            for _ in 0..3 {
                tx.update(&add(1, 1)).await.expect("updates");
                tx.update(&add(2, -1)).await.expect("updates");
            }
            // By names in reverse, and by any clock at once: only the sequence is right.
            let unique = Insert::into("account")
                .value("id", 100 - branch)
                .value("balance", 0);
            tx.insert(&unique).await.expect("inserts");
            tx.delete(&account(100 - branch).delete())
                .await
                .expect("deletes");
            tx.commit().await.expect("commits");
        }
        assert_eq!(db.balance(1).await, 124);
        assert_eq!(
            coordinator.rollback(&global).await.expect("undoes"),
            Ending::Complete
        );
        assert_eq!(
            (db.balance(1).await, db.balance(2).await),
            (100, 100),
            "{}",
            db.kind()
        );
        db.assert_clean("sequence").await;
        db.end().await;
    }
}

/// A child is undone before its parent, or the foreign key would refuse.
#[tokio::test]
async fn at_undo_of_parent_and_child_satisfies_foreign_keys() {
    for db in Db::both().await {
        db.run(
            "CREATE TABLE parent (id bigint PRIMARY KEY);
             CREATE TABLE child (id bigint PRIMARY KEY, parent bigint NOT NULL REFERENCES parent (id));
             INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1, 1)",
        )
        .await;
        let coordinator = db.coordinator().await;
        let global = coordinator.begin(LONG);
        let mut tx = db.begin(&global, "family").await.expect("begins");
        tx.insert(&Insert::into("parent").value("id", 2))
            .await
            .expect("inserts");
        let child = Insert::into("child").value("id", 2).value("parent", 2);
        tx.insert(&child).await.expect("inserts");
        tx.delete(&Rows::of("child").key(1).delete())
            .await
            .expect("deletes");
        tx.delete(&Rows::of("parent").key(1).delete())
            .await
            .expect("deletes");
        tx.commit().await.expect("commits");
        assert_eq!(
            coordinator.rollback(&global).await.expect("undoes"),
            Ending::Complete
        );
        let left = db
            .texts("SELECT CAST(id AS text) || '/' || CAST(parent AS text) FROM child")
            .await;
        assert_eq!(left, ["1/1"], "{}", db.kind());
        assert_eq!(db.texts("SELECT CAST(id AS text) FROM parent").await, ["1"]);
        db.assert_clean("family").await;
        db.end().await;
    }
}

#[tokio::test]
async fn at_branch_that_comes_after_the_rollback_is_refused() {
    for db in Db::both().await {
        db.accounts(1).await;
        let coordinator = db.coordinator().await;
        let global = coordinator.begin(LONG);
        let mut tx = db.begin(&global, "slow").await.expect("begins");
        if let Db::Pg { .. } = db {
            // It has changed its row already, and comes to its commit too late.
            tx.update(&add(1, -50)).await.expect("updates");
            assert_eq!(
                coordinator.rollback(&global).await.expect("nothing yet"),
                Ending::Complete
            );
        } else {
            tx.rollback().await.expect("rolls back");
            assert_eq!(
                coordinator.rollback(&global).await.expect("nothing yet"),
                Ending::Complete
            );
            tx = db.begin(&global, "slow").await.expect("begins");
            tx.update(&add(1, -50)).await.expect("updates");
        }
        assert_kind(tx.commit().await, ErrorKind::Fenced, "the late branch");
        assert_eq!(db.balance(1).await, 100, "{}", db.kind());
        db.assert_clean("late branch").await;
        db.end().await;
    }
}

#[tokio::test]
async fn at_branch_that_is_repeated_is_refused_and_counts_once() {
    for db in Db::both().await {
        db.accounts(1).await;
        let coordinator = db.coordinator().await;
        let global = coordinator.begin(LONG);
        for round in 0..3 {
            let mut tx = db.begin(&global, "once").await.expect("begins");
            tx.update(&add(1, -50)).await.expect("updates");
            let done = tx.commit().await;
            if round == 0 {
                done.expect("commits");
            } else {
                assert_kind(done, ErrorKind::Conflict, "the repetition");
            }
        }
        coordinator.commit(&global).await.expect("commits");
        let mut tx = db.begin(&global, "once").await.expect("begins");
        tx.update(&add(1, -50)).await.expect("updates");
        assert_kind(tx.commit().await, ErrorKind::Fenced, "after the end");
        assert_eq!(db.balance(1).await, 50, "{}", db.kind());
        db.assert_clean("repetition").await;
        db.end().await;
    }
}

#[tokio::test]
async fn at_sweep_rolls_back_what_is_past_its_deadline_and_completes_what_is_decided() {
    for db in Db::both().await {
        db.accounts(3).await;
        let coordinator = db.coordinator().await;
        let late = coordinator.begin(LONG);
        db.change(&late, "a", &[add(1, -10)])
            .await
            .expect("changes");
        db.expire(late.gid()).await;
        let decided = coordinator.begin(LONG);
        db.change(&decided, "a", &[add(2, -10)])
            .await
            .expect("changes");
        coordinator.decide_commit(&decided).await.expect("decides");
        let running = coordinator.begin(LONG);
        db.change(&running, "a", &[add(3, -10)])
            .await
            .expect("changes");
        let undone = AtomicU64::new(0);
        eventually("the late one is undone", || async {
            let swept = coordinator
                .sweep()
                .await
                .map_err(|error| error.to_string())?;
            assert_eq!(swept.failures, []);
            undone.fetch_add(swept.rolled_back, Ordering::Relaxed);
            match coordinator.status(late.gid()).await {
                Ok(GlobalStatus::RolledBack) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        assert_eq!(undone.load(Ordering::Relaxed), 1, "once, and no other");
        let status = coordinator.status(decided.gid()).await.expect("status");
        assert_eq!(status, GlobalStatus::Committed);
        assert_eq!(
            (
                db.balance(1).await,
                db.balance(2).await,
                db.balance(3).await
            ),
            (100, 90, 90)
        );
        assert_kind(
            coordinator.commit(&late).await,
            ErrorKind::Fenced,
            "the late commit",
        );
        assert_eq!(coordinator.open().await.expect("lists").len(), 1);
        coordinator.commit(&running).await.expect("commits");
        db.assert_clean("sweep").await;
        db.end().await;
    }
}

#[tokio::test]
async fn at_forget_removes_what_ended_and_nothing_else() {
    for db in Db::both().await {
        db.accounts(2).await;
        let coordinator = db.coordinator().await;
        let ended = coordinator.begin(LONG);
        db.change(&ended, "a", &[add(1, 1)]).await.expect("changes");
        coordinator.commit(&ended).await.expect("commits");
        let open = coordinator.begin(LONG);
        db.change(&open, "a", &[add(2, 1)]).await.expect("changes");
        assert_eq!(coordinator.forget(LONG).await.expect("forgets"), 0);
        eventually("what ended is a moment old, and goes", || async {
            match coordinator.forget(Duration::ZERO).await {
                Ok(1) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        assert_eq!(
            coordinator.forget(Duration::ZERO).await.expect("forgets"),
            0
        );
        let status = coordinator.status(ended.gid()).await.expect("status");
        assert_eq!(status, GlobalStatus::Unknown);
        coordinator.rollback(&open).await.expect("undoes");
        assert_eq!(db.balance(2).await, 100);
        db.end().await;
    }
}
