//! Sagas over real databases, from beginning to end.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;

use super::shop::{Effect, TOPIC, World, tell};
use super::support::eventually;
use crate::journal::Filter;
use crate::machine::Event;
use crate::{
    Begin, Definition, ErrorKind, Operations, Order, Outcome, Registry, Retry, Saga, Status, Step,
    Tcc,
};

fn quick(attempts: u32) -> Retry {
    Retry {
        attempts,
        first: Duration::from_millis(10),
        max: Duration::from_millis(50),
    }
}

fn order(version: u32) -> Definition {
    let saga = Saga::named("order").version(version);
    let saga = saga.step(
        Step::new("reserve", TOPIC)
            .retry(quick(2))
            .undo_retry(quick(2)),
    );
    let saga = saga.pivot(Step::new("pay", TOPIC).retry(quick(2)));
    saga.then(Step::new("ship", TOPIC).retry(quick(2)))
        .build()
        .expect("builds")
}

fn registry() -> Registry {
    let lost = Saga::named("lost").step(Step::new("reserve", TOPIC));
    let silent = Step::new("silent", "nobody").deadline(Duration::from_millis(200));
    let lost = lost.step(silent.retry(quick(1)).undo_retry(quick(1)));
    let tcc = Tcc::named("payment")
        .branch("account", TOPIC)
        .branch("stock", TOPIC);
    Registry::new()
        .with(order(1))
        .and_then(|all| all.with(lost.build()?))
        .and_then(|all| all.with(tcc.build()?))
        .expect("a registry")
}

/// Waits until all sagas stand so, and answers the effects.
async fn until(world: &World, status: Status, count: usize) -> Vec<Effect> {
    let filter = Filter {
        status: Some(status),
        name: None,
    };
    eventually(&format!("{count} sagas {status}"), || async {
        let all = world
            .journal
            .list(&Filter::default(), 1000)
            .await
            .expect("lists");
        let found = world.journal.list(&filter, 1000).await.expect("lists");
        if found.len() == count {
            return Ok(());
        }
        Err(format!("{all:?}"))
    })
    .await;
    world.place.effects().await
}

fn effects(key: &str, all: &[(&str, &str)]) -> Vec<Effect> {
    let effect =
        |(branch, op): &(&str, &str)| (key.to_owned(), (*branch).to_owned(), (*op).to_owned());
    all.iter().map(effect).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn saga_steps_that_are_done_complete_it_once() {
    tell(registry(), |world| {
        Box::pin(async move {
            let coordinator = world.coordinator(&world.registry).await;
            let sagas = coordinator.sagas();
            let keys: Vec<String> = (0..40).map(|n| format!("o{n:02}")).collect();
            let begin = |key: String| {
                let sagas = sagas.clone();
                async move { sagas.begin(&Begin::new("order", key, json!({}))).await }
            };
            let begun = futures_util::future::join_all(keys.iter().cloned().map(begin)).await;
            assert!(begun.into_iter().all(|one| one.expect("begins").is_new));
            let found = until(world, Status::Completed, 40).await;
            let all = [("pay", "act"), ("reserve", "act"), ("ship", "act")];
            let expected: Vec<Effect> = keys.iter().flat_map(|key| effects(key, &all)).collect();
            assert_eq!(found, expected);
            assert!(coordinator.drain().await);
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn saga_refused_pivot_undoes_and_leaves_nothing_of_the_refused() {
    tell(registry(), |world| {
        Box::pin(async move {
            let coordinator = world.coordinator(&world.registry).await;
            let begin = Begin::new("order", "r", json!({"refuse": "pay"}));
            coordinator.sagas().begin(&begin).await.expect("begins");
            let found = until(world, Status::Compensated, 1).await;
            assert_eq!(
                found,
                effects("r", &[("reserve", "act"), ("reserve", "undo")])
            );
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn saga_begun_again_is_the_same_or_with_another_input_an_error() {
    tell(registry(), |world| {
        Box::pin(async move {
            let coordinator = world.coordinator(&world.registry).await;
            let sagas = coordinator.sagas();
            let begin = Begin::new("order", "twice", json!({"n": 1}));
            let (first, second) = tokio::join!(sagas.begin(&begin), sagas.begin(&begin));
            let (first, second) = (first.expect("begins"), second.expect("is there"));
            assert_eq!(first.id, second.id);
            assert!(first.is_new != second.is_new);
            let other = Begin::new("order", "twice", json!({"n": 2}));
            let error = sagas.begin(&other).await.expect_err("another input");
            assert_eq!(error.kind(), ErrorKind::Conflict);
            let unknown = Begin::new("nothing", "twice", json!({}));
            let error = sagas.begin(&unknown).await.expect_err("no definition");
            assert_eq!(error.kind(), ErrorKind::NotFound);
            let large = Begin::new("order", "k".repeat(500), json!({}));
            let error = sagas.begin(&large).await.expect_err("too large");
            assert_eq!(error.kind(), ErrorKind::TooLarge);
            let found = until(world, Status::Completed, 1).await;
            assert_eq!(found.len(), 3);
        })
    })
    .await;
}

/// A step that never returns: its time runs out, and what was done is undone.
#[tokio::test(flavor = "multi_thread")]
async fn saga_step_that_never_returns_is_compensated_and_shown_as_stuck() {
    tell(registry(), |world| {
        Box::pin(async move {
            let coordinator = world.coordinator(&world.registry).await;
            let begin = Begin::new("lost", "l", json!({}));
            let begun = coordinator.sagas().begin(&begin).await.expect("begins");
            // Nobody answers to the compensation either.
            until(world, Status::Stuck, 1).await;
            let operations = world.operations();
            let stuck = operations.stuck(10).await.expect("lists");
            assert_eq!((stuck.len(), stuck[0].step.as_str()), (1, "silent"));
            assert!(stuck[0].why.contains("no answer"), "{}", stuck[0].why);
            let skip = Order::Skip {
                step: "silent".into(),
            };
            let status = operations
                .order(begun.id, "ann", "nobody is there", skip)
                .await;
            assert_eq!(status.expect("follows"), Status::Compensating);
            let found = until(world, Status::Compensated, 1).await;
            assert_eq!(
                found,
                effects("l", &[("reserve", "act"), ("reserve", "undo")])
            );
        })
    })
    .await;
}

/// Seata #2861 #5057 #5077: a compensation that fails for ever blocked, and was not to be found.
#[tokio::test(flavor = "multi_thread")]
async fn saga_seata_2861_5057_5077_failing_compensation_is_listed_and_retried_by_order() {
    tell(registry(), |world| {
        Box::pin(async move {
            let coordinator = world.coordinator(&world.registry).await;
            world.shop.broken.store(true, Ordering::SeqCst);
            let begin = Begin::new("order", "s", json!({"refuse": "pay"}));
            let begun = coordinator.sagas().begin(&begin).await.expect("begins");
            until(world, Status::Stuck, 1).await;
            let operations = world.operations();
            let stuck = operations.stuck(10).await.expect("lists");
            assert_eq!(
                (stuck[0].key.as_str(), stuck[0].step.as_str()),
                ("s", "reserve")
            );
            assert!(stuck[0].why.contains("it is broken"), "{}", stuck[0].why);
            eventually("the alarm", || async {
                let alarm = coordinator.status().alarm(Duration::from_secs(3600), 0);
                alarm
                    .filter(|text| text.contains("1 sagas are stuck"))
                    .ok_or("none".into())
            })
            .await;
            let nameless = operations.order(begun.id, " ", "why", Order::Abort).await;
            assert_eq!(nameless.expect_err("no name").kind(), ErrorKind::Invalid);
            world.shop.broken.store(false, Ordering::SeqCst);
            let retry = Order::Retry { step: None };
            let ordered = operations.order(begun.id, "ann", "repaired", retry).await;
            assert_eq!(ordered.expect("follows"), Status::Compensating);
            let found = until(world, Status::Compensated, 1).await;
            assert_eq!(
                found,
                effects("s", &[("reserve", "act"), ("reserve", "undo")])
            );
            let shown = operations.show_key("order", "s").await.expect("shows");
            let audit = shown.history.iter().find_map(|entry| match &entry.event {
                Event::Ordered(who, why, _) => Some(format!("{who}: {why}")),
                _ => None,
            });
            assert_eq!(audit.as_deref(), Some("ann: repaired"));
        })
    })
    .await;
}

/// What became of the orders of a saga that were noted without the definition.
async fn heard(world: &World, key: &str, count: usize) -> Vec<Event> {
    let operations = Operations::without_definitions(world.journal.clone());
    eventually("the orders are heard", || async {
        let shown = operations.show_key("order", key).await.expect("shows");
        let heard = shown.history.into_iter().map(|entry| entry.event);
        let heard = heard.filter(|e| matches!(e, Event::Ordered(..) | Event::Declined(..)));
        let heard: Vec<Event> = heard.collect();
        match heard.len() == count && shown.wishes.is_empty() {
            true => Ok(heard),
            false => Err(format!("{heard:?} {:?}", shown.wishes)),
        }
    })
    .await
}

/// Orders of somebody without the definition wait in the log, and are carried out or declined.
#[tokio::test(flavor = "multi_thread")]
async fn saga_wishes_wait_for_a_coordinator_and_are_followed_or_declined() {
    tell(registry(), |world| {
        Box::pin(async move {
            let coordinator = world.coordinator(&world.registry).await;
            world.shop.broken.store(true, Ordering::SeqCst);
            let begin = Begin::new("order", "w", json!({"refuse": "pay"}));
            let begun = coordinator.sagas().begin(&begin).await.expect("begins");
            until(world, Status::Stuck, 1).await;
            assert!(coordinator.drain().await);
            let operations = Operations::without_definitions(world.journal.clone());
            let stuck = operations.stuck(10).await.expect("lists");
            assert_eq!(stuck[0].step, "reserve", "the log names its steps");
            let retry = |step: &str| Order::Retry {
                step: Some(step.into()),
            };
            let nobody = operations.wish(begun.id, "ann", "why", retry("nobody"));
            let error = nobody.await.expect_err("no such step");
            assert_eq!(error.kind(), ErrorKind::NotFound);
            assert!(error.message().contains("reserve, pay, ship"), "{error}");
            let ordered = operations.order(begun.id, "ann", "why", retry("reserve"));
            let error = ordered.await.expect_err("the definition is not known");
            assert_eq!(error.kind(), ErrorKind::NotFound);
            for step in ["ship", "reserve"] {
                let wished = operations.wish(begun.id, "ann", "repaired", retry(step));
                wished.await.expect("is noted");
            }
            let shown = operations.show(begun.id).await.expect("shows");
            assert_eq!((shown.wishes.len(), shown.trouble), (2, None));
            assert_eq!(shown.record.status, Status::Stuck, "nobody has heard it");
            world.shop.broken.store(false, Ordering::SeqCst);
            // One that does not know the definition leaves them to one that does.
            let stranger = world.coordinator(&Registry::new()).await;
            let coordinator = world.coordinator(&world.registry).await;
            until(world, Status::Compensated, 1).await;
            let heard = heard(world, "w", 2).await;
            assert!(
                matches!(&heard[0], Event::Declined(who, _, why) if who == "ann" && why.contains("not stuck")),
                "{heard:?}"
            );
            let followed = Event::Ordered("ann".into(), "repaired".into(), retry("reserve"));
            assert_eq!(heard[1], followed);
            let late = operations.wish(begun.id, "ann", "why", Order::Abort);
            let error = late.await.expect_err("it has ended");
            assert!(error.message().contains("compensated"), "{error}");
            drop((stranger, coordinator));
        })
    })
    .await;
}

/// A wish whose consequences can't be written is declined with the reason; without it the saga goes on.
#[tokio::test(flavor = "multi_thread")]
async fn saga_wish_that_makes_a_command_too_large_is_declined_and_the_saga_goes_on() {
    let echo = |context: &crate::Context<'_>| {
        let told = context
            .outputs
            .get("told")
            .map_or(json!(null), |v| (*v).clone());
        json!([told, told, told, told, told])
    };
    let never = quick(1);
    let told = Step::new("told", "nobody").retry(never);
    let saga = Saga::named("order").step(told.deadline(Duration::from_secs(3600)));
    let saga = saga.step(Step::new("reserve", TOPIC).input(echo)).build();
    let registry = Registry::new().with(saga.expect("builds"));
    tell(registry.expect("a registry"), |world| {
        Box::pin(async move {
            let coordinator = world.coordinator(&world.registry).await;
            let begin = Begin::new("order", "large", json!({}));
            let begun = coordinator.sagas().begin(&begin).await.expect("begins");
            let operations = Operations::without_definitions(world.journal.clone());
            let force = |value: String| Order::Force {
                step: "told".into(),
                outcome: Outcome::Done(json!(value)),
            };
            let past = operations.wish(begun.id, "ann", "why", force("x".repeat(300 << 10)));
            let error = past.await.expect_err("past the limit");
            assert_eq!(error.kind(), ErrorKind::TooLarge);
            let large = operations.wish(begun.id, "ann", "why", force("x".repeat(250 << 10)));
            large.await.expect("is noted");
            let declined = heard(world, "large", 1).await;
            assert!(
                matches!(&declined[0], Event::Declined(_, _, why) if why.contains("payload")),
                "{:.300?}",
                declined[0]
            );
            let small = operations.wish(begun.id, "ann", "why", force("x".into()));
            small.await.expect("is noted");
            let found = until(world, Status::Completed, 1).await;
            assert_eq!(found, effects("large", &[("reserve", "act")]));
        })
    })
    .await;
}

/// Seata #5170: a saga whose client had crashed stayed "running".
#[tokio::test(flavor = "multi_thread")]
async fn saga_seata_5170_crashed_coordinator_leaves_its_sagas_to_another() {
    tell(registry(), |world| {
        Box::pin(async move {
            let first = world.coordinator(&world.registry).await;
            let sagas = first.sagas();
            for n in 0..10 {
                let begin = Begin::new("order", format!("c{n}"), json!({}));
                sagas.begin(&begin).await.expect("begins");
            }
            drop((first, sagas));
            let second = world.coordinator(&world.registry).await;
            let found = until(world, Status::Completed, 10).await;
            assert_eq!(found.len(), 30);
            drop(second);
        })
    })
    .await;
}

/// A deploy: the old program knows version 1, the new one both. Each saga ends in the version it began with.
#[tokio::test(flavor = "multi_thread")]
async fn saga_of_an_unknown_version_is_left_to_who_knows_it() {
    tell(registry(), |world| {
        Box::pin(async move {
            let both = world.registry.clone().with(order(2)).expect("a registry");
            let old = world.coordinator(&world.registry).await;
            let new = world.coordinator(&both).await;
            for n in 0..6 {
                let from = if n % 2 == 0 { &old } else { &new };
                let begin = Begin::new("order", format!("v{n}"), json!({}));
                from.sagas().begin(&begin).await.expect("begins");
            }
            until(world, Status::Completed, 6).await;
            let counts = world.journal.count().await.expect("counts");
            let versions: Vec<(u32, i64)> = counts.iter().map(|c| (c.version, c.sagas)).collect();
            assert_eq!(versions, [(1, 3), (2, 3)]);
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tcc_all_tried_is_confirmed_and_one_refused_cancels_all() {
    tell(registry(), |world| {
        Box::pin(async move {
            let coordinator = world.coordinator(&world.registry).await;
            let sagas = coordinator.sagas();
            for n in 0..5 {
                let begin = Begin::new("payment", format!("t{n}"), json!({}));
                sagas.begin(&begin).await.expect("begins");
            }
            let found = until(world, Status::Completed, 5).await;
            let all = [
                ("account", "act"),
                ("account", "confirm"),
                ("stock", "act"),
                ("stock", "confirm"),
            ];
            let expected: Vec<Effect> = (0..5)
                .flat_map(|n| effects(&format!("t{n}"), &all))
                .collect();
            assert_eq!(found, expected);
            let begin = Begin::new("payment", "u", json!({"refuse": "stock"}));
            sagas.begin(&begin).await.expect("begins");
            let found = until(world, Status::Compensated, 1).await;
            // What was refused left nothing, so there is nothing to cancel in the database.
            assert_eq!(
                found[20..],
                effects("u", &[("account", "act"), ("account", "undo")])
            );
        })
    })
    .await;
}

fn with_hold() -> Registry {
    let saga = Saga::named("mixed").step(Step::new("pay", TOPIC));
    let saga = saga.pivot(Step::new("accept", TOPIC));
    let saga = saga.then(Step::confirm("pay", TOPIC)).build();
    Registry::new()
        .with(saga.expect("builds"))
        .expect("a registry")
}

/// A TCC branch within a saga: tried before the pivot, confirmed after it, cancelled if the pivot is refused.
#[tokio::test(flavor = "multi_thread")]
async fn tcc_branch_within_a_saga_is_confirmed_after_the_pivot_or_cancelled() {
    tell(with_hold(), |world| {
        Box::pin(async move {
            let coordinator = world.coordinator(&world.registry).await;
            let sagas = coordinator.sagas();
            for (key, refused) in [("a", ""), ("b", "accept")] {
                let begin = Begin::new("mixed", key, json!({"refuse": refused}));
                sagas.begin(&begin).await.expect("begins");
            }
            until(world, Status::Compensated, 1).await;
            let found = until(world, Status::Completed, 1).await;
            let whole = [("accept", "act"), ("pay", "act"), ("pay", "confirm")];
            let mut expected = effects("a", &whole);
            expected.extend(effects("b", &[("pay", "act"), ("pay", "undo")]));
            assert_eq!(found, expected);
        })
    })
    .await;
}

#[test]
fn definition_with_a_confirm_of_what_was_not_tried_is_refused() {
    let accept = || Step::new("accept", TOPIC);
    let tried = || Saga::named("order").step(Step::new("pay", TOPIC));
    let refused = [
        // Nobody tries it; another service does; it is decided already; it comes before the decision.
        Saga::named("order")
            .pivot(accept())
            .then(Step::confirm("pay", TOPIC))
            .build(),
        tried().then(Step::confirm("pay", "elsewhere")).build(),
        Saga::named("order")
            .pivot(Step::new("pay", TOPIC))
            .then(Step::confirm("pay", TOPIC))
            .build(),
        tried().step(Step::confirm("pay", TOPIC)).build(),
    ];
    for (number, refused) in refused.into_iter().enumerate() {
        let error = refused.expect_err("is refused");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{number}: {error}");
        assert!(error.message().contains("pay.confirm"), "{number}: {error}");
    }
    assert!(
        tried()
            .pivot(accept())
            .then(Step::confirm("pay", TOPIC))
            .build()
            .is_ok()
    );
}

/// A saga in whose log a newer program has written is shown, and not touched.
#[tokio::test(flavor = "multi_thread")]
async fn saga_with_events_of_a_newer_program_is_shown_and_not_touched() {
    let world = World::lite(registry(), false).await;
    let coordinator = world.coordinator(&Registry::new()).await;
    let planner = crate::Planner::new(world.registry.clone(), "saga-replies");
    let append = planner
        .begin(&Begin::new("order", "n", json!({})), 1)
        .expect("begins");
    let written = world
        .journal
        .append(None, std::slice::from_ref(&append))
        .await;
    assert_eq!(written.expect("appends"), [true]);
    let super::shop::Place::Lite(lite) = &world.place else {
        panic!("it is SQLite");
    };
    let newer = "UPDATE quorate_saga SET seq = seq + 1, wake_ms = 1,
        log = log || '[2,{\"teleported\":[1]}]' || char(10)";
    sqlx::query(newer)
        .execute(&lite.pool)
        .await
        .expect("changes");
    let before = world.journal.load(&[append.id]).await.expect("loads");
    drop(coordinator);
    let coordinator = world.coordinator(&world.registry).await;
    eventually("it is seen", || async {
        let status = coordinator.status();
        let seen = status
            .unreadable
            .filter(|text| text.contains("newer program"));
        seen.ok_or_else(|| "nothing is said".to_owned())
    })
    .await;
    let after = world.journal.load(&[append.id]).await.expect("loads");
    assert_eq!(
        (&after[0].log, after[0].seq),
        (&before[0].log, before[0].seq)
    );
    let shown = world.operations().show(append.id).await.expect("shows");
    assert!(shown.trouble.is_some_and(|text| text.contains("event")));
    world.end().await;
}

/// A step whose command is too large for a message costs its own saga only.
#[tokio::test(flavor = "multi_thread")]
async fn saga_whose_command_is_too_large_is_shown_and_others_go_on() {
    let large = |_: &crate::Context<'_>| json!("x".repeat(1 << 20));
    let later = Saga::named("later").step(Step::new("reserve", TOPIC));
    let later = later.step(Step::new("large", TOPIC).input(large));
    let first = Saga::named("first").step(Step::new("large", TOPIC).input(large));
    let registry = registry()
        .with(later.build().expect("builds"))
        .and_then(|all| all.with(first.build()?))
        .expect("a registry");
    let world = World::lite(registry, false).await;
    let coordinator = world.coordinator(&world.registry).await;
    let sagas = coordinator.sagas();
    let error = sagas.begin(&Begin::new("first", "f", json!({}))).await;
    assert_eq!(error.expect_err("too large").kind(), ErrorKind::TooLarge);
    sagas
        .begin(&Begin::new("later", "l", json!({})))
        .await
        .expect("begins");
    for n in 0..5 {
        let begin = Begin::new("order", format!("o{n}"), json!({}));
        sagas.begin(&begin).await.expect("begins");
    }
    until(&world, Status::Completed, 5).await;
    eventually("it is said", || async {
        let said = coordinator.status().unreadable;
        let fits = |text: &String| text.contains("`l` of `later`") && text.contains("payload");
        said.filter(fits)
            .ok_or_else(|| "nothing is said".to_owned())
    })
    .await;
    world.end().await;
}
