//! What every journal does: one suite for all.
//!
//! It panics at what is wrong. Give it an empty journal.

use std::time::Duration;

use quorate_outbox::Message;
use serde_json::json;
use uuid::Uuid;

use super::{Append, Fence, Filter, Journal, Share, saga_id};
use crate::ErrorKind;
use crate::machine::{Dir, End, Entry, Event, Start, Status};

const TTL: Duration = Duration::from_secs(30);
const ALL: Share = Share { rank: 0, of: 1 };

/// Runs all of it.
pub async fn run(journal: &dyn Journal) {
    begins_once(journal).await;
    adds_only_to_what_is_known(journal).await;
    fences(journal).await;
    shares(journal).await;
    wakes(journal).await;
    lists_counts_and_forgets(journal).await;
}

fn start(key: &str) -> Append {
    let event = Event::Started(Start {
        name: "suite".into(),
        version: 1,
        shape: 7,
        key: key.into(),
        input: json!({"text": "ä \n \" end"}),
        deadline_ms: None,
        steps: Vec::new(),
        traceparent: Some("00-1-2-01".into()),
    });
    Append {
        id: saga_id("suite", key),
        seq: 0,
        name: "suite".into(),
        version: 1,
        key: key.into(),
        started_ms: 1_000,
        events: vec![Entry {
            at_ms: 1_000,
            event,
        }],
        status: Status::Running,
        wake_ms: Some(5_000),
        messages: vec![Message::unordered("suite", key.to_owned())],
    }
}

fn then(first: &Append, seq: i64, event: Event) -> Append {
    Append {
        seq,
        events: vec![Entry {
            at_ms: 2_000,
            event,
        }],
        messages: Vec::new(),
        ..first.clone()
    }
}

fn sent() -> Event {
    Event::Sent(0, Dir::Act, 1, 9_000)
}

async fn append(journal: &dyn Journal, fence: Option<&Fence>, one: &Append) -> bool {
    let one = std::slice::from_ref(one);
    journal.append(fence, one).await.expect("appends")[0]
}

async fn begins_once(journal: &dyn Journal) {
    let (a, b) = (start("once-a"), start("once-b"));
    let both = [b.clone(), a.clone()];
    assert_eq!(
        journal.append(None, &both[1..]).await.expect("appends"),
        [true]
    );
    assert_eq!(
        journal.append(None, &both).await.expect("appends"),
        [true, false]
    );
    let found = journal.load(&[a.id, Uuid::nil()]).await.expect("loads");
    assert_eq!(found.len(), 1, "what is not there is left out");
    assert_eq!((found[0].seq, found[0].key.as_str()), (1, "once-a"));
    assert_eq!(found[0].entries().expect("reads"), a.events);
    assert_eq!(found[0].wake_ms, Some(5_000));
    assert!(journal.append(None, &[]).await.expect("appends").is_empty());
}

async fn adds_only_to_what_is_known(journal: &dyn Journal) {
    let first = start("known");
    assert!(append(journal, None, &first).await);
    let second = then(&first, 1, sent());
    assert!(append(journal, None, &second).await);
    assert!(
        !append(journal, None, &second).await,
        "it has two events by now"
    );
    assert!(
        !append(journal, None, &then(&first, 5, sent())).await,
        "and not five"
    );
    let nobody = Append {
        id: saga_id("suite", "nobody"),
        ..then(&first, 1, sent())
    };
    assert!(!append(journal, None, &nobody).await, "it never began");
    let found = journal.load(&[first.id]).await.expect("loads");
    let events: Vec<Event> = found[0]
        .entries()
        .expect("reads")
        .into_iter()
        .map(|e| e.event)
        .collect();
    assert_eq!(events, [first.events[0].event.clone(), sent()]);
}

async fn fences(journal: &dyn Journal) {
    let old = journal.join("fenced", TTL).await.expect("joins");
    let first = start("fences");
    assert!(append(journal, Some(&old), &first).await);
    let new = journal.join("fenced", TTL).await.expect("joins");
    assert!(new.epoch > old.epoch);
    let more = then(&first, 1, sent());
    let one = std::slice::from_ref(&more);
    let refused = journal
        .append(Some(&old), one)
        .await
        .expect_err("an old epoch");
    assert_eq!(refused.kind(), ErrorKind::Fenced);
    let refused = journal.beat(&old, TTL).await.expect_err("an old epoch");
    assert_eq!(refused.kind(), ErrorKind::Fenced);
    let found = journal.load(&[first.id]).await.expect("loads");
    assert_eq!(found[0].seq, 1, "nothing was written");
    assert!(append(journal, Some(&new), &more).await);
    journal.leave(&old).await.expect("leaves again");
    journal
        .beat(&new, TTL)
        .await
        .expect("that ended nothing of the new");
    journal.leave(&new).await.expect("leaves");
    let late = then(&first, 2, sent());
    let refused = journal
        .append(Some(&new), std::slice::from_ref(&late))
        .await;
    assert_eq!(refused.expect_err("it has left").kind(), ErrorKind::Fenced);
}

async fn shares(journal: &dyn Journal) {
    let a = journal.join("share-a", TTL).await.expect("joins");
    let alone = journal.beat(&a, TTL).await.expect("beats");
    assert_eq!(alone, ALL);
    let b = journal.join("share-b", TTL).await.expect("joins");
    let first = journal.beat(&a, TTL).await.expect("beats");
    let second = journal.beat(&b, TTL).await.expect("beats");
    assert_eq!((first.of, second.of), (2, 2));
    assert_ne!(first.rank, second.rank);
    let id = saga_id("suite", "anyone");
    assert!(first.has(id) != second.has(id), "each saga is in one share");
    journal.leave(&b).await.expect("leaves");
    assert_eq!(journal.beat(&a, TTL).await.expect("beats"), ALL);
    journal.leave(&a).await.expect("leaves");
}

async fn wakes(journal: &dyn Journal) {
    let known = [("suite".to_owned(), 1)];
    let mut early = start("wakes-early");
    early.wake_ms = Some(100);
    let mut later = start("wakes-later");
    later.wake_ms = Some(200);
    assert!(append(journal, None, &early).await && append(journal, None, &later).await);
    let due = journal.due(ALL, &known, 150, 10).await.expect("looks");
    assert_eq!((due.ids, due.next_ms), (vec![early.id], Some(200)));
    let due = journal.due(ALL, &known, 250, 1).await.expect("looks");
    assert_eq!(due.ids, [early.id], "the earliest, when not all fit");
    let due = journal
        .due(ALL, &[("suite".to_owned(), 2)], 250, 10)
        .await
        .expect("looks");
    assert!(due.ids.is_empty(), "another version is another program's");
    let halves = [Share { rank: 0, of: 2 }, Share { rank: 1, of: 2 }];
    let mut both = Vec::new();
    for half in halves {
        both.extend(journal.due(half, &known, 250, 10).await.expect("looks").ids);
    }
    both.sort();
    let mut expected = vec![early.id, later.id];
    expected.sort();
    assert_eq!(both, expected);
    // Only the time changes.
    let mut put_off = then(&early, 1, sent());
    put_off.events.clear();
    put_off.wake_ms = Some(300);
    assert!(append(journal, None, &put_off).await);
    let due = journal.due(ALL, &known, 250, 10).await.expect("looks");
    assert_eq!((due.ids, due.next_ms), (vec![later.id], Some(300)));
    for one in [&early, &later] {
        let mut ended = then(one, 1, Event::Ended(End::Completed));
        (ended.status, ended.wake_ms) = (Status::Completed, None);
        assert!(append(journal, None, &ended).await);
    }
    let due = journal.due(ALL, &known, 4_000, 10).await.expect("looks");
    assert!(due.ids.is_empty());
}

async fn lists_counts_and_forgets(journal: &dyn Journal) {
    let mut first = start("lists");
    (first.started_ms, first.name) = (10, "listed".into());
    first.id = saga_id("listed", "lists");
    assert!(append(journal, None, &first).await);
    let mut stuck = then(&first, 1, Event::Stuck(0, Dir::Act, "no".into()));
    (stuck.status, stuck.wake_ms) = (Status::Stuck, None);
    let before = journal.open().await.expect("counts");
    assert_eq!(before.oldest_ms, Some(10));
    assert!(append(journal, None, &stuck).await);
    let after = journal.open().await.expect("counts");
    assert_eq!(
        (after.running, after.stuck),
        (before.running - 1, before.stuck + 1)
    );
    let filter = Filter {
        status: Some(Status::Stuck),
        name: None,
    };
    let found = journal.list(&filter, 10).await.expect("lists");
    assert_eq!((found.len(), found[0].id), (1, first.id));
    let filter = Filter {
        status: None,
        name: Some("suite".into()),
    };
    assert_eq!(journal.list(&filter, 2).await.expect("lists").len(), 2);
    let counts = journal.count().await.expect("counts");
    let count = counts
        .iter()
        .find(|count| count.name == "listed")
        .expect("is counted");
    assert_eq!(
        (count.status, count.sagas, count.oldest_ms),
        (Status::Stuck, 1, 10)
    );
    assert_eq!(
        journal.forget(2_000, 1).await.expect("forgets"),
        1,
        "one of two at a time"
    );
    assert_eq!(journal.forget(2_000, 10).await.expect("forgets"), 1);
    assert_eq!(
        journal.forget(2_000, 10).await.expect("forgets"),
        0,
        "what has not ended stays"
    );
}
