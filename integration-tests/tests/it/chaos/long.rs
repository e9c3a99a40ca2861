//! Every fault that one machine can make, again and again, under load: nothing that was acknowledged is lost, no
//! linearizable read is stale, and how long clients could not write is told.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use super::disks::is_passing_amid_full_disks;
use super::faults::{Fault, World};
use super::probes::Probes;
use crate::checker::check;
use crate::history::Recorder;
use crate::support::{Random, Share, Writers, hashed};

/// Tasks that write without pause.
const WRITERS: u64 = 2;
/// Operations of the recorded history between two faults.
const BETWEEN: u64 = 200;

/// What was found.
#[derive(Default)]
struct Figures {
    /// How long clients could not write, by fault.
    gaps: BTreeMap<Fault, Vec<Duration>>,
    /// Operations of the recorded history, all checked.
    operations: usize,
    /// Acknowledged writes that were read back at the end.
    acknowledged: u64,
}

impl Figures {
    fn page(&self) -> String {
        let mut page = String::from(
            "| fault | events | nobody could write for: P50, ms | P99, ms | at most, ms |\n\
             |---|---:|---:|---:|---:|\n",
        );
        for (fault, gaps) in &self.gaps {
            let mut gaps = gaps.clone();
            gaps.sort_unstable();
            let at = |part: usize| gaps[(gaps.len() * part).div_ceil(100) - 1].as_millis();
            let row = (fault.words(), gaps.len(), at(50), at(99), at(100));
            let (what, events, p50, p99, max) = row;
            writeln!(page, "| {what} | {events} | {p50} | {p99} | {max} |").expect("a string");
        }
        let events: usize = self.gaps.values().map(Vec::len).sum();
        writeln!(
            page,
            "\n{events} faults; {} operations in histories that are linearizable: no stale read; {} acknowledged \
             writes read back: none lost; the replicas are equal.",
            self.operations, self.acknowledged
        )
        .expect("a string");
        page
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_of_every_kind_under_load_loses_nothing_and_reads_nothing_stale() {
    let seconds = std::env::var("QUORATE_CHAOS_SECONDS").ok();
    let seconds = seconds.map_or(0, |text| text.parse().expect("a number of seconds"));
    let end = Instant::now() + Duration::from_secs(seconds);
    let _share = Share::of(3).await;
    let mut random = Random::seeded();
    let mut world = World::new(random.fork()).await;
    let client = world.cluster.client().await;
    let kv = world
        .cluster
        .namespace(&client, &hashed("registers", 4, 3))
        .await;
    let recorder = Recorder::start(&world.cluster, "registers", &mut random).await;
    let writers = Writers::start_amid(&kv, WRITERS, is_passing_amid_full_disks);
    let probes = Probes::start(&kv);
    let mut figures = Figures::default();
    // Each at least once.
    loop {
        let mut round = Fault::ALL.to_vec();
        while !round.is_empty() {
            let fault = round.swap_remove(random.below(round.len() as u64) as usize);
            recorder.progress(BETWEEN).await;
            let from = world.strike(fault).await;
            world.cluster.healthy().await;
            recorder.progress(BETWEEN).await;
            let gap = probes.longest_gap(from, Instant::now());
            println!("{}: {} ms", fault.words(), gap.as_millis());
            figures.gaps.entry(fault).or_default().push(gap);
            recorder.next_generation();
        }
        if Instant::now() > end {
            break;
        }
    }
    drop(probes);
    figures.acknowledged = writers.stop_and_verify().await;
    let history = recorder.stop().await;
    figures.operations = history.len();
    assert_eq!(check(&history), Ok(()));
    world.cluster.assert_replicas_agree(&client).await;
    for node in &world.cluster.nodes {
        let log = node.log();
        assert!(!log.contains("panicked"), "{log}");
    }
    let page = figures.page();
    println!("{page}");
    if let Some(path) = std::env::var_os("QUORATE_CHAOS_PAGE") {
        std::fs::write(path, page).expect("the page can be written");
    }
}
