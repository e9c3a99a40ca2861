//! Power cuts at every disk operation of a scripted life of the log. The oracle is the list of steps
//! done: what is read back must be the state after some of the first of them, no fewer than were
//! acknowledged.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use quorate_env::Random;
use quorate_env::sim::Sim;

use super::{entry, id, vote};
use crate::log::record::Of;
use crate::log::replica::Replica;
use crate::log::{BROKEN, Break, SharedLog};
use crate::raft::{LogId, Vote};

const SEGMENT: u64 = 8 << 10;

/// What the oracle knows of one replica.
#[derive(Debug, Clone, Default, PartialEq)]
struct Known {
    vote: Option<Vote>,
    purged: Option<LogId>,
    ids: Vec<LogId>,
}

type Model = BTreeMap<u64, Known>;

#[derive(Debug, Clone)]
enum Step {
    Append {
        group: u64,
        ids: Vec<LogId>,
        size: usize,
    },
    Vote {
        group: u64,
        vote: Vote,
    },
    Truncate {
        group: u64,
        after: LogId,
    },
    Purge {
        group: u64,
        upto: LogId,
    },
    Release,
}

fn follow(model: &mut Model, step: &Step) {
    match step {
        Step::Append { group, ids, .. } => model.entry(*group).or_default().ids.extend(ids),
        Step::Vote { group, vote } => model.entry(*group).or_default().vote = Some(*vote),
        Step::Truncate { group, after } => {
            model
                .entry(*group)
                .or_default()
                .ids
                .retain(|id| id.index <= after.index);
        }
        Step::Purge { group, upto } => {
            let known = model.entry(*group).or_default();
            known.ids.retain(|id| id.index > upto.index);
            known.purged = Some(*upto);
        }
        Step::Release => {}
    }
}

/// A life of three groups: mostly appends, with all else in between.
fn script(seed: u64, steps: usize) -> Vec<Step> {
    let random = Random::from_seed(seed);
    let mut model = Model::new();
    let mut term = 1;
    let mut script = Vec::new();
    for _ in 0..steps {
        let group = 1 + random.below(3);
        let known = model.entry(group).or_default().clone();
        let last = known.ids.last().copied().or(known.purged);
        let step = match (random.below(12), last) {
            (0, _) => {
                term += 1;
                Step::Vote {
                    group,
                    vote: vote(term),
                }
            }
            (1, Some(_)) if known.ids.len() > 2 => {
                let at = known.ids.len() - 1 - random.below(known.ids.len() as u64 / 2) as usize;
                Step::Truncate {
                    group,
                    after: known.ids[at - 1],
                }
            }
            (2 | 3, Some(_)) if known.ids.len() > 2 => {
                let at = random.below(known.ids.len() as u64 - 1) as usize;
                Step::Purge {
                    group,
                    upto: known.ids[at],
                }
            }
            (4, _) => Step::Release,
            _ => {
                let first = last.map_or(0, |id| id.index + 1);
                let count = 1 + random.below(4);
                let ids = (first..first + count)
                    .map(|index| id(term, index))
                    .collect();
                Step::Append {
                    group,
                    ids,
                    size: random.below(400) as usize,
                }
            }
        };
        follow(&mut model, &step);
        script.push(step);
    }
    script
}

/// Does the steps; returns how many of the first are acknowledged as durable. A step fails when the
/// power is gone, and all later ones with it.
fn live(sim: &Sim, script: &[Step]) -> usize {
    let acknowledged = Arc::new(Mutex::new(0));
    let Ok(log) = SharedLog::open(&sim.env(), Path::new("/log"), SEGMENT, 2000) else {
        return 0;
    };
    for (n, step) in script.iter().enumerate() {
        let told = Arc::clone(&acknowledged);
        let done = Box::new(move |result: quorate_log::Result<()>| {
            if result.is_ok() {
                *told.lock() = n + 1;
            }
        });
        let replica = |group: u64| -> Arc<Replica> {
            let mut replicas = log.inner.replicas.lock();
            let of = Of {
                group,
                replica: group * 10,
            };
            Arc::clone(
                replicas
                    .entry(group)
                    .or_insert_with(|| Arc::new(Replica::new(of))),
            )
        };
        let result = match step {
            Step::Append { group, ids, size } => {
                let entries = ids
                    .iter()
                    .map(|id| entry(id.leader_id.term, id.index, *size))
                    .collect();
                log.append(&replica(*group), entries, done)
            }
            Step::Vote { group, vote } => log.save_vote(&replica(*group), vote, done),
            Step::Truncate { group, after } => log.truncate(&replica(*group), Some(*after)),
            Step::Purge { group, upto } => log.purge(&replica(*group), *upto),
            Step::Release => log.release_segments().map(|_| ()),
        };
        if result.is_err() {
            break;
        }
        // Sometimes several steps share a sync.
        if n % 3 != 0 {
            sim.jobs.pump_all();
        }
    }
    sim.jobs.pump_all();
    *acknowledged.lock()
}

/// What is read back, payloads checked.
fn recovered(sim: &Sim) -> Result<Model, String> {
    let log = SharedLog::open(&sim.env(), Path::new("/log"), SEGMENT, 2000)
        .map_err(|error| format!("does not open: {error}"))?;
    let mut model = Model::new();
    let replicas: Vec<_> = log.inner.replicas.lock().values().cloned().collect();
    for replica in replicas {
        let found = SharedLog::collect(&replica, 0..u64::MAX, usize::MAX);
        let entries = log
            .load(replica.of, found)
            .map_err(|error| format!("does not read: {error}"))?;
        for found in &entries {
            let crate::raft::EntryPayload::Normal(payload) = &found.payload else {
                return Err("another kind of entry".into());
            };
            let (term, index) = (found.log_id.leader_id.term, found.log_id.index);
            if *found != entry(term, index, payload.0.len()) {
                return Err(format!("entry {index} says something else"));
            }
        }
        let state = replica.state.lock();
        let ids = entries.iter().map(|entry| entry.log_id).collect();
        model.insert(
            replica.of.group,
            Known {
                vote: state.vote,
                purged: state.purged,
                ids,
            },
        );
    }
    model.retain(|_, known| *known != Known::default());
    Ok(model)
}

/// Whether what was read back is the state after at least the acknowledged steps.
fn check(script: &[Step], acknowledged: usize, found: &Model) -> Result<(), String> {
    let mut model = Model::new();
    for (n, step) in script.iter().enumerate() {
        if n >= acknowledged && model == *found {
            return Ok(());
        }
        follow(&mut model, step);
        model.retain(|_, known| *known != Known::default());
    }
    if model == *found {
        return Ok(());
    }
    Err(format!(
        "no prefix past the {acknowledged} acknowledged steps looks like it: {found:?}"
    ))
}

/// Crashes at every operation of one script; what fails.
fn crash_everywhere(seed: u64) -> Result<u64, String> {
    let script = script(seed, 120);
    let whole = Sim::new(seed);
    live(&whole, &script);
    let operations = whole.disk.operations();
    for at in 1..=operations {
        let sim = Sim::new(seed ^ at);
        sim.disk.crash_at(at);
        let acknowledged = live(&sim, &script);
        let after = sim.crash();
        let found = recovered(&after).map_err(|e| format!("seed {seed}, operation {at}: {e}"))?;
        let checked = check(&script, acknowledged, &found);
        checked.map_err(|e| format!("seed {seed}, operation {at}: {e}"))?;
        // Once more: to open it again changes nothing.
        let again = recovered(&after.crash());
        if again.as_ref() != Ok(&found) {
            return Err(format!(
                "seed {seed}, operation {at}: reopened as {again:?}"
            ));
        }
    }
    Ok(operations)
}

#[test]
fn crash_at_every_operation_leaves_a_prefix_with_everything_acknowledged() {
    for seed in 1..=3 {
        match crash_everywhere(seed) {
            Ok(operations) => assert!(operations > 50, "only {operations} crashes were tried"),
            Err(what) => panic!("{what}"),
        }
    }
}

#[test]
fn crash_check_fails_when_an_acknowledged_step_is_missing() {
    let script = script(1, 40);
    let mut model = Model::new();
    script.iter().for_each(|step| follow(&mut model, step));
    assert!(check(&script, 40, &model).is_ok());
    let group = *model.keys().next().expect("a group");
    model.get_mut(&group).expect("a group").ids.pop();
    assert!(check(&script, 40, &model).is_err());
}

#[test]
fn crash_check_notices_votes_that_are_not_synced_and_state_that_is_left_out() {
    for what in [Break::VoteUnsynced, Break::StateLeftOut] {
        BROKEN.set(Some(what));
        let caught = (1..=3).any(|seed| crash_everywhere(seed).is_err());
        BROKEN.set(None);
        assert!(caught, "the check has no teeth against {what:?}");
    }
}
