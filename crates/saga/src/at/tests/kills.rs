//! The process is killed at each point between two writes; another one settles what is left.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use super::support::*;
use crate::at::{AtCoordinator, Ending, Insert, Order, Ordered, Resource, Which};

/// `kind address address`, for the child.
const ROLE: &str = "QUORATE_AT_CHILD";
const LONG: Duration = Duration::from_secs(120);

/// Points that both databases pass, then those of one. Numbers count how often the point was passed before.
const POINTS: [&str; 25] = [
    "at.changed",
    "at.registering",
    "at.registered",
    "at.local-committed",
    "at.deciding",
    "at.decided",
    "at.finish-marked",
    "at.finish-freed",
    "at.finish-committed",
    "at.finished-one",
    "at.finished-all",
    "at.ended",
    "at.undo-claimed",
    "at.undo-row",
    "at.undo-written",
    "at.undo-committed",
    "at.undone-one",
    "at.undone-all",
    "at.expired",
    "at.resumed",
    "at.undo-audited",
    "at.ordered",
    "at.forgotten",
    "at.locked",
    "at.images-kept",
];
const SQLITE_ALONE: [&str; 3] = ["at.locked", "at.images-kept", "at.registered"];

struct Stage {
    dbs: [Db; 2],
}

impl Stage {
    async fn coordinator(&self) -> AtCoordinator {
        let resources: Vec<Arc<dyn Resource>> =
            vec![self.dbs[0].resource(), self.dbs[1].second().await];
        AtCoordinator::new(self.dbs[0].home().await, resources).expect("a coordinator")
    }

    /// Moves money, and leaves a row with its name on both sides.
    async fn transfer(&self, global: &crate::at::Global, amount: i64) {
        for (db, amount) in self.dbs.iter().zip([-amount, amount]) {
            let mut tx = db.begin(global, "move").await.expect("begins");
            tx.update(&add(1, amount - 1)).await.expect("updates");
            tx.update(&add(2, 1)).await.expect("updates");
            let moved = Insert::into("moved")
                .value("gid", global.gid())
                .value("amount", amount);
            tx.insert(&moved).await.expect("inserts");
            tx.commit().await.expect("commits");
        }
    }
}

/// What a child does: each way that a global transaction can go.
async fn work(stage: Stage) {
    let coordinator = stage.coordinator().await;
    for round in 0..2 {
        let kept = coordinator.begin(LONG);
        stage.transfer(&kept, 7 + round).await;
        coordinator.commit(&kept).await.expect("commits");
        let undone = coordinator.begin(LONG);
        stage.transfer(&undone, 5).await;
        coordinator.rollback(&undone).await.expect("undoes");
        let expired = coordinator.begin(LONG);
        stage.transfer(&expired, 3).await;
        for db in &stage.dbs {
            db.expire(expired.gid()).await;
        }
        eventually("it expires", || async {
            let swept = coordinator
                .sweep()
                .await
                .map_err(|error| error.to_string())?;
            if swept.rolled_back > 0 {
                Ok(())
            } else {
                Err("not yet".to_owned())
            }
        })
        .await;
        let dirty = coordinator.begin(LONG);
        stage.transfer(&dirty, 2).await;
        stage.dbs[1]
            .run("UPDATE account SET note = 'by hand' WHERE id = 1")
            .await;
        let ending = coordinator.rollback(&dirty).await.expect("answers");
        assert!(matches!(ending, Ending::NeedsOperator(_)), "{ending:?}");
        let order = Ordered::new(Order::Force, "ann", "of no use");
        coordinator
            .order("second", dirty.gid(), &order)
            .await
            .expect("forces");
        coordinator.forget(LONG).await.expect("forgets");
    }
}

/// Not a test of its own: what the tests below start as a process, to be killed.
#[tokio::test]
async fn at_kills_child() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let words: Vec<&str> = role.split(' ').collect();
    let dbs = match words[..] {
        ["pg", a, b] => [Db::pg_of(a).await, Db::pg_of(b).await],
        ["lite", a, b] => [Db::lite_of(a.as_ref()).await, Db::lite_of(b.as_ref()).await],
        _ => panic!("{role}"),
    };
    work(Stage { dbs }).await;
}

/// Kills a child at a point, and settles and checks what it left.
async fn kill_at(kind: &str, point: &str, count: u32) {
    let what = format!("{kind}, killed at {point}:{count}");
    let dbs = match kind {
        "pg" => [Db::pg().await, Db::pg().await],
        _ => [Db::lite().await, Db::lite().await],
    };
    for db in &dbs {
        db.accounts(2).await;
        db.run("CREATE TABLE moved (gid varchar(64) PRIMARY KEY, amount bigint NOT NULL)")
            .await;
    }
    let stage = Stage { dbs };
    let coordinator = stage.coordinator().await;
    let role = format!(
        "{kind} {} {}",
        stage.dbs[0].address(),
        stage.dbs[1].address()
    );
    let mut child = Command::new(std::env::current_exe().expect("this test"));
    child.args(["--exact", "at::tests::kills::at_kills_child", "--nocapture"]);
    child
        .env(ROLE, role)
        .env("QUORATE_CRASH_AT", format!("{point}:{count}"));
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
    settle(&coordinator, &what).await;
    check(&stage, &what).await;
    for db in stage.dbs {
        db.end().await;
    }
}

/// Sweeps until nothing is open. Of what was begun for long, the time is not waited for.
async fn settle(coordinator: &AtCoordinator, what: &str) {
    eventually(what, || async {
        let text = |error: crate::Error| error.to_string();
        let swept = coordinator.sweep().await.map_err(text)?;
        for (resource, work) in coordinator.stuck().await.map_err(text)? {
            let order = Ordered::new(Order::Force, "ann", "after a crash");
            coordinator
                .order(&resource, &work.gid, &order)
                .await
                .map_err(text)?;
        }
        let open = coordinator.open().await.map_err(text)?;
        for (_, work) in &open {
            // Nobody is left who would commit it.
            let global = crate::at::Global {
                gid: work.gid.clone(),
                ..coordinator.begin(LONG)
            };
            if coordinator.status(&work.gid).await.map_err(text)? == crate::at::GlobalStatus::Begun
            {
                coordinator.rollback(&global).await.map_err(text)?;
            }
        }
        if open.is_empty() {
            Ok(())
        } else {
            Err(format!("{open:?} {swept:?}"))
        }
    })
    .await;
    coordinator.sweep().await.expect("sweeps");
}

/// Money is conserved; both sides have the same transfers, those that were decided to commit; nothing is left.
async fn check(stage: &Stage, what: &str) {
    let committed = "SELECT gid FROM quorate_at_global WHERE status = 3 ORDER BY gid";
    let decided = stage.dbs[0].texts(committed).await;
    let open = "SELECT count(*) FROM quorate_at_global WHERE status NOT IN (3, 4)";
    assert_eq!(
        stage.dbs[0].number(open).await,
        0,
        "{what}: a decision is not carried out"
    );
    let mut total = 0;
    for db in &stage.dbs {
        let moved = db.texts("SELECT gid FROM moved ORDER BY gid").await;
        assert_eq!(moved, decided, "{what}: what is decided is what is there");
        let sums = "SELECT CAST(coalesce(sum(amount), 0) AS bigint) FROM moved";
        let balance = db
            .number("SELECT CAST(sum(balance) AS bigint) FROM account")
            .await;
        assert_eq!(
            balance,
            200 + db.number(sums).await,
            "{what}: books and transfers agree"
        );
        total += balance;
        db.assert_clean(what).await;
    }
    assert_eq!(total, 400, "{what}: money is conserved");
    let home = stage.dbs[0].home().await;
    let expired = stage.dbs[0].resource();
    let left = expired
        .work(home.name(), Which::Open, "", 10)
        .await
        .expect("lists");
    assert_eq!(left, []);
}

async fn matrix(kind: &str) {
    for point in POINTS {
        if kind == "pg" && SQLITE_ALONE.contains(&point) {
            continue;
        }
        // The first time, and one from the second round of the same work.
        for count in [1, 2] {
            kill_at(kind, point, count).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_process_killed_at_any_point_leaves_nothing_on_postgres() {
    matrix("pg").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_process_killed_at_any_point_leaves_nothing_on_sqlite() {
    matrix("lite").await;
}

/// Later passages of the points that lie within a branch and its undo.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_process_killed_at_later_passages_leaves_nothing() {
    for (point, count) in [
        ("at.changed", 5),
        ("at.changed", 9),
        ("at.registering", 4),
        ("at.undo-row", 5),
        ("at.decided", 3),
    ] {
        kill_at("pg", point, count).await;
        kill_at("lite", point, count).await;
    }
}
