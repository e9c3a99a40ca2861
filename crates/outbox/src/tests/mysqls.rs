//! What is MySQL's own: parts that wait, transactions that end from within, names that are bytes, tables that are
//! made one by one, sessions that are killed.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection};

use super::consumers::{Base, Effects, memory, on_my, options, publish, sent, start as consume};
use super::relays::{keyed, quick, start, until_got};
use super::support::{AnyOutbox, Keeps, My, eventually};
use crate::inbox::{Ledger, LedgerTx, MySqlInbox, Stream};
use crate::mysql::MySqlOutbox;
use crate::mysql::session::{IDLE, Tx};
use crate::store::{Change, Most, Progress, Store, Which, Wish};
use crate::{ErrorKind, Limits, Message};

async fn outbox(parts: u16) -> (My, MySqlOutbox) {
    let AnyOutbox::My(my, outbox) = AnyOutbox::my(parts).await else {
        unreachable!()
    };
    (my, outbox)
}

async fn execute(my: &My, text: &str) {
    let done = sqlx::raw_sql(AssertSqlSafe(text)).execute(&my.pool).await;
    done.unwrap_or_else(|error| panic!("{text}: {error}"));
}

async fn number(my: &My, text: &'static str) -> i64 {
    let read = sqlx::query_scalar(text).fetch_one(&my.pool).await;
    read.unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Keys of two parts.
fn of_two_parts() -> [String; 2] {
    let part = |key: &str| keyed(key, "x").part(2);
    let of = |wanted: u16| {
        let mut keys = (0..).map(|i| format!("k{i}"));
        keys.find(|key| part(key) == wanted).expect("a key")
    };
    [of(0), of(1)]
}

/// A transaction that stays open holds up its part, not the others; what is committed late arrives.
#[tokio::test(flavor = "multi_thread")]
async fn relay_mysql_open_transaction_holds_up_its_part_only() {
    let outbox = AnyOutbox::my(2).await;
    let [here, there] = of_two_parts();
    let broker = Arc::new(Keeps::default());
    let relay = start(&outbox, &broker, quick());
    outbox.enqueue(&[keyed(&here, "before")], true).await;
    let mut open = outbox.begin().await;
    let gave = open.enqueue(&keyed(&here, "late")).await;
    assert_eq!(gave.expect("enqueues").seq, Some(2));
    for i in 0..20 {
        outbox.enqueue(&[keyed(&there, i)], true).await;
    }
    until_got(&broker, 21).await;
    // One that comes after it waits for it, and gets its number after it.
    let after = async {
        let mut tx = outbox.begin().await;
        let gave = tx.enqueue(&keyed(&here, "after")).await;
        tx.commit().await;
        gave.expect("enqueues").seq
    };
    let end = async {
        assert!(!broker.texts().contains(&"late".to_owned()));
        open.commit().await;
    };
    let (seq, ()) = tokio::join!(after, end);
    assert_eq!(seq, Some(3));
    until_got(&broker, 23).await;
    relay.drain().await;
    let texts = broker.texts();
    assert_eq!(texts[texts.len() - 2..], ["late", "after"]);
    outbox.end().await;
}

/// A row above the counter that was read is not taken, though the snapshot of the rows has it.
#[tokio::test]
async fn store_mysql_rows_above_what_is_settled_wait() {
    let (my, outbox) = outbox(1).await;
    let mut tx = my.pool.begin().await.expect("begins");
    for i in 0..5 {
        let done = outbox.enqueue(&mut tx, &keyed("a", i)).await;
        done.expect("enqueues");
    }
    tx.commit().await.expect("commits");
    let held = outbox.hold("one", &[], Duration::from_secs(60)).await;
    let fence = held.expect("holds").claimed[0].fence;
    execute(&my, "UPDATE quorate_outbox_counter SET last_id = 3").await;
    let read = outbox.read(fence, &Progress::default(), Most::ALL).await;
    let read = read.expect("reads");
    let ids: Vec<i64> = read.rows.iter().map(|row| row.id).collect();
    assert_eq!((ids, read.settled, read.cut), (vec![1, 2, 3], 3, false));
    // A counter below what was published: the database went back.
    let progress = Progress {
        floor: 4,
        ..Progress::default()
    };
    let refused = outbox.read(fence, &progress, Most::ALL).await;
    assert_eq!(refused.expect_err("refused").kind(), ErrorKind::Fenced);
    my.end().await;
}

/// The epoch of a part is compared in the database: another process knows nothing of this one.
#[tokio::test]
async fn store_mysql_save_of_another_process_is_fenced() {
    let (my, one) = outbox(1).await;
    let two = MySqlOutbox::open(my.pool.clone()).await.expect("opens");
    let held = one.hold("one", &[], Duration::from_secs(60)).await;
    let old = held.expect("holds").claimed[0].fence;
    one.release(&[old]).await.expect("releases");
    let held = two.hold("two", &[], Duration::from_secs(60)).await;
    let new = held.expect("holds").claimed[0].fence;
    let (progress, nothing) = (Progress::default(), Change::default());
    let refused = one.save(old, &progress, &nothing).await;
    assert_eq!(refused.expect_err("fenced").kind(), ErrorKind::Fenced);
    let saved = two.save(new, &progress, &nothing).await;
    saved.expect("saves");
    // A failover has lost that save, and nothing else is different.
    execute(&my, "UPDATE quorate_outbox_relay SET saves = saves - 1").await;
    let refused = two.save(new, &progress, &nothing).await;
    assert_eq!(refused.expect_err("fenced").kind(), ErrorKind::Fenced);
    my.end().await;
}

/// Many gaps in what is published are read in several statements, the lowest first.
#[tokio::test]
async fn store_mysql_many_gaps_are_read_from_the_lowest() {
    let (my, outbox) = outbox(1).await;
    let messages: Vec<Message> = (0..400).map(|i| keyed("a", i)).collect();
    let mut tx = my.pool.begin().await.expect("begins");
    let done = outbox.enqueue_all(&mut tx, &messages).await;
    done.expect("enqueues");
    tx.commit().await.expect("commits");
    let held = outbox.hold("one", &[], Duration::from_secs(60)).await;
    let fence = held.expect("holds").claimed[0].fence;
    let progress = Progress {
        done: (1..=400).filter(|id| id % 2 == 0).collect(),
        ..Progress::default()
    };
    let read = outbox.read(fence, &progress, Most::ALL).await;
    let read = read.expect("reads");
    let ids: Vec<i64> = read.rows.iter().map(|row| row.id).collect();
    let odd: Vec<i64> = (1..=400).filter(|id| id % 2 == 1).collect();
    assert_eq!((&ids, read.cut), (&odd, false));
    let most = Most {
        rows: 150,
        bytes: usize::MAX,
    };
    let read = outbox.read(fence, &progress, most).await.expect("reads");
    let ids: Vec<i64> = read.rows.iter().map(|row| row.id).collect();
    assert_eq!((&ids[..], read.cut), (&odd[..150], true));
    my.end().await;
}

/// Without a transaction the number would be committed before its row: a relay could pass it by.
#[tokio::test]
async fn enqueue_mysql_outside_of_a_transaction_is_refused() {
    let (my, outbox) = outbox(1).await;
    let mut connection = my.pool.acquire().await.expect("connects");
    let refused = outbox.enqueue(&mut connection, &keyed("a", 1)).await;
    assert_eq!(refused.expect_err("refused").kind(), ErrorKind::Invalid);
    // One that has ended, though sqlx does not know.
    let mut tx = connection.begin().await.expect("begins");
    let ended = sqlx::raw_sql("ROLLBACK").execute(&mut *tx).await;
    ended.expect("ends");
    let refused = outbox.enqueue(&mut tx, &keyed("a", 1)).await;
    let refused = refused.expect_err("refused");
    assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
    assert!(refused.message().contains("transaction"), "{refused}");
    drop(tx);
    let counted = "SELECT last_id FROM quorate_outbox_counter";
    assert_eq!(number(&my, counted).await, 0, "nothing was drawn");
    drop(connection);
    my.end().await;
}

/// A transaction that goes on after a failed call has no number without its message.
#[tokio::test]
async fn enqueue_mysql_that_fails_takes_its_number_back() {
    let (my, outbox) = outbox(1).await;
    let mut tx = my.pool.begin().await.expect("begins");
    let one = outbox.enqueue(&mut tx, &keyed("a", 1)).await;
    assert_eq!(one.expect("enqueues").seq, Some(1));
    // Its place is taken: the last statement fails.
    let taken =
        "INSERT INTO quorate_outbox SELECT part, 2, message_id, topic, `key`, 99, headers, payload,
                 bytes, created FROM quorate_outbox WHERE id = 1";
    sqlx::query(taken).execute(&mut *tx).await.expect("takes");
    let two = outbox.enqueue(&mut tx, &keyed("a", 2)).await;
    two.expect_err("its place is taken");
    let free = "DELETE FROM quorate_outbox WHERE seq = 99";
    sqlx::query(free).execute(&mut *tx).await.expect("frees");
    let two = outbox.enqueue(&mut tx, &keyed("a", 2)).await;
    let two = two.expect("enqueues");
    assert_eq!((two.id, two.seq), (2, Some(2)));
    tx.commit().await.expect("commits");
    my.end().await;
}

/// Two transactions that wait for each other: one of them is told to try again, and nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn enqueue_mysql_deadlock_can_be_tried_again() {
    let (my, outbox) = outbox(2).await;
    let [one, two] = of_two_parts();
    let both = tokio::sync::Barrier::new(2);
    let writer = async |first: &str, second: &str| {
        let mut tries = 0;
        loop {
            tries += 1;
            let mut tx = my.pool.begin().await.expect("begins");
            let done = outbox.enqueue(&mut tx, &keyed(first, "x")).await;
            done.expect("the first is free, or waited for");
            if tries == 1 {
                both.wait().await;
            }
            match outbox.enqueue(&mut tx, &keyed(second, "x")).await {
                Ok(_) => break tx.commit().await.map(|()| tries).expect("commits"),
                Err(error) => {
                    assert!(error.is_retryable(), "{error}");
                    // Who goes on all the same is stopped.
                    let stopped = outbox.enqueue(&mut tx, &keyed(second, "x")).await;
                    let stopped = stopped.expect_err("the transaction is over");
                    assert_eq!(stopped.kind(), ErrorKind::Invalid, "{stopped}");
                }
            }
        }
    };
    let (a, b) = tokio::join!(writer(&one, &two), writer(&two, &one));
    assert_eq!(a + b, 3, "one of them tried twice");
    assert_eq!(number(&my, "SELECT count(*) FROM quorate_outbox").await, 4);
    let sum = "SELECT CAST(sum(last_id) AS SIGNED) FROM quorate_outbox_counter";
    assert_eq!(number(&my, sum).await, 4, "no gaps");
    my.end().await;
}

/// A part that somebody holds for too long.
#[tokio::test(flavor = "multi_thread")]
async fn enqueue_mysql_wait_that_is_too_long_can_be_tried_again() {
    let (my, outbox) = outbox(1).await;
    let quick = my
        .pool_with("SET SESSION innodb_lock_wait_timeout = 1")
        .await;
    let mut open = my.pool.begin().await.expect("begins");
    let done = outbox.enqueue(&mut open, &keyed("a", 1)).await;
    done.expect("enqueues");
    let mut tx = quick.begin().await.expect("begins");
    let refused = outbox.enqueue(&mut tx, &keyed("b", 1)).await;
    let refused = refused.expect_err("it waits too long");
    assert!(refused.is_retryable(), "{refused}");
    open.rollback().await.expect("rolls back");
    let gave = outbox.enqueue(&mut tx, &keyed("b", 1)).await;
    assert_eq!(gave.expect("enqueues").id, 1);
    tx.commit().await.expect("commits");
    quick.close().await;
    my.end().await;
}

/// A MariaDB that refuses to write what has changed since it was read: READ COMMITTED is the way.
#[tokio::test(flavor = "multi_thread")]
async fn enqueue_mysql_with_snapshot_isolation_goes_on_at_read_committed() {
    let (my, outbox) = outbox(1).await;
    let known = "SELECT count(*) FROM information_schema.session_variables
                 WHERE variable_name = 'innodb_snapshot_isolation'";
    // On MySQL, and before it was there, there is nothing to refuse.
    let is_known = sqlx::query_scalar::<_, i64>(known)
        .fetch_one(&my.pool)
        .await;
    let first = match is_known {
        Ok(1) => "SET SESSION innodb_snapshot_isolation = 1",
        _ => "SET SESSION innodb_lock_wait_timeout = 50",
    };
    let strict = my.pool_with(first).await;
    let begin = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION";
    let mut tx = strict.begin_with(begin).await.expect("begins");
    let look = "SELECT count(*) FROM quorate_outbox_counter";
    let looked: i64 = sqlx::query_scalar(look)
        .fetch_one(&mut *tx)
        .await
        .expect("reads");
    assert_eq!(looked, 1);
    let mut other = my.pool.begin().await.expect("begins");
    let done = outbox.enqueue(&mut other, &keyed("a", 1)).await;
    done.expect("enqueues");
    other.commit().await.expect("commits");
    let gave = outbox.enqueue(&mut tx, &keyed("a", 2)).await;
    assert_eq!(gave.expect("enqueues").seq, Some(2));
    tx.commit().await.expect("commits");
    strict.close().await;
    my.end().await;
}

/// Names that MySQL's collations take for the same are not.
#[tokio::test(flavor = "multi_thread")]
async fn relay_mysql_keys_are_compared_byte_by_byte() {
    let outbox = AnyOutbox::my(1).await;
    let keys = ["a", "A", "a ", "ä", "a\u{308}", "\u{1f600}", "ß", "ss"];
    let long = "\u{1f600}".repeat(128);
    let broker = Arc::new(Keeps::default());
    broker.poison.lock().extend(keys.map(str::to_owned));
    for key in keys.into_iter().chain([long.as_str()]) {
        let gave = outbox.enqueue(&[keyed(key, key)], true).await;
        assert_eq!(gave[0].seq, Some(1), "{key:?} has numbers of its own");
    }
    let relay = start(&outbox, &broker, quick());
    until_got(&broker, 1).await;
    let store = outbox.store();
    let stream = Which::Stream {
        topic: "t".into(),
        key: "a".into(),
    };
    eventually("all others are parked", || async {
        let parked = store.parked(None, 100).await.map_err(|e| e.to_string())?;
        (parked.len() == keys.len())
            .then_some(())
            .ok_or(format!("{parked:?}"))
    })
    .await;
    let one = store.parked(Some(&stream), 100).await.expect("lists");
    assert_eq!((one.len(), one[0].row.key.as_deref()), (1, Some("a")));
    assert_eq!(store.wish(&stream, Wish::Drop).await.expect("wishes"), 1);
    eventually("only that one is forgotten", || async {
        let parked = store.parked(None, 100).await.map_err(|e| e.to_string())?;
        (parked.len() == keys.len() - 1)
            .then_some(())
            .ok_or(format!("{parked:?}"))
    })
    .await;
    relay.drain().await;
    assert_eq!(broker.texts(), [long.as_str()]);
    outbox.end().await;
}

#[tokio::test]
async fn consumer_mysql_keys_are_compared_byte_by_byte() {
    let base = on_my().await;
    let inbox = base.inbox();
    let stream = |key: &str| Stream {
        source: "s".into(),
        topic: "t".into(),
        key: key.into(),
    };
    let keys = ["a", "A", "a ", "\u{1f600}"];
    let numbered = keys.iter().zip(1i64..);
    let seqs: Vec<(Stream, i64)> = numbered.map(|(key, seq)| (stream(key), seq)).collect();
    let mut tx = inbox.begin(Duration::from_secs(60)).await.expect("begins");
    tx.set_seqs("c", &seqs).await.expect("sets");
    let streams: Vec<Stream> = ["a", "A", "a ", "b", "\u{1f600}"].map(stream).to_vec();
    let last = tx.last_seqs("c", &streams).await.expect("reads");
    assert_eq!(last, seqs.into_iter().collect());
    let of_another = tx.last_seqs("C", &streams).await.expect("reads");
    assert!(of_another.is_empty(), "{of_another:?}");
    let long = stream(&"k".repeat(2049));
    let refused = tx.set_seqs("c", &[(long, 1)]).await;
    assert_eq!(refused.expect_err("too long").kind(), ErrorKind::TooLarge);
    tx.commit().await.expect("commits");
    base.end().await;
}

/// Ids that were noted are told from new ones, many at once too.
#[tokio::test]
async fn consumer_mysql_notes_many_ids_at_once() {
    let base = on_my().await;
    let inbox = base.inbox();
    let ids: Vec<uuid::Uuid> = (0..500u128).map(uuid::Uuid::from_u128).collect();
    let begin = || inbox.begin(Duration::from_secs(60));
    let mut tx = begin().await.expect("begins");
    let fresh = tx.note("c", &ids[..300]).await.expect("notes");
    assert_eq!(fresh.len(), 300);
    tx.commit().await.expect("commits");
    let mut tx = begin().await.expect("begins");
    let fresh = tx.note("c", &ids).await.expect("notes");
    assert_eq!(fresh, ids[300..].iter().copied().collect());
    drop(tx);
    assert_eq!(inbox.forget("c", i64::MAX).await.expect("forgets"), 300);
    base.end().await;
}

/// What would not fit into a packet, or an index, is refused before anything is written.
#[tokio::test]
async fn enqueue_mysql_what_the_server_does_not_take_is_refused() {
    let (my, outbox) = outbox(1).await;
    let packet = number(&my, "SELECT CAST(@@max_allowed_packet AS SIGNED)").await as usize;
    let outbox = outbox.with_limits(Limits {
        payload_bytes: usize::MAX,
        key_bytes: usize::MAX,
        ..Limits::default()
    });
    let mut tx = my.pool.begin().await.expect("begins");
    let long = keyed(&"k".repeat(2049), "x");
    let large = Message::unordered("t", vec![0; packet]);
    for (message, says) in [(long, "2048"), (large, "max_allowed_packet")] {
        let refused = outbox.enqueue(&mut tx, &message).await;
        let refused = refused.expect_err("refused");
        assert_eq!(refused.kind(), ErrorKind::TooLarge, "{refused}");
        assert!(refused.message().contains(says), "{refused}");
    }
    let longest = keyed(&"k".repeat(2048), "x");
    let largest = Message::unordered("t", vec![0; packet - 8192]);
    let all = [
        longest,
        largest.clone(),
        largest.with_id(uuid::Uuid::now_v7()),
    ];
    outbox.enqueue_all(&mut tx, &all).await.expect("enqueues");
    tx.commit().await.expect("commits");
    let held = outbox.hold("one", &[], Duration::from_secs(60)).await;
    let fence = held.expect("holds").claimed[0].fence;
    let read = outbox.read(fence, &Progress::default(), Most::ALL).await;
    let sizes: Vec<usize> = read
        .expect("reads")
        .rows
        .iter()
        .map(|r| r.payload.len())
        .collect();
    assert_eq!(sizes, [1, packet - 8192, packet - 8192]);
    my.end().await;
}

/// Sessions that would lose messages are refused, and a server that only reads says so.
#[tokio::test(flavor = "multi_thread")]
async fn open_mysql_sessions_that_do_not_fit_are_refused() {
    let (my, inner) = outbox(1).await;
    for (first, says) in [
        ("SET SESSION autocommit = 0", "autocommit"),
        (
            "SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED",
            "not committed",
        ),
    ] {
        let pool = my.pool_with(first).await;
        for refused in [
            MySqlOutbox::open(pool.clone()).await.map(|_| ()),
            MySqlInbox::open(pool.clone()).await.map(|_| ()),
        ] {
            let refused = refused.expect_err("refused");
            assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
            assert!(refused.message().contains(says), "{refused}");
        }
        pool.close().await;
    }
    let reads = my.pool_with("SET SESSION TRANSACTION READ ONLY").await;
    let mut tx = reads.begin().await.expect("begins");
    let refused = inner.enqueue(&mut tx, &keyed("a", 1)).await;
    let refused = refused.expect_err("it only reads");
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
    drop(tx);
    let outbox = MySqlOutbox::open(reads.clone()).await.expect("opens");
    let held = outbox.hold("one", &[], Duration::from_secs(1)).await;
    assert_eq!(
        held.expect_err("it only reads").kind(),
        ErrorKind::Unavailable
    );
    reads.close().await;
    my.end().await;
}

/// A migration that died anywhere opens for nobody, and is gone on with.
#[tokio::test]
async fn schema_mysql_migration_that_died_half_way_is_gone_on_with() {
    let tables = [
        "quorate_outbox_parked",
        "quorate_outbox_member",
        "quorate_outbox_relay",
        "quorate_outbox_key",
        "quorate_outbox_counter",
        "quorate_outbox",
    ];
    for there in 0..=tables.len() {
        let (my, first) = outbox(3).await;
        execute(&my, "UPDATE quorate_outbox_schema SET is_done = 0").await;
        execute(&my, "DELETE FROM quorate_outbox_relay WHERE part = 2").await;
        for table in &tables[..there] {
            execute(&my, &format!("DROP TABLE {table}")).await;
        }
        let refused = MySqlOutbox::open(my.pool.clone()).await;
        let refused = refused.err().expect("refused");
        assert_eq!(refused.kind(), ErrorKind::Schema, "{refused}");
        assert!(refused.message().contains("half way"), "{refused}");
        let again = MySqlOutbox::migrate(my.pool.clone(), 9).await;
        let again = again.expect("goes on");
        assert_eq!((again.parts(), again.source()), (3, first.source()));
        let mut tx = my.pool.begin().await.expect("begins");
        let gave = again.enqueue(&mut tx, &keyed("a", 1)).await;
        assert_eq!(gave.expect("enqueues").seq, Some(1));
        tx.commit().await.expect("commits");
        let held = again.hold("one", &[], Duration::from_secs(60)).await;
        assert_eq!(held.expect("holds").claimed.len(), 3);
        my.end().await;
    }
    // Between the first table and its row.
    let (my, _) = outbox(1).await;
    execute(&my, "DELETE FROM quorate_outbox_schema").await;
    for table in tables {
        execute(&my, &format!("DROP TABLE {table}")).await;
    }
    let again = MySqlOutbox::migrate(my.pool.clone(), 2).await;
    assert_eq!(again.expect("goes on").parts(), 2);
    my.end().await;
}

#[tokio::test]
async fn schema_mysql_inbox_that_died_half_way_is_gone_on_with() {
    let my = My::new().await;
    MySqlInbox::migrate(my.pool.clone())
        .await
        .expect("migrates");
    for died in [
        "DELETE FROM quorate_inbox_schema",
        "DROP TABLE quorate_inbox_schema, quorate_inbox_parked, quorate_inbox_seen",
    ] {
        execute(&my, died).await;
        let opened = MySqlInbox::open(my.pool.clone()).await;
        opened.err().expect("not before it is whole");
        let again = MySqlInbox::migrate(my.pool.clone()).await;
        assert_eq!(again.expect("goes on").count("c").await.expect("counts"), 0);
    }
    my.end().await;
}

/// A relay that is frozen in the middle of a transaction keeps no locks: another takes its part over.
#[tokio::test(flavor = "multi_thread")]
async fn relay_mysql_lock_of_a_frozen_relay_is_ended() {
    let outbox = AnyOutbox::my(1).await;
    let AnyOutbox::My(my, _) = &outbox else {
        unreachable!()
    };
    let mut frozen = Tx::begin(&my.pool, IDLE, None).await.expect("begins");
    let lock = "UPDATE quorate_outbox_relay SET saves = saves + 0, epoch = 7";
    let locked = sqlx::query(lock).execute(frozen.connection()).await;
    locked.expect("locks");
    let broker = Arc::new(Keeps::default());
    let relay = start(&outbox, &broker, quick());
    outbox.enqueue(&[keyed("a", 1)], true).await;
    until_got(&broker, 1).await;
    frozen.commit().await.expect_err("it is over");
    relay.drain().await;
    outbox.end().await;
}

/// A session goes back to its pool with the patience that it had.
#[tokio::test(flavor = "multi_thread")]
async fn session_mysql_patience_is_given_back() {
    let my = My::new().await;
    let pool = sqlx::mysql::MySqlPoolOptions::new().max_connections(1);
    let pool = pool.connect_with((*my.options).clone()).await;
    let pool = pool.expect("connects");
    let patience = async || -> i64 {
        let text = "SELECT CAST(@@SESSION.wait_timeout AS SIGNED)";
        let read = sqlx::query_scalar(text).fetch_one(&pool).await;
        read.expect("reads")
    };
    let before = patience().await;
    for commits in [true, false] {
        let mut tx = Tx::begin(&pool, IDLE, Some("m")).await.expect("begins");
        let level = "SELECT CAST(@@SESSION.wait_timeout AS SIGNED)";
        let within: i64 = sqlx::query_scalar(level)
            .fetch_one(tx.connection())
            .await
            .expect("reads");
        assert_eq!(within, 6);
        tx.is_alive().await.expect("is the same");
        if commits {
            tx.commit().await.expect("commits");
        } else {
            drop(tx);
        }
        assert_eq!(patience().await, before, "commits: {commits}");
    }
    pool.close().await;
    my.end().await;
}

/// Every session is killed again and again under writers, relay and consumer: nothing is lost or doubled.
#[tokio::test(flavor = "multi_thread")]
async fn relay_and_consumer_mysql_survive_sessions_that_are_killed() {
    let outbox = AnyOutbox::my(2).await;
    let AnyOutbox::My(my, inner) = &outbox else {
        unreachable!()
    };
    let broker = Arc::new(Keeps::default());
    let relay = start(&outbox, &broker, quick());
    let kill = async || {
        let sessions = "SELECT CAST(id AS SIGNED) FROM information_schema.processlist WHERE db = ?";
        let ids: Vec<i64> = sqlx::query_scalar(sessions)
            .bind(my.name())
            .fetch_all(&my.admin)
            .await
            .expect("lists");
        for id in ids {
            // It may have ended by itself.
            let _ = sqlx::raw_sql(AssertSqlSafe(format!("KILL {id}")))
                .execute(&my.admin)
                .await;
        }
    };
    // One whose commit was not answered may be there or not.
    let mut surely: Vec<String> = Vec::new();
    let mut perhaps: Vec<String> = Vec::new();
    for i in 0..60i64 {
        if i % 10 == 5 {
            kill().await;
        }
        let written = async {
            let mut tx = my.pool.begin().await.ok()?;
            inner.enqueue(&mut tx, &keyed("a", i)).await.ok()?;
            Some(tx.commit().await.is_ok())
        };
        match written.await {
            Some(true) => surely.push(i.to_string()),
            Some(false) => perhaps.push(i.to_string()),
            None => {}
        }
    }
    assert!(surely.len() > 30, "{surely:?}");
    eventually("all is published", || async {
        let texts = broker.texts();
        let missing = surely.iter().filter(|text| !texts.contains(text));
        let missing: Vec<&String> = missing.collect();
        missing
            .is_empty()
            .then_some(())
            .ok_or(format!("{missing:?} {:?}", relay.status()))
    })
    .await;
    relay.drain().await;
    let mut seen: Vec<String> = Vec::new();
    for text in broker.texts() {
        if !seen.contains(&text) {
            seen.push(text);
        }
    }
    let mut all: Vec<&String> = surely.iter().chain(&perhaps).collect();
    all.sort_by_key(|text| text.parse::<i64>().expect("a number"));
    all.retain(|text| surely.contains(text) || seen.contains(text));
    assert_eq!(
        seen.iter().collect::<Vec<_>>(),
        all,
        "in order, nothing else"
    );
    outbox.end().await;

    let base = on_my().await;
    let my = &base.0;
    let (broker, effects) = (memory(), Arc::new(Effects::default()));
    let consumer = consume(&base, &broker, &effects, options()).await;
    for i in 1..=40 {
        publish(&broker, &[sent("a", i, &i.to_string())]).await;
        if i % 8 == 4 {
            let ids: Vec<i64> = sqlx::query_scalar(
                "SELECT CAST(id AS SIGNED) FROM information_schema.processlist WHERE db = ?",
            )
            .bind(my.name())
            .fetch_all(&my.admin)
            .await
            .expect("lists");
            for id in ids {
                let _ = sqlx::raw_sql(AssertSqlSafe(format!("KILL {id}")))
                    .execute(&my.admin)
                    .await;
            }
        }
    }
    let expected: Vec<String> = (1..=40).map(|i| i.to_string()).collect();
    eventually("every effect is there once", || async {
        let texts = base.texts("a").await;
        (texts == expected)
            .then_some(())
            .ok_or(format!("{texts:?} {:?}", consumer.status()))
    })
    .await;
    consumer.drain().await;
    base.end().await;
}
