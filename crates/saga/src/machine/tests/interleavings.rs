//! Random sagas over participants that are late, double, silent, wrong, and a coordinator that dies.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::machine::{
    self, Dir, End, Entry, Event, Input, Order, Outcome, Send, Start, State, Status, Turn,
    read_log, write_log,
};
use crate::{Definition, Kind, Op, Retry, Saga, Step};

/// Numbers that depend on the seed alone.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % end
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// What a participant holds of a branch: the fence and the effect.
#[derive(Default)]
struct Branch {
    act: Option<Outcome>,
    undo: bool,
    acted: u32,
    undone: u32,
    /// So many more tries come to nothing.
    faults: u64,
}

struct World<'d> {
    definition: &'d Definition,
    random: Random,
    now_ms: i64,
    state: Option<State>,
    log: Vec<Entry>,
    commands: Vec<Send>,
    replies: Vec<Input>,
    branches: BTreeMap<usize, Branch>,
    /// A compensation of this step is never made.
    broken: Option<usize>,
}

fn random_step(random: &mut Random, number: &mut u32) -> Step {
    *number += 1;
    let retry = Retry {
        attempts: 1 + random.below(3) as u32,
        first: Duration::from_millis(10),
        max: Duration::from_millis(50),
    };
    let step = Step::new(format!("s{number}"), "t")
        .retry(retry)
        .undo_retry(retry);
    let step = step.deadline(Duration::from_millis(100));
    if random.percent(20) {
        step.undo_refused()
    } else {
        step
    }
}

fn random_definition(random: &mut Random) -> Definition {
    let mut number = 0;
    let mut saga = Saga::named("random");
    if random.percent(30) {
        saga = saga.deadline(Duration::from_millis(random.below(400)));
    }
    for _ in 0..random.below(3) {
        let branches = 1 + random.below(3);
        let mut all = Vec::new();
        for _ in 0..branches {
            let length = 1 + random.below(2);
            all.push(
                (0..length)
                    .map(|_| random_step(random, &mut number))
                    .collect(),
            );
        }
        saga = saga.parallel(all);
    }
    let last = random_step(random, &mut number);
    if random.percent(30) {
        return saga.step(last).build().expect("builds");
    }
    let mut saga = if random.percent(70) {
        saga.pivot(last)
    } else {
        saga.then(last)
    };
    for _ in 0..random.below(2) {
        let branches = [
            vec![random_step(random, &mut number)],
            vec![random_step(random, &mut number)],
        ];
        saga = saga.then_parallel(branches);
    }
    saga.build().expect("builds")
}

impl World<'_> {
    fn keep(&mut self, turn: Turn<'_>) {
        for send in &turn.sends {
            let kind = self.definition.steps()[send.step].kind();
            assert!(send.dir == Dir::Act || kind == Kind::Compensatable);
        }
        let is_turn = |entry: &Entry| matches!(entry.event, Event::Turned(_));
        let mut turned = self.log.iter().any(is_turn);
        for entry in &turn.events {
            let acts = matches!(entry.event, Event::Sent(_, Dir::Act, ..));
            assert!(!(turned && acts), "an action is sent after it turned");
            turned |= is_turn(entry);
        }
        self.log.extend(turn.events);
        self.commands.extend(turn.sends);
        self.state = Some(turn.state);
    }

    /// The coordinator takes something in. Sometimes it dies before or after it has kept what it made of it.
    fn give(&mut self, input: Input) {
        let state = self.state.take().expect("a state");
        let dies = self.random.percent(10);
        if dies && self.random.percent(50) {
            self.state = Some(self.folded());
            return;
        }
        let turn = machine::step(self.definition, state, input, 7, self.now_ms).expect("steps");
        self.keep(turn);
        let wakes = self
            .state
            .as_ref()
            .and_then(|state| state.wake_ms(self.definition));
        let status = self.state.as_ref().map(State::status);
        assert!(
            wakes.is_some()
                || status.is_some_and(|status| status.is_end() || status == Status::Stuck),
            "it waits for nothing: {:?}",
            self.state
        );
        if dies {
            let folded = self.folded();
            assert_eq!(
                Some(&folded),
                self.state.as_ref(),
                "the state is the fold of the events"
            );
            self.state = Some(folded);
        }
    }

    fn folded(&self) -> State {
        let mut text = String::new();
        write_log(&mut text, &self.log).expect("writes");
        let log = read_log(&text).expect("reads");
        State::fold(self.definition, &log).expect("folds")
    }

    fn reply(&mut self, send: &Send, outcome: Outcome) {
        let op = match send.dir {
            Dir::Act => Op::Act,
            Dir::Undo => Op::Undo,
        };
        let reply = Input::Reply {
            branch: self.definition.steps()[send.step].name().to_owned(),
            op,
            attempt: send.attempt,
            outcome,
        };
        if !self.random.percent(15) {
            self.replies.push(reply.clone());
        }
        if self.random.percent(15) {
            self.replies.push(reply);
        }
    }

    /// A participant does a command, behind its fence.
    fn perform(&mut self, send: &Send) {
        let kind = self.definition.steps()[send.step].kind();
        let is_broken = self.broken == Some(send.step);
        let branch = self.branches.entry(send.step).or_default();
        if branch.faults > 0 || (is_broken && send.dir == Dir::Undo) {
            branch.faults = branch.faults.saturating_sub(1);
            return self.reply(send, Outcome::Unknown("not now".into()));
        }
        let outcome = match (send.dir, &branch.act) {
            (Dir::Act, Some(settled)) => settled.clone(),
            (Dir::Act, None) => {
                let refuses = kind != Kind::Retriable && self.random.percent(15);
                let outcome = if refuses {
                    Outcome::Refused("no".into())
                } else {
                    branch.acted += 1;
                    Outcome::Done(json!(send.step))
                };
                branch.act = Some(outcome.clone());
                outcome
            }
            (Dir::Undo, _) if branch.undo => Outcome::Done(Value::Null),
            (Dir::Undo, act) => {
                if matches!(act, Some(Outcome::Done(_))) {
                    branch.undone += 1;
                }
                branch
                    .act
                    .get_or_insert(Outcome::Refused("undone before it came".into()));
                branch.undo = true;
                Outcome::Done(Value::Null)
            }
        };
        self.reply(send, outcome);
    }

    /// One thing happens. False when nothing will happen any more.
    fn happen(&mut self) -> bool {
        let what = self.random.below(10);
        if what < 5 && !self.commands.is_empty() {
            let which = self.random.below(self.commands.len() as u64) as usize;
            let send = self.commands.swap_remove(which);
            if self.random.percent(10) {
                self.commands.push(send.clone());
            }
            if self.random.percent(90) {
                self.perform(&send);
            }
            return true;
        }
        if what < 9 && !self.replies.is_empty() {
            let which = self.random.below(self.replies.len() as u64) as usize;
            let reply = self.replies.swap_remove(which);
            self.give(reply);
            return true;
        }
        let state = self.state.as_ref().expect("a state");
        let Some(wake) = state.wake_ms(self.definition) else {
            return !(self.commands.is_empty() && self.replies.is_empty());
        };
        self.now_ms = self.now_ms.max(wake);
        self.give(Input::Tick);
        true
    }

    fn run(&mut self) {
        let mut left = 20_000;
        while self.happen() {
            left -= 1;
            assert!(left > 0, "it does not come to an end: {:?}", self.state);
            if self.random.percent(1) {
                self.order(Order::Abort);
            }
            if self.random.percent(2) {
                let order = self.random_order();
                self.wish(order);
            }
        }
    }

    fn order(&mut self, order: Order) {
        let state = self.state.clone().expect("a state");
        let input = Input::Order {
            who: "op".into(),
            why: "test".into(),
            order,
        };
        if let Ok(turn) = machine::step(self.definition, state, input, 7, self.now_ms) {
            self.keep(turn);
        }
    }

    /// Any order, also one that can't be followed, of steps that there are and are not.
    fn random_order(&mut self) -> Order {
        let number = self.random.below(self.definition.steps().len() as u64 + 1);
        let step = match self.definition.steps().get(number as usize) {
            Some(step) => step.name().to_owned(),
            None => "nobody".into(),
        };
        match self.random.below(6) {
            0 => Order::Abort,
            1 => Order::Retry { step: None },
            2 => Order::Retry { step: Some(step) },
            3 => Order::Skip { step },
            4 => Order::Force {
                step,
                outcome: Outcome::Done(Value::Null),
            },
            _ => Order::Force {
                step,
                outcome: match self.random.percent(80) {
                    true => Outcome::Refused("it is not".into()),
                    false => Outcome::Unknown("who knows".into()),
                },
            },
        }
    }

    /// Somebody without the definition notes an order in the log; what the coordinator knew is old then.
    fn wish(&mut self, order: Order) {
        if self.status().is_end() {
            return;
        }
        self.log.push(Entry {
            at_ms: self.now_ms,
            event: Event::Wished("shell".into(), "test".into(), order),
        });
        let state = self.folded();
        assert!(
            state
                .wake_ms(self.definition)
                .is_some_and(|at| at <= self.now_ms),
            "a wish is looked at"
        );
        self.state = Some(state);
    }

    /// Wishes become of themselves `Ordered` or `Declined`, each once and in order.
    fn check_wishes(&self) {
        let mut wished = Vec::new();
        let mut heard = Vec::new();
        for entry in &self.log {
            match &entry.event {
                Event::Wished(_, _, order) => wished.push(order),
                Event::Ordered(who, _, order) if who == "shell" => heard.push(order),
                Event::Declined(_, order, _) => heard.push(order),
                _ => {}
            }
        }
        assert_eq!(wished, heard);
    }

    /// Steps of which an operator said what became of them: perhaps it was not true.
    fn is_meddled(&self, number: usize) -> bool {
        let name = self.definition.steps()[number].name();
        self.log.iter().any(|entry| match &entry.event {
            Event::Skipped(step, _) => usize::from(*step) == number,
            Event::Ordered(_, _, Order::Force { step, .. }) => step == name,
            _ => false,
        })
    }

    fn status(&self) -> Status {
        self.state.as_ref().expect("a state").status()
    }

    fn check(&self) {
        assert!(self.state.as_ref().is_some_and(|state| state.end.is_some()));
        self.check_wishes();
        let all = self.definition.steps().iter().enumerate();
        for (number, step) in all.filter(|(number, _)| !self.is_meddled(*number)) {
            let none = Branch::default();
            let branch = self.branches.get(&number).unwrap_or(&none);
            assert!(branch.acted <= 1 && branch.undone <= branch.acted);
            if step.kind() != Kind::Compensatable && branch.acted == 1 {
                assert_eq!(self.status(), Status::Completed, "there was no way back");
            }
            let left = branch.acted - branch.undone;
            match self.state.as_ref().and_then(|state| state.end) {
                Some(End::Completed) => assert_eq!(left, 1, "{} has no effect", step.name()),
                Some(End::Compensated) => assert_eq!(left, 0, "{} is not undone", step.name()),
                None => panic!("it has not ended"),
            }
        }
    }
}

fn case(seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let definition = random_definition(&mut random);
    let start = Start {
        name: "random".into(),
        version: 1,
        shape: definition.shape(),
        key: "k".into(),
        input: json!({"n": seed}),
        deadline_ms: machine::deadline_ms(&definition, 1000),
        steps: Vec::new(),
        traceparent: None,
    };
    let mut world = World {
        definition: &definition,
        now_ms: 1000,
        state: None,
        log: Vec::new(),
        commands: Vec::new(),
        replies: Vec::new(),
        branches: BTreeMap::new(),
        broken: None,
        random,
    };
    for number in 0..definition.steps().len() {
        let faults = world.random.below(6).saturating_sub(3);
        world.branches.entry(number).or_default().faults = faults;
    }
    if world.random.percent(10) {
        world.broken = Some(world.random.below(definition.steps().len() as u64) as usize);
    }
    let begun = machine::start(&definition, start, 7, 1000);
    world.keep(begun);
    world.run();
    let mut orders = 0;
    while world.status() == Status::Stuck {
        orders += 1;
        assert!(orders < 100, "an operator can't help it");
        world.broken = None;
        let retry = Order::Retry { step: None };
        if world.random.percent(50) {
            world.wish(retry);
        } else {
            world.order(retry);
        }
        world.run();
    }
    world.check();
}

#[test]
fn machine_random_interleavings_end_whole_or_undone() {
    let given = std::env::var("QUORATE_TEST_SEED").ok();
    let given: Option<u64> = given.and_then(|text| text.parse().ok());
    let seeds = given.map_or(0..100_000, |seed| seed..seed + 1);
    for seed in seeds {
        let ended = std::panic::catch_unwind(|| case(seed));
        assert!(
            ended.is_ok(),
            "failed: run again with QUORATE_TEST_SEED={seed}"
        );
    }
}
