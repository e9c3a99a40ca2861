//! `outbox`: what relays and consumers of a service have set aside, and how far they are behind.

mod dlq;
mod lag;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use quorate_outbox::mysql::MySqlOutbox;
use quorate_outbox::postgres::PgOutbox;
use quorate_outbox::sqlite::SqliteOutbox;
use quorate_outbox::store::{Parked, Store, Which, Wish};
use serde_json::{Map, Value, json};

use super::BAD_NEWS;
use super::database::Database;
use super::output::{printable, put_bytes, table};
use crate::args::{
    ChoiceArgs, DatabaseArgs, ListArgs, OutboxArgs, OutboxCommand, Output, ShowArgs,
};

/// `quorate outbox`.
///
/// # Errors
/// When the database does not answer, or has no such tables.
pub async fn outbox(args: OutboxArgs) -> Result<ExitCode> {
    match args.command {
        OutboxCommand::Lag(args) => lag::lag(&args).await,
        OutboxCommand::List(args) => list(&args).await,
        OutboxCommand::Show(args) => show(&args).await,
        OutboxCommand::Retry(args) => wish(&args, Wish::Retry).await,
        OutboxCommand::Skip(args) => wish(&args, Wish::Skip).await,
        OutboxCommand::Drop(args) => wish(&args, Wish::Drop).await,
        OutboxCommand::Dlq(args) => dlq::dlq(args).await,
    }
}

async fn open(args: &DatabaseArgs) -> Result<Arc<dyn Store>> {
    open_in(&Database::connect(&args.database).await?)
        .await
        .context("the outbox")
}

async fn open_in(database: &Database) -> quorate_outbox::Result<Arc<dyn Store>> {
    Ok(match database {
        Database::Postgres(pool) => Arc::new(PgOutbox::open(pool.clone()).await?),
        Database::MySql(pool) => Arc::new(MySqlOutbox::open(pool.clone()).await?),
        Database::Sqlite(pool) => Arc::new(SqliteOutbox::open(pool.clone()).await?),
    })
}

async fn list(args: &ListArgs) -> Result<ExitCode> {
    let store = open(&args.database).await?;
    let which = args.filter.which();
    let found = store.parked(which.as_ref(), args.filter.limit).await?;
    match args.database.output {
        Output::Json => found
            .iter()
            .for_each(|one| println!("{}", Value::Object(parked_json(one)))),
        Output::Text => {
            let rows: Vec<_> = found.iter().map(parked_row).collect();
            print_rows("PART", &rows);
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(args: &ShowArgs) -> Result<ExitCode> {
    let store = open(&args.database).await?;
    let found = store.parked(Some(&Which::Message(args.id)), 1).await?;
    let Some(one) = found.first() else {
        bail!("no relay has set aside a message {}", args.id);
    };
    let mut shown = parked_json(one);
    add_content(&mut shown, &one.row.headers, &one.row.payload);
    print_one(args.database.output, &shown);
    Ok(ExitCode::SUCCESS)
}

async fn wish(args: &ChoiceArgs, wish: Wish) -> Result<ExitCode> {
    let which = args.select.which()?;
    let store = open(&args.database).await?;
    Ok(noted(store.wish(&which, wish).await?, wish))
}

/// Says how many messages an order is about.
fn noted(count: u64, wish: Wish) -> ExitCode {
    if count == 0 {
        println!("nothing like that is set aside");
        return ExitCode::from(BAD_NEWS);
    }
    println!("to {}: {count}", word(wish));
    ExitCode::SUCCESS
}

fn word(wish: Wish) -> &'static str {
    match wish {
        Wish::None => "none",
        Wish::Retry => "retry",
        Wish::Skip => "skip",
        Wish::Drop => "drop",
    }
}

/// A table of what is set aside; `at` is where.
fn print_rows(at: &str, rows: &[Vec<String>]) {
    if rows.is_empty() {
        println!("nothing is set aside");
        return;
    }
    let head = [
        at, "ID", "TOPIC", "KEY", "SEQ", "STATE", "TRIES", "ORDER", "REASON",
    ];
    table(&head, rows);
}

fn parked_row(parked: &Parked) -> Vec<String> {
    let row = &parked.row;
    vec![
        parked.part.to_string(),
        row.message_id.to_string(),
        printable(row.topic.as_bytes()),
        of_key(row.key.as_deref()),
        row.seq.map_or_else(|| "-".into(), |seq| seq.to_string()),
        match &row.damage {
            Some(_) => "damaged".into(),
            None => "parked".into(),
        },
        parked.attempts.to_string(),
        word(parked.wish).into(),
        printable(parked.reason.as_bytes()),
    ]
}

fn of_key(key: Option<&str>) -> String {
    key.map_or_else(|| "-".into(), |key| printable(key.as_bytes()))
}

fn parked_json(parked: &Parked) -> Map<String, Value> {
    let row = &parked.row;
    object(json!({
        "part": parked.part,
        "place": row.id,
        "id": row.message_id.to_string(),
        "topic": row.topic,
        "key": row.key,
        "seq": row.seq,
        "created_ms": row.created_ms,
        "damage": row.damage,
        "attempts": parked.attempts,
        "order": word(parked.wish),
        "reason": parked.reason,
    }))
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

/// What a message says, beside what is said of it.
fn add_content(shown: &mut Map<String, Value>, headers: &[(String, String)], payload: &[u8]) {
    let pairs = headers.iter().map(|(name, value)| json!([name, value]));
    shown.insert("headers".into(), pairs.collect::<Vec<_>>().into());
    put_bytes(shown, "payload", payload);
}

/// One message, whole.
fn print_one(output: Output, shown: &Map<String, Value>) {
    match output {
        Output::Json => println!("{}", Value::Object(shown.clone())),
        Output::Text => {
            for (name, value) in shown {
                match value {
                    Value::String(text) => println!("{name}: {}", printable(text.as_bytes())),
                    Value::Null => {}
                    other => println!("{name}: {other}"),
                }
            }
        }
    }
}
