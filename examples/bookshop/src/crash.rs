//! The shop as a process that is killed again and again.

use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use crate::Settings;
use crate::books::{self, Books, Databases};
use crate::catalogue::scatter;
use crate::database::Database;

/// How long a life lasts, in milliseconds. All orders take longer, so that there is always a first kill.
const LIFE_MS: std::ops::Range<u64> = 100..1200;

/// Kills the shop by SIGKILL so many times, at random moments, and lets it run to its end then.
pub async fn again_and_again<D: Database>(
    settings: &Settings,
    times: u32,
    seed: Option<u64>,
) -> Result<()> {
    let seed = seed.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(0, |now| u64::from(now.subsec_nanos()))
    });
    println!("seed {seed}");
    for life in 0..times {
        let length = LIFE_MS.end - LIFE_MS.start;
        let moment = LIFE_MS.start + scatter(seed ^ (u64::from(life) << 32)) % length;
        let mut child = shop(settings)?;
        let ended = tokio::time::timeout(Duration::from_millis(moment), child.wait()).await;
        if let Ok(status) = ended {
            let status = status?;
            if !status.success() {
                bail!("the shop ended with {status}");
            }
            println!("life {}: it came to its end", life + 1);
            break;
        }
        // SIGKILL: nothing is tidied up.
        child.kill().await.context("the shop can't be killed")?;
        let sagas = Books::read(&Databases::<D>::open(settings).await?)
            .await?
            .sagas;
        let ended = sagas.values().filter(|(status, _)| status.is_end()).count();
        let (life, begun) = (life + 1, sagas.len());
        println!(
            "life {life}: killed after {moment} ms; {begun} orders begun, {ended} at their end"
        );
    }
    let status = shop(settings)?.wait().await?;
    if !status.success() {
        bail!("the last life ended with {status}");
    }
    books::balanced(
        &Books::read(&Databases::<D>::open(settings).await?).await?,
        settings.orders,
    )
}

/// The shop as a child; it dies with this process's handle.
fn shop(settings: &Settings) -> Result<tokio::process::Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(settings.words());
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.kill_on_drop(true);
    command.spawn().context("the shop does not start")
}
