//! What a group costs: memory and CPU when nothing happens, and how long all of them take to be led again.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use quorate_client::{Client, ClientOptions};
use quorate_sharding::Role;
use tokio::time::Instant;

use crate::processes::Processes;

/// How long all groups may take to be led.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// CPU is taken over so long.
const IDLE: Duration = Duration::from_secs(15);
/// After so long idle groups are at rest.
const REST: Duration = Duration::from_secs(12);
const NODES: f64 = 3.0;

/// What was measured, by name, of one node where it is not said otherwise.
pub type Found = Vec<(&'static str, f64)>;

/// Three nodes with so many groups that nobody uses.
pub async fn cost(binary: &Path, groups: u32, settings: &str) -> Result<Found> {
    let (small, _) = idle(binary, 1, settings, false).await?;
    let (large, mut found) = idle(binary, groups, settings, true).await?;
    let more = f64::from(groups.max(2) - 1) * NODES;
    let bytes = large.memory_bytes as f64 - small.memory_bytes as f64;
    found.push(("memory_a_replica_kb", bytes / more / 1e3));
    found.push(("memory_mb", large.memory_bytes as f64 / NODES / 1e6));
    Ok(found)
}

async fn idle(
    binary: &Path,
    groups: u32,
    settings: &str,
    measured: bool,
) -> Result<(crate::processes::Usage, Found)> {
    let dir = tempfile::tempdir()?;
    let mut processes = Processes::quorate(binary, dir.path(), groups, settings)?;
    let client = Client::connect(&processes.endpoints, ClientOptions::default()).await?;
    let mut found = Found::new();
    found.push((
        "led_after_creation_ms",
        all_lead(&client, groups, &[0, 1, 2], &processes).await?,
    ));
    tokio::time::sleep(REST).await;
    if !measured {
        return Ok((processes.usage()?, found));
    }
    let before = processes.usage()?;
    let began = Instant::now();
    tokio::time::sleep(IDLE).await;
    let after = processes.usage()?;
    let used = (after.cpu_seconds - before.cpu_seconds) / began.elapsed().as_secs_f64();
    found.push(("idle_cpu_percent_of_a_core", used / NODES * 100.0));
    processes.kill(2)?;
    let led = all_lead(&client, groups, &[0, 1], &processes).await?;
    found.push(("led_after_kill_of_one_ms", led));
    for place in 0..2 {
        processes.kill(place)?;
    }
    for place in 0..3 {
        processes.start_again(place)?;
    }
    let led = all_lead(&client, groups, &[0, 1, 2], &processes).await?;
    found.push(("led_after_restart_of_all_ms", led));
    Ok((after, found))
}

/// How long it takes until each group has a leader among these nodes, in milliseconds.
async fn all_lead(
    client: &Client,
    groups: u32,
    among: &[usize],
    processes: &Processes,
) -> Result<f64> {
    let began = Instant::now();
    let nodes: Vec<&String> = among.iter().map(|n| &processes.endpoints[*n]).collect();
    loop {
        let mut led = BTreeSet::new();
        let mut answers = 0;
        for (node, status) in client.status().await {
            let Some(status) = status.ok().filter(|_| nodes.contains(&&node.address)) else {
                continue;
            };
            answers += 1;
            let leads = status.groups.iter().filter(|g| g.role == Role::Leader);
            led.extend(leads.map(|g| g.group));
        }
        // The coordinator's group is one more.
        if answers == nodes.len() && led.len() as u32 > groups {
            return Ok(began.elapsed().as_secs_f64() * 1e3);
        }
        ensure!(
            began.elapsed() < PATIENCE,
            "{} of {groups} groups are led after {PATIENCE:?}",
            led.len()
        );
        tokio::time::sleep(LOOK).await;
    }
}
