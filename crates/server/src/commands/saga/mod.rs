//! `saga`: how the sagas of a service stand, and what an operator orders.

mod show;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use quorate_outbox::postgres::PgOutbox;
use quorate_outbox::sqlite::SqliteOutbox;
use quorate_saga::journal::{Count, Filter, Journal, PgJournal, Record, SqliteJournal};
use quorate_saga::machine::Dir;
use quorate_saga::ops::StuckStep;
use quorate_saga::{Operations, Order};
use serde_json::{Value, json};

use super::BAD_NEWS;
use super::database::Database;
use super::output::{printable, table};
use crate::args::{
    AuditArgs, DatabaseArgs, ListSagasArgs, ListStuckArgs, Output, SagaArgs, SagaCommand,
};

/// `quorate saga`.
///
/// # Errors
/// When the database does not answer, has no such tables, or an order can't be.
pub async fn saga(args: SagaArgs) -> Result<ExitCode> {
    match args.command {
        SagaCommand::Count(args) => count(&args).await,
        SagaCommand::List(args) => list(&args).await,
        SagaCommand::Stuck(args) => stuck(&args).await,
        SagaCommand::Show(args) => show::show(&args).await,
        SagaCommand::Retry(args) => order(&args.audit, Order::Retry { step: args.step }).await,
        SagaCommand::Skip(args) => order(&args.audit, Order::Skip { step: args.step }).await,
        SagaCommand::Force(args) => order(&args.audit, args.order()?).await,
        SagaCommand::Abort(args) => order(&args.audit, Order::Abort).await,
    }
}

async fn open(args: &DatabaseArgs) -> Result<Operations> {
    let journal: Arc<dyn Journal> = match Database::connect(&args.database).await? {
        Database::Postgres(pool) => {
            let outbox = PgOutbox::open(pool)
                .await
                .context("the outbox of the sagas")?;
            Arc::new(PgJournal::open(outbox).await.context("the sagas")?)
        }
        Database::MySql(_) => {
            bail!("sagas are in PostgreSQL or SQLite, not in MySQL: name another database");
        }
        Database::Sqlite(pool) => {
            let outbox = SqliteOutbox::open(pool)
                .await
                .context("the outbox of the sagas")?;
            Arc::new(SqliteJournal::open(outbox).await.context("the sagas")?)
        }
    };
    Ok(Operations::without_definitions(journal))
}

/// Prints rows under a head, or an object a line; `nothing` when there are none.
fn print(output: Output, head: &[&str], rows: &[(Vec<String>, Value)], nothing: &str) {
    match output {
        Output::Json => rows.iter().for_each(|(_, object)| println!("{object}")),
        Output::Text if rows.is_empty() => println!("{nothing}"),
        Output::Text => {
            let rows: Vec<_> = rows.iter().map(|(row, _)| row.clone()).collect();
            table(head, &rows);
        }
    }
}

async fn count(args: &DatabaseArgs) -> Result<ExitCode> {
    let counts = open(args).await?.count().await?;
    let rows: Vec<_> = counts.iter().map(counted).collect();
    let head = ["NAME", "VERSION", "STATUS", "SAGAS", "OLDEST"];
    print(args.output, &head, &rows, "there are no sagas");
    Ok(ExitCode::SUCCESS)
}

async fn list(args: &ListSagasArgs) -> Result<ExitCode> {
    let operations = open(&args.database).await?;
    let filter = Filter {
        status: args.status,
        name: args.name.clone(),
    };
    let found = operations.list(&filter, args.limit).await?;
    let rows: Vec<_> = found.iter().map(listed).collect();
    let head = ["ID", "NAME", "VERSION", "KEY", "STATUS", "BEGAN"];
    print(
        args.database.output,
        &head,
        &rows,
        "there are no such sagas",
    );
    Ok(ExitCode::SUCCESS)
}

async fn stuck(args: &ListStuckArgs) -> Result<ExitCode> {
    let found = open(&args.database).await?.stuck(args.limit).await?;
    let rows: Vec<_> = found.iter().map(stuck_row).collect();
    let head = ["ID", "NAME", "KEY", "BEGAN", "STEP", "WAY", "WHY"];
    print(args.database.output, &head, &rows, "nothing is stuck");
    Ok(match found.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(BAD_NEWS),
    })
}

async fn order(args: &AuditArgs, order: Order) -> Result<ExitCode> {
    let id = args.saga.id()?;
    let who = args.who();
    let operations = open(&args.database).await?;
    operations
        .wish(id, &who, &args.reason, order.clone())
        .await?;
    match args.database.output {
        Output::Json => {
            let noted = json!({ "id": id, "by": who, "reason": args.reason, "order": order });
            println!("{noted}");
        }
        Output::Text => println!(
            "noted for {id}: {}; `quorate saga show {id}` says what becomes of it",
            describe(&order)
        ),
    }
    Ok(ExitCode::SUCCESS)
}

/// An order in words.
fn describe(order: &Order) -> String {
    match order {
        Order::Retry { step: None } => "retry what is stuck".into(),
        Order::Retry { step: Some(step) } => format!("retry {}", printable(step.as_bytes())),
        Order::Skip { step } => format!("skip {}", printable(step.as_bytes())),
        Order::Force { step, outcome } => {
            let (step, outcome) = (printable(step.as_bytes()), show::outcome(outcome));
            format!("force {step} to be {outcome}")
        }
        Order::Abort => "abort".into(),
    }
}

fn way(dir: Dir) -> &'static str {
    match dir {
        Dir::Act => "action",
        Dir::Undo => "compensation",
    }
}

fn counted(count: &Count) -> (Vec<String>, Value) {
    let status = count.status.to_string();
    let object = json!({
        "name": count.name, "version": count.version, "status": status, "sagas": count.sagas,
        "oldest_ms": count.oldest_ms,
    });
    let row = vec![
        printable(count.name.as_bytes()),
        count.version.to_string(),
        status,
        count.sagas.to_string(),
        show::moment(count.oldest_ms),
    ];
    (row, object)
}

fn record_json(record: &Record) -> Value {
    json!({
        "id": record.id, "name": record.name, "version": record.version, "key": record.key,
        "status": record.status.to_string(), "events": record.seq, "started_ms": record.started_ms,
        "wake_ms": record.wake_ms,
    })
}

fn listed(record: &Record) -> (Vec<String>, Value) {
    let row = vec![
        record.id.to_string(),
        printable(record.name.as_bytes()),
        record.version.to_string(),
        printable(record.key.as_bytes()),
        record.status.to_string(),
        show::moment(record.started_ms),
    ];
    (row, record_json(record))
}

fn stuck_row(stuck: &StuckStep) -> (Vec<String>, Value) {
    let object = json!({
        "id": stuck.id, "name": stuck.name, "key": stuck.key, "started_ms": stuck.started_ms,
        "step": stuck.step, "way": way(stuck.dir), "why": stuck.why,
    });
    let row = vec![
        stuck.id.to_string(),
        printable(stuck.name.as_bytes()),
        printable(stuck.key.as_bytes()),
        show::moment(stuck.started_ms),
        printable(stuck.step.as_bytes()),
        way(stuck.dir).into(),
        printable(stuck.why.as_bytes()),
    ];
    (row, object)
}
