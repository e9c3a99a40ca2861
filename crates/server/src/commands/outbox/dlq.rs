//! `outbox dlq`: what consumers have set aside.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use quorate_outbox::inbox::{Ledger, MySqlInbox, PgInbox, SqliteInbox, State, Waiting};
use quorate_outbox::store::{Which, Wish};
use serde_json::{Map, Value, json};

use super::{add_content, noted, object, of_key, print_one, print_rows, word};
use crate::args::{DlqArgs, DlqChoiceArgs, DlqCommand, DlqListArgs, DlqShowArgs, Output};
use crate::commands::database::Database;
use crate::commands::output::printable;

pub(super) async fn dlq(args: DlqArgs) -> Result<ExitCode> {
    let url = match &args.command {
        DlqCommand::List(args) => &args.database.database,
        DlqCommand::Show(args) => &args.database.database,
        DlqCommand::Replay(args) | DlqCommand::Skip(args) => &args.database.database,
    };
    match Database::connect(url).await? {
        Database::Postgres(pool) => {
            let inbox = PgInbox::open(pool).await.context("the inbox")?;
            run(&inbox, &args.command).await
        }
        Database::MySql(pool) => {
            let inbox = MySqlInbox::open(pool).await.context("the inbox")?;
            run(&inbox, &args.command).await
        }
        Database::Sqlite(pool) => {
            let inbox = SqliteInbox::open(pool).await.context("the inbox")?;
            run(&inbox, &args.command).await
        }
    }
}

async fn run<L: Ledger>(inbox: &L, command: &DlqCommand) -> Result<ExitCode> {
    match command {
        DlqCommand::List(args) => list(inbox, args).await,
        DlqCommand::Show(args) => show(inbox, args).await,
        DlqCommand::Replay(args) => wish(inbox, args, Wish::Retry).await,
        DlqCommand::Skip(args) => wish(inbox, args, Wish::Skip).await,
    }
}

/// The consumer that is named, if there is one of that name.
async fn check<L: Ledger>(inbox: &L, consumer: &str) -> Result<()> {
    let known = inbox.consumers().await?;
    if !known.iter().any(|name| name == consumer) {
        let known = known.join(", ");
        bail!("there is no consumer `{consumer}` in this database; there are: {known}");
    }
    Ok(())
}

async fn list<L: Ledger>(inbox: &L, args: &DlqListArgs) -> Result<ExitCode> {
    let consumers = match &args.consumer {
        Some(consumer) => {
            check(inbox, consumer).await?;
            vec![consumer.clone()]
        }
        None => inbox.consumers().await?,
    };
    let which = args.filter.which();
    let mut rows = Vec::new();
    let mut left = args.filter.limit;
    for consumer in &consumers {
        let found = inbox.waiting(consumer, which.as_ref(), left).await?;
        left -= found.len();
        for one in found {
            match args.database.output {
                Output::Json => println!("{}", Value::Object(waiting_json(consumer, &one))),
                Output::Text => rows.push(waiting_row(consumer, &one)),
            }
        }
    }
    if args.database.output == Output::Text {
        print_rows("CONSUMER", &rows);
    }
    Ok(ExitCode::SUCCESS)
}

async fn show<L: Ledger>(inbox: &L, args: &DlqShowArgs) -> Result<ExitCode> {
    check(inbox, &args.consumer).await?;
    let which = Which::Message(args.id);
    let found = inbox.waiting(&args.consumer, Some(&which), 1).await?;
    let Some(one) = found.first() else {
        bail!(
            "`{}` has not set aside a message {}",
            args.consumer,
            args.id
        );
    };
    let mut shown = waiting_json(&args.consumer, one);
    add_content(&mut shown, &one.message.headers, &one.message.payload);
    print_one(args.database.output, &shown);
    Ok(ExitCode::SUCCESS)
}

async fn wish<L: Ledger>(inbox: &L, args: &DlqChoiceArgs, wish: Wish) -> Result<ExitCode> {
    check(inbox, &args.consumer).await?;
    let which = args.select.which()?;
    Ok(noted(inbox.wish(&args.consumer, &which, wish).await?, wish))
}

fn state(state: State) -> &'static str {
    match state {
        State::Waiting => "waiting",
        State::Dead => "dead",
        State::Passed => "passed",
    }
}

fn waiting_row(consumer: &str, waiting: &Waiting) -> Vec<String> {
    let message = &waiting.message;
    let seq = message.seq();
    vec![
        consumer.to_owned(),
        waiting.id.to_string(),
        printable(message.partition.topic.as_bytes()),
        of_key(message.key.as_deref()),
        seq.map_or_else(|| "-".into(), |seq| seq.to_string()),
        state(waiting.state).into(),
        waiting.attempts.to_string(),
        word(waiting.wish).into(),
        printable(waiting.reason.as_bytes()),
    ]
}

fn waiting_json(consumer: &str, waiting: &Waiting) -> Map<String, Value> {
    let message = &waiting.message;
    object(json!({
        "consumer": consumer,
        "id": waiting.id.to_string(),
        "topic": message.partition.topic,
        "partition": message.partition.number,
        "offset": message.offset,
        "key": message.key,
        "seq": message.seq(),
        "source": message.source(),
        "state": state(waiting.state),
        "attempts": waiting.attempts,
        "order": word(waiting.wish),
        "reason": waiting.reason,
    }))
}
