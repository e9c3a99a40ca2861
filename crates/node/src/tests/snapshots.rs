//! Snapshots between machines: what is installed is what was sent, whenever the power goes.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_env::sim::Sim;
use quorate_env::{Disk, Random};
use quorate_replication::{Applied, SnapshotSink, StateMachine};
use quorate_sharding::NamespaceKind;

use crate::hash::NoHash;

use super::harness::{Rig, SPOOL, crash, crash_kind, hash_of};
use super::script::{KINDS, ORDERED, Script, shard};

/// What a snapshot is: its chunks and its position.
struct Sent {
    chunks: Vec<Bytes>,
    applied: Applied,
}

fn send(rig: &Rig) -> Sent {
    let mut source = rig.state_machine().snapshot().expect("a snapshot");
    let mut chunks = Vec::new();
    while let Some(chunk) = source.next_chunk(300).expect("a chunk") {
        chunks.push(chunk);
    }
    let applied = source.applied().clone();
    Sent { chunks, applied }
}

fn receive(rig: &Rig, sent: &Sent) -> io::Result<Box<dyn SnapshotSink>> {
    let mut sink = rig.state_machine().receive()?;
    for chunk in &sent.chunks {
        sink.write(chunk.clone())?;
    }
    Ok(sink)
}

fn install(rig: &Rig, sent: &Sent) -> io::Result<()> {
    receive(rig, sent)?.install(&sent.applied)
}

/// A machine with the first `applied` commands of a script, most of them flushed.
fn machine_at(sim: &Sim, script: &Script, applied: usize) -> Rig {
    let rig = Rig::open(sim, script.kind).expect("opens");
    let random = Random::from_seed(3);
    let flushed = applied.saturating_sub(5);
    let play = |from, to| rig.play(script, from, to, &random).expect("applies");
    play(0, flushed);
    rig.engine.flush().expect("flushes");
    play(flushed, applied);
    rig
}

fn spooled(sim: &Sim) -> Vec<String> {
    sim.disk.list(Path::new(SPOOL)).unwrap_or_default()
}

const OLD: usize = 40;
const SENT: usize = 90;
const ALL: usize = 110;

fn script(seed: u64, kind: NamespaceKind) -> Script {
    Script::random(seed, kind, ALL as u64, 400)
}

#[test]
fn snapshot_installed_over_any_older_state_gives_the_sent_one() {
    for kind in KINDS {
        for seed in 1..=4 {
            let script = script(seed, kind);
            let sent = send(&machine_at(&Sim::new(seed), &script, SENT));
            for old in [0, 1, OLD, SENT - 1] {
                let at = format!("{kind:?}, seed {seed}, over {old}");
                let rig = machine_at(&Sim::new(seed + 100), &script, old);
                install(&rig, &sent).expect("installs");
                assert_eq!(rig.applied(), SENT, "{at}");
                rig.check(&script).unwrap_or_else(|e| panic!("{at}: {e}"));
                assert_eq!(rig.state_machine().flushed(), Some(SENT as u64 - 1));
                assert!(!rig.machine.is_installing());
                assert!(spooled(&rig.sim).is_empty(), "{at}");
                let random = Random::from_seed(seed);
                rig.play(&script, SENT, ALL, &random).expect("applies");
                assert_eq!(rig.hash(), hash_of(&script, seed), "{at}");
            }
        }
    }
}

#[test]
fn snapshot_installed_ends_the_wait_for_a_hash_that_it_skips() {
    let script = script(3, ORDERED);
    let sent = send(&machine_at(&Sim::new(3), &script, SENT));
    let over = machine_at(&Sim::new(4), &script, OLD);
    let hashes = Arc::clone(&over.machine.hashes);
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_time().build().expect("a runtime");
    let at = OLD as u64 + 5;
    let found = runtime.block_on(async {
        let wait = tokio::spawn(async move { hashes.wait(at, Duration::from_secs(600)).await });
        tokio::task::yield_now().await;
        assert!(!wait.is_finished(), "the entry may come yet");
        install(&over, &sent).expect("installs");
        wait.await.expect("it waits for nothing else")
    });
    assert_eq!(found, Err(NoHash::Skipped));
}

#[test]
fn snapshot_of_an_empty_shard_removes_what_is_there() {
    let rig = Rig::new(1, ORDERED);
    assert!(super::applying::put_all(&rig, 5_000, &[]).is_empty());
    let mut sent = send(&rig);
    assert_eq!(sent.chunks.len(), 1, "a head and nothing else");
    let script = script(1, ORDERED);
    let over = machine_at(&Sim::new(2), &script, OLD);
    sent.applied.entry = script.expected[SENT].position.entry;
    install(&over, &sent).expect("installs");
    assert!(over.data().is_empty());
}

#[test]
fn snapshot_leaves_the_neighbours_of_its_range_alone() {
    let script = script(2, ORDERED);
    let sim = Sim::new(1);
    let rig = machine_at(&sim, &script, OLD);
    let mut below = shard(ORDERED);
    below.id += 1;
    below.end = std::mem::take(&mut below.start);
    let spool_dir = Path::new(SPOOL).to_owned();
    let open = crate::machine::ShardMachine::open;
    let engine = std::sync::Arc::clone(&rig.engine);
    let machine = open(sim.env(), engine, spool_dir, (below, 21), ORDERED).expect("opens");
    let neighbour = Rig {
        machine,
        engine: std::sync::Arc::clone(&rig.engine),
        sim: sim.clone(),
    };
    super::applying::put_all(&neighbour, 7, &[("a", 4), ("ab", 4)]);
    let before = neighbour.data();
    assert_eq!(before.len(), 2);
    install(&rig, &send(&machine_at(&Sim::new(5), &script, SENT))).expect("installs");
    assert_eq!(neighbour.data(), before);
    rig.check(&script).expect("the sent state");
}

#[test]
fn snapshot_sink_dropped_leaves_nothing_behind() {
    let script = script(1, ORDERED);
    let rig = machine_at(&Sim::new(1), &script, OLD);
    let sent = send(&machine_at(&Sim::new(2), &script, SENT));
    drop(receive(&rig, &sent).expect("receives"));
    assert!(spooled(&rig.sim).is_empty());
    rig.check(&script).expect("the old state");
}

/// Looks at what a crash during receive or install left.
fn check(up: &Sim, script: &Script) -> Result<bool, String> {
    let rig = Rig::open(up, script.kind)?;
    let applied = rig.applied();
    if applied != SENT && applied > OLD {
        return Err(format!("{applied} commands are in"));
    }
    rig.check(script)?;
    if let left @ [_, ..] = &spooled(up)[..] {
        return Err(format!("left over: {left:?}"));
    }
    rig.play(script, applied, ALL, &Random::from_seed(1))?;
    rig.check(script)?;
    match rig.hash() == hash_of(script, 1) {
        true => Ok(applied == SENT),
        false => Err("replay leads to another state".into()),
    }
}

#[test]
fn snapshot_crash_at_every_operation_leaves_the_old_state_or_the_new() {
    for kind in KINDS {
        let script = script(4, kind);
        let sent = send(&machine_at(&Sim::new(1), &script, SENT));
        let (mut old, mut new) = (0, 0);
        let mut n = 0;
        // To the last operation, past the end of the installation.
        while new < 12 {
            let sim = Sim::new(7);
            let rig = machine_at(&sim, &script, OLD);
            sim.disk.crash_at(sim.disk.operations() + n);
            let installed = install(&rig, &sent).is_ok();
            let mut up = crash(&sim, crash_kind(n));
            if n % 2 == 1 {
                // Once more, while what was left is removed.
                up.disk.crash_at(n / 2 % 23);
                drop(Rig::open(&up, kind));
                up = crash(&up, crash_kind(n / 2));
            }
            let found = check(&up, &script);
            let is_new = found.unwrap_or_else(|e| panic!("{kind:?}, crash at {n}: {e}"));
            assert!(is_new || !installed, "{kind:?}, crash at {n}: it was lost");
            old += u64::from(!is_new);
            new += u64::from(is_new);
            n += 1;
        }
        println!("{kind:?}: {old} times the old state, {new} times the new");
        assert!(old > 20, "the old state only {old} times");
    }
}

#[test]
fn snapshot_chunks_out_of_place_or_of_another_shard_are_refused() {
    let script = script(1, ORDERED);
    let rig = machine_at(&Sim::new(1), &script, OLD);
    let sent = send(&machine_at(&Sim::new(2), &script, SENT));
    let mut sink = rig.state_machine().receive().expect("a sink");
    assert!(sink.write(sent.chunks[1].clone()).is_err(), "no head yet");
    assert!(sink.write(Bytes::new()).is_err());
    assert!(sink.write(Bytes::from_static(b"\x03last")).is_err());
    assert!(sink.install(&sent.applied).is_err(), "nothing came");

    let mut sink = receive(&rig, &sent).expect("receives");
    assert!(sink.write(sent.chunks[0].clone()).is_err(), "a second head");
    let cut = sent.chunks[1].slice(..sent.chunks[1].len() - 1);
    assert!(sink.write(cut).is_err(), "a chunk that ends early");
    drop(sink);

    let mut other = shard(ORDERED);
    other.id += 5;
    let other = Rig::open_shard(&Sim::new(3), other, ORDERED).expect("opens");
    assert!(receive(&other, &sent).is_err(), "of another shard");
    assert!(spooled(&rig.sim).is_empty());
    rig.check(&script).expect("the old state");
}
