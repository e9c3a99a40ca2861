//! `outbox lag`: how far relays are behind, and what is set aside.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use quorate_outbox::inbox::{Ledger, MySqlInbox, PgInbox, SqliteInbox};
use quorate_outbox::store::{Lag, Threshold};
use quorate_outbox::{Error, ErrorKind};
use serde_json::json;

use super::open_in;
use crate::args::{LagArgs, Output};
use crate::commands::BAD_NEWS;
use crate::commands::database::Database;
use crate::commands::output::table;

/// A database may have an outbox, an inbox, or both.
pub(super) async fn lag(args: &LagArgs) -> Result<ExitCode> {
    let database = Database::connect(&args.database.database).await?;
    let outbox = match known(open_in(&database).await)? {
        Some(store) => Some(store.lag().await?),
        None => None,
    };
    let consumers = match &database {
        Database::Postgres(pool) => count(known(PgInbox::open(pool.clone()).await)?).await?,
        Database::MySql(pool) => count(known(MySqlInbox::open(pool.clone()).await)?).await?,
        Database::Sqlite(pool) => count(known(SqliteInbox::open(pool.clone()).await)?).await?,
    };
    if outbox.is_none() && consumers.is_none() {
        bail!("this database has no tables of an outbox or an inbox");
    }
    let consumers = consumers.unwrap_or_default();
    match args.database.output {
        Output::Json => println!("{}", as_json(outbox.as_ref(), &consumers)),
        Output::Text => print(outbox.as_ref(), &consumers),
    }
    let threshold = Threshold {
        waiting: args.waiting_max,
        oldest: Duration::from_secs(args.oldest_max),
    };
    let alarm = outbox.and_then(|lag| lag.alarm(&threshold));
    let dead: i64 = consumers.iter().map(|(_, aside)| aside).sum();
    if let (Some(alarm), Output::Text) = (&alarm, args.database.output) {
        println!("alarm: {alarm}");
    }
    Ok(match alarm.is_some() || dead > 0 {
        true => ExitCode::from(BAD_NEWS),
        false => ExitCode::SUCCESS,
    })
}

/// `None` where there are no tables.
fn known<T>(opened: quorate_outbox::Result<T>) -> Result<Option<T>, Error> {
    match opened {
        Ok(opened) => Ok(Some(opened)),
        Err(error) if error.kind() == ErrorKind::Missing => Ok(None),
        Err(error) => Err(error),
    }
}

/// How much each consumer has set aside.
async fn count<L: Ledger>(inbox: Option<L>) -> Result<Option<Vec<(String, i64)>>> {
    let Some(inbox) = inbox else {
        return Ok(None);
    };
    let mut counts = Vec::new();
    for consumer in inbox.consumers().await? {
        let aside = inbox.count(&consumer).await?;
        counts.push((consumer, aside));
    }
    Ok(Some(counts))
}

fn print(outbox: Option<&Lag>, consumers: &[(String, i64)]) {
    if let Some(lag) = outbox {
        let seconds = lag.oldest_ms as f64 / 1000.0;
        println!("waiting to be published: {}", lag.waiting);
        println!("the oldest waits for: {seconds:.1} s");
        println!("set aside by relays: {}", lag.parked);
    }
    let rows: Vec<_> = consumers
        .iter()
        .map(|(name, aside)| vec![name.clone(), aside.to_string()])
        .collect();
    if !rows.is_empty() {
        table(&["CONSUMER", "SET ASIDE"], &rows);
    }
}

fn as_json(outbox: Option<&Lag>, consumers: &[(String, i64)]) -> serde_json::Value {
    let outbox = outbox.map(
        |lag| json!({ "waiting": lag.waiting, "oldest_ms": lag.oldest_ms, "parked": lag.parked }),
    );
    let consumers: Vec<_> = consumers
        .iter()
        .map(|(name, aside)| json!({ "consumer": name, "set_aside": aside }))
        .collect();
    json!({ "outbox": outbox, "consumers": consumers })
}
