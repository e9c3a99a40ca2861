//! Single stories.

use std::time::Duration;

use serde_json::{Value, json};

use crate::machine::{
    self, Dir, Entry, Event, Input, Order, Outcome, Phase, Start, State, Status, Turn,
};
use crate::{Definition, ErrorKind, Op, Retry, Saga, Step};

fn once() -> Retry {
    Retry {
        attempts: 1,
        first: Duration::from_millis(10),
        max: Duration::from_millis(10),
    }
}

fn order() -> Definition {
    let saga = Saga::named("order")
        .step(
            Step::new("reserve", "stock")
                .retry(once())
                .undo_retry(once()),
        )
        .pivot(Step::new("pay", "accounts").retry(once()))
        .then(Step::new("ship", "orders").retry(once()));
    saga.build().expect("builds")
}

fn begin(definition: &Definition) -> Turn<'_> {
    let start = Start {
        name: definition.name().into(),
        version: definition.version(),
        shape: definition.shape(),
        key: "k".into(),
        input: json!({"books": 2}),
        deadline_ms: machine::deadline_ms(definition, 0),
        steps: Vec::new(),
        traceparent: None,
    };
    machine::start(definition, start, 1, 0)
}

fn reply(turn: &mut Turn<'_>, branch: &str, op: Op, outcome: Outcome) {
    let input = Input::Reply {
        branch: branch.into(),
        op,
        attempt: 1,
        outcome,
    };
    turn.take(input).expect("takes");
}

fn done() -> Outcome {
    Outcome::Done(Value::Null)
}

fn refused() -> Outcome {
    Outcome::Refused("no".into())
}

fn give_order(turn: &mut Turn<'_>, order: Order) -> crate::Result<()> {
    turn.take(Input::Order {
        who: "ann".into(),
        why: "by phone".into(),
        order,
    })
}

fn sent(turn: &Turn<'_>) -> Vec<(usize, Dir, u32)> {
    let sends = turn.sends.iter();
    sends
        .map(|send| (send.step, send.dir, send.attempt))
        .collect()
}

/// After the last reply nothing of the log is lost by writing and reading it.
fn assert_folds(turn: &Turn<'_>, definition: &Definition) {
    let folded = State::fold(definition, &turn.events).expect("folds");
    assert_eq!(folded, turn.state);
}

#[test]
fn machine_all_done_completes() {
    let definition = order();
    let mut turn = begin(&definition);
    reply(&mut turn, "reserve", Op::Act, done());
    reply(&mut turn, "pay", Op::Act, done());
    assert_eq!(turn.state.status(), Status::Running);
    reply(&mut turn, "ship", Op::Act, done());
    assert_eq!(turn.state.status(), Status::Completed);
    assert_eq!(
        sent(&turn),
        [(0, Dir::Act, 1), (1, Dir::Act, 1), (2, Dir::Act, 1)]
    );
    assert_eq!(turn.state.wake_ms(&definition), None);
    assert_folds(&turn, &definition);
}

#[test]
fn machine_refused_pivot_undoes_what_was_done() {
    let definition = order();
    let mut turn = begin(&definition);
    reply(&mut turn, "reserve", Op::Act, Outcome::Done(json!("r-1")));
    reply(&mut turn, "pay", Op::Act, refused());
    assert_eq!(turn.state.status(), Status::Compensating);
    let undo = turn.sends.last().expect("a command");
    assert_eq!((undo.step, undo.dir), (0, Dir::Undo));
    assert_eq!(
        undo.output,
        Some(json!("r-1")),
        "a compensation knows what it undoes"
    );
    reply(&mut turn, "reserve", Op::Undo, done());
    assert_eq!(turn.state.status(), Status::Compensated);
    assert_folds(&turn, &definition);
}

#[test]
fn machine_unknown_outcome_before_the_pivot_is_undone_too() {
    let definition = order();
    let mut turn = begin(&definition);
    let state = turn.state.clone();
    let mut turn2 = machine::step(&definition, state, Input::Tick, 1, 10_000).expect("steps");
    // One try alone: the outcome is unknown, and undone.
    assert_eq!(sent(&turn2), [(0, Dir::Undo, 1)]);
    reply(&mut turn2, "reserve", Op::Undo, done());
    assert_eq!(turn2.state.status(), Status::Compensated);
    reply(
        &mut turn,
        "reserve",
        Op::Act,
        Outcome::Unknown("broke".into()),
    );
    assert_eq!(turn.state.steps[0].phase, Phase::Sent(Dir::Undo, 10_000));
}

#[test]
fn machine_unknown_pivot_is_stuck_until_it_is_known() {
    let definition = order();
    let mut turn = begin(&definition);
    reply(&mut turn, "reserve", Op::Act, done());
    reply(
        &mut turn,
        "pay",
        Op::Act,
        Outcome::Unknown("no answer of the bank".into()),
    );
    assert_eq!(turn.state.status(), Status::Stuck);
    let refused_order = give_order(&mut turn, Order::Abort).expect_err("no way back");
    assert_eq!(refused_order.kind(), ErrorKind::Invalid);
    // An answer that comes after all is taken.
    reply(&mut turn, "pay", Op::Act, done());
    assert_eq!(turn.state.status(), Status::Running);
    assert_eq!(sent(&turn).last(), Some(&(2, Dir::Act, 1)));
}

#[test]
fn machine_compensation_that_fails_for_ever_is_stuck_and_obeys_operators() {
    let definition = order();
    let stuck = |definition| {
        let mut turn = begin(definition);
        reply(&mut turn, "reserve", Op::Act, done());
        reply(&mut turn, "pay", Op::Act, refused());
        reply(
            &mut turn,
            "reserve",
            Op::Undo,
            Outcome::Unknown("broke".into()),
        );
        turn.state
    };
    assert_eq!(stuck(&definition).status(), Status::Stuck);
    assert_eq!(stuck(&definition).wake_ms(&definition), None);
    let order = |order| {
        let input = Input::Order {
            who: "ann".into(),
            why: "by phone".into(),
            order,
        };
        machine::step(&definition, stuck(&definition), input, 1, 5)
    };
    let retried = order(Order::Retry { step: None }).expect("follows");
    assert_eq!(sent(&retried), [(0, Dir::Undo, 1)]);
    assert_eq!(retried.state.status(), Status::Compensating);
    let skip = Order::Skip {
        step: "reserve".into(),
    };
    let skipped = order(skip).expect("follows");
    assert_eq!(skipped.state.status(), Status::Compensated);
    let line = format!("{:?}", skipped.events[0].event);
    assert!(
        line.contains("ann") && line.contains("by phone"),
        "the audit: {line}"
    );
    let force = |outcome| Order::Force {
        step: "reserve".into(),
        outcome,
    };
    let forced = order(force(done())).expect("follows");
    assert_eq!(forced.state.status(), Status::Compensated);
    let wrong = order(force(refused())).expect_err("a compensation is not refused");
    assert_eq!(wrong.kind(), ErrorKind::Invalid);
    let nothing = Order::Retry {
        step: Some("nothing".into()),
    };
    let unknown = order(nothing).expect_err("no such step");
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
}

#[test]
fn machine_repeated_and_late_answers_change_nothing() {
    let definition = order();
    let mut turn = begin(&definition);
    reply(&mut turn, "reserve", Op::Act, done());
    let events = turn.events.len();
    reply(&mut turn, "reserve", Op::Act, done());
    reply(&mut turn, "reserve", Op::Act, refused());
    reply(&mut turn, "ship", Op::Act, done());
    reply(&mut turn, "reserve", Op::Undo, done());
    assert_eq!(
        turn.events.len(),
        events,
        "double, contrary, too early, not asked for"
    );
}

#[test]
fn machine_refused_retriable_step_is_tried_again_then_stuck() {
    let definition = order();
    let mut turn = begin(&definition);
    reply(&mut turn, "reserve", Op::Act, done());
    reply(&mut turn, "pay", Op::Act, done());
    reply(&mut turn, "ship", Op::Act, refused());
    assert_eq!(turn.state.status(), Status::Stuck);
    let retry = Order::Retry {
        step: Some("ship".into()),
    };
    give_order(&mut turn, retry).expect("follows");
    reply(&mut turn, "ship", Op::Act, done());
    assert_eq!(turn.state.status(), Status::Completed);
}

#[test]
fn machine_deadline_turns_before_the_pivot_only() {
    let definition = Saga::named("d")
        .deadline(Duration::from_secs(1))
        .step(Step::new("a", "t"))
        .pivot(Step::new("b", "t"))
        .build()
        .expect("builds");
    let turn = begin(&definition);
    assert_eq!(turn.state.wake_ms(&definition), Some(1000));
    let late = machine::step(&definition, turn.state.clone(), Input::Tick, 1, 1000).expect("steps");
    assert_eq!(late.state.status(), Status::Compensating);
    let mut turn = begin(&definition);
    reply(&mut turn, "a", Op::Act, done());
    assert_eq!(
        turn.state.wake_ms(&definition),
        Some(10_000),
        "only the answer is waited for"
    );
    let late = machine::step(&definition, turn.state, Input::Tick, 1, 1000).expect("steps");
    assert_eq!(late.events, []);
}

#[test]
fn machine_parallel_branches_run_together_and_join() {
    let definition = Saga::named("p")
        .parallel([
            vec![Step::new("a1", "t"), Step::new("a2", "t")],
            vec![Step::new("b1", "t")],
        ])
        .pivot(Step::new("c", "t").input(|context| json!({"a2": context.outputs["a2"]})))
        .build()
        .expect("builds");
    let mut turn = begin(&definition);
    assert_eq!(sent(&turn), [(0, Dir::Act, 1), (2, Dir::Act, 1)]);
    reply(&mut turn, "a1", Op::Act, done());
    reply(&mut turn, "b1", Op::Act, done());
    assert_eq!(turn.sends.len(), 3, "the pivot waits for a2");
    reply(&mut turn, "a2", Op::Act, Outcome::Done(json!(5)));
    let pivot = turn.sends.last().expect("a command");
    assert_eq!((pivot.step, &pivot.input), (3, &json!({"a2": 5})));
    reply(&mut turn, "c", Op::Act, refused());
    let undone = &sent(&turn)[4..];
    assert_eq!(
        undone,
        [(1, Dir::Undo, 1), (2, Dir::Undo, 1)],
        "a1 comes after a2"
    );
    reply(&mut turn, "a2", Op::Undo, done());
    reply(&mut turn, "a1", Op::Undo, done());
    reply(&mut turn, "b1", Op::Undo, done());
    assert_eq!(turn.state.status(), Status::Compensated);
}

#[test]
fn machine_changed_definition_of_one_version_is_refused() {
    let old = order();
    let turn = begin(&old);
    let new = Saga::named("order")
        .step(Step::new("other", "t"))
        .build()
        .expect("builds");
    let error = State::fold(&new, &turn.events).expect_err("another shape");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.message().contains("new version"), "{error}");
}

#[test]
fn machine_log_of_a_newer_program_is_refused() {
    let error = machine::read_log("[1,{\"teleported\":[1]}]\n").expect_err("unknown event");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.message().contains("event 1"), "{error}");
}

#[test]
fn definition_that_can_not_be_is_refused() {
    let step = || Step::new("a", "t");
    let no_tries = Retry {
        attempts: 0,
        ..Retry::attempts(1)
    };
    let wrong = [
        Saga::named("").step(step()).build(),
        Saga::named("n").build(),
        Saga::named("n").step(step()).step(step()).build(),
        Saga::named("n").step(Step::new("a b", "t")).build(),
        Saga::named("n").step(Step::new("a", "no topic")).build(),
        Saga::named("n").step(step().retry(no_tries)).build(),
        Saga::named("n")
            .step(step().deadline(Duration::ZERO))
            .build(),
    ];
    for one in wrong {
        assert_eq!(one.expect_err("refused").kind(), ErrorKind::Invalid);
    }
}

#[test]
fn machine_mail_is_taken_at_the_next_look() {
    let definition = order();
    let mut entries = begin(&definition).events;
    entries.push(Entry {
        at_ms: 5,
        event: Event::Mail("reserve".into(), Op::Act, 1, done()),
    });
    let state = State::fold(&definition, &entries).expect("folds");
    let turn = machine::step(&definition, state, Input::Tick, 1, 10).expect("steps");
    assert_eq!(sent(&turn), [(1, Dir::Act, 1)]);
    assert!(turn.state.mail.is_empty());
    entries.extend(turn.events);
    let folded = State::fold(&definition, &entries).expect("folds");
    assert_eq!(folded, turn.state);
}

fn wished(order: Order) -> Entry {
    Entry {
        at_ms: 5,
        event: Event::Wished("ann".into(), "by phone".into(), order),
    }
}

#[test]
fn machine_wish_is_followed_at_the_next_look_and_noted_as_an_order() {
    let definition = order();
    let mut log = begin(&definition).events;
    log.push(wished(Order::Abort));
    let state = State::fold(&definition, &log).expect("folds");
    assert_eq!(state.wishes.len(), 1);
    assert!(
        state.wake_ms(&definition).is_some_and(|at| at <= 5),
        "it is looked at"
    );
    let mut turn = machine::resume(&definition, state, 1, 10);
    turn.take(Input::Tick).expect("takes");
    assert!(turn.state.wishes.is_empty());
    assert_eq!(turn.state.status(), Status::Compensating);
    let ordered = Event::Ordered("ann".into(), "by phone".into(), Order::Abort);
    assert!(turn.events.iter().any(|entry| entry.event == ordered));
    assert_eq!(sent(&turn), [(0, Dir::Undo, 1)]);
    log.extend(turn.events);
    assert_eq!(State::fold(&definition, &log).expect("folds"), turn.state);
}

#[test]
fn machine_wish_that_can_not_be_followed_is_declined_and_the_saga_goes_on() {
    let definition = order();
    let mut log = begin(&definition).events;
    let skip = |step: &str| Order::Skip { step: step.into() };
    let unknown = Order::Force {
        step: "reserve".into(),
        outcome: Outcome::Unknown("who knows".into()),
    };
    let impossible = [
        (skip("nobody"), "no step `nobody`"),
        (skip("reserve"), "not stuck"),
        (skip("#7"), "no step `#7`"),
        (Order::Retry { step: None }, "no step is stuck"),
        (unknown, "forced to be done"),
    ];
    log.extend(impossible.iter().map(|(order, _)| wished(order.clone())));
    let state = State::fold(&definition, &log).expect("folds");
    let mut turn = machine::resume(&definition, state, 1, 10);
    reply(&mut turn, "reserve", Op::Act, done());
    let declined = turn.events.iter().filter_map(|entry| match &entry.event {
        Event::Declined(who, order, why) => Some((who.as_str(), order.clone(), why.clone())),
        _ => None,
    });
    let declined: Vec<_> = declined.collect();
    assert_eq!(declined.len(), impossible.len());
    for ((who, order, why), (wished, said)) in declined.iter().zip(&impossible) {
        assert_eq!((*who, order), ("ann", wished));
        assert!(why.contains(said), "{why}");
    }
    let orders = turn.events.iter();
    let mut orders = orders.filter(|entry| matches!(entry.event, Event::Ordered(..)));
    assert!(orders.next().is_none(), "none was followed");
    assert_eq!(
        sent(&turn),
        [(1, Dir::Act, 1)],
        "the answer counts all the same"
    );
}

#[test]
fn machine_wishes_beside_each_other_are_heard_in_order_and_the_first_may_end_it() {
    let definition = order();
    let mut turn = begin(&definition);
    reply(&mut turn, "reserve", Op::Act, done());
    reply(&mut turn, "pay", Op::Act, done());
    let mut log = turn.events;
    let force = Order::Force {
        step: "#2".into(),
        outcome: Outcome::Done(json!("by hand")),
    };
    log.extend([wished(force), wished(Order::Abort)]);
    let state = State::fold(&definition, &log).expect("folds");
    let mut turn = machine::resume(&definition, state, 1, 10);
    turn.take(Input::Tick).expect("takes");
    assert_eq!(turn.state.status(), Status::Completed);
    let last = turn.events.last().map(|entry| &entry.event);
    assert!(
        matches!(last, Some(Event::Declined(_, Order::Abort, why)) if why.contains("ended")),
        "{last:?}"
    );
    log.extend(turn.events);
    assert_eq!(State::fold(&definition, &log).expect("folds"), turn.state);
}

/// What programs wrote before there were wishes, and names of steps in the log.
#[test]
fn machine_log_of_an_older_program_is_read() {
    let definition = order();
    let shape = definition.shape();
    let log = format!(
        "[0,{{\"started\":{{\"name\":\"order\",\"version\":1,\"shape\":{shape},\"key\":\"k\",\
         \"input\":null}}}}]\n[0,{{\"sent\":[0,\"act\",1,60000]}}]\n\
         [3,{{\"mail\":[\"reserve\",\"Act\",1,{{\"done\":null}}]}}]\n[4,\"taken\"]\n\
         [4,{{\"done\":[0,\"act\"]}}]\n[4,{{\"sent\":[1,\"act\",1,60000]}}]\n"
    );
    let log = log.replace("\"Act\"", &serde_json::to_string(&Op::Act).expect("writes"));
    let entries = machine::read_log(&log).expect("reads");
    let state = State::fold(&definition, &entries).expect("folds");
    assert_eq!(state.steps[0].phase, Phase::Done);
    let gleaned = State::glean(&entries).expect("without the definition, too");
    assert_eq!(gleaned.steps, state.steps[..2]);
}
