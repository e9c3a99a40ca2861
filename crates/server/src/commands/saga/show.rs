//! `saga show`: one saga, with its steps and its history.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use indicatif::HumanDuration;
use quorate_saga::Outcome;
use quorate_saga::machine::{Entry, Event, Phase, Wish};
use quorate_saga::ops::Shown;
use serde_json::{Value, json};

use super::{describe, open, record_json, way};
use crate::args::{Output, ShowSagaArgs};
use crate::commands::output::{printable, table};

pub(super) async fn show(args: &ShowSagaArgs) -> Result<ExitCode> {
    let id = args.saga.id()?;
    let shown = open(&args.database).await?.show(id).await?;
    match args.database.output {
        Output::Json => println!("{}", as_json(&shown)),
        Output::Text => print(&shown),
    }
    Ok(ExitCode::SUCCESS)
}

/// How long ago something was.
pub(super) fn moment(at_ms: i64) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let then = Duration::from_millis(u64::try_from(at_ms).unwrap_or_default());
    format!("{} ago", HumanDuration(now.saturating_sub(then)))
}

/// An outcome in words.
pub(super) fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Done(Value::Null) => "done".into(),
        Outcome::Done(value) => format!("done with {value}"),
        Outcome::Refused(why) => format!("refused: {}", printable(why.as_bytes())),
        Outcome::Unknown(why) => format!("unknown: {}", printable(why.as_bytes())),
    }
}

fn input(shown: &Shown) -> Option<&Value> {
    match shown.history.first().map(|entry| &entry.event) {
        Some(Event::Started(start)) => Some(&start.input),
        _ => None,
    }
}

fn phase(phase: &Phase) -> String {
    match phase {
        Phase::Waiting => "waits for its turn".into(),
        Phase::Sent(dir, _) => format!("{} sent", way(*dir)),
        Phase::Paused(dir, _) => format!("{} failed, to be tried again", way(*dir)),
        Phase::Stuck(dir, why) => format!("{} stuck: {}", way(*dir), printable(why.as_bytes())),
        Phase::Done => "done".into(),
        Phase::Refused => "refused".into(),
        Phase::Unknown => "whether it is done is not known".into(),
        Phase::Undone => "undone".into(),
    }
}

/// An event in words.
fn said(event: &Event, name: &dyn Fn(u16) -> String) -> String {
    let text = |text: &str| printable(text.as_bytes());
    match event {
        Event::Started(_) => "begun".into(),
        Event::Sent(step, dir, tries, _) => {
            format!("{}: {} sent, try {tries}", name(*step), way(*dir))
        }
        Event::Done(step, dir, Value::Null) => format!("{}: {} done", name(*step), way(*dir)),
        Event::Done(step, dir, value) => {
            format!("{}: {} done with {value}", name(*step), way(*dir))
        }
        Event::Refused(step, why) => format!("{}: refused: {}", name(*step), text(why)),
        Event::Failed(step, dir, why, _) => {
            format!("{}: {} failed: {}", name(*step), way(*dir), text(why))
        }
        Event::Unknown(step, why) => {
            format!(
                "{}: whether it is done is not known: {}",
                name(*step),
                text(why)
            )
        }
        Event::Stuck(step, dir, why) => {
            format!("{}: {} stuck: {}", name(*step), way(*dir), text(why))
        }
        Event::Skipped(step, dir) => format!("{}: {} skipped", name(*step), way(*dir)),
        Event::Turned(why) => format!("is undone from here: {}", text(why)),
        Event::Ordered(who, why, order) => {
            format!("{} ordered: {}: {}", text(who), describe(order), text(why))
        }
        Event::Mail(branch, _, tries, result) => format!(
            "{}: answer to try {tries} kept for who knows the definition: {}",
            text(branch),
            outcome(result)
        ),
        Event::Taken => "the answers that were kept are taken".into(),
        Event::Wished(who, why, order) => {
            format!("{} wants: {}: {}", text(who), describe(order), text(why))
        }
        Event::Heard => "what was wanted is looked at".into(),
        Event::Declined(who, order, why) => {
            format!(
                "declined what {} wanted: {}: {}",
                text(who),
                describe(order),
                text(why)
            )
        }
        Event::Ended(end) => format!("ended: {end:?}").to_lowercase(),
    }
}

/// The history in words, with each event's time.
fn history(shown: &Shown) -> Vec<(&Entry, String)> {
    let name = |step: u16| {
        let known = shown.steps.get(usize::from(step));
        known.map_or_else(
            || format!("#{step}"),
            |(name, _)| printable(name.as_bytes()),
        )
    };
    let all = shown.history.iter();
    all.map(|entry| (entry, said(&entry.event, &name)))
        .collect()
}

fn print(shown: &Shown) {
    let record = &shown.record;
    println!("id: {}", record.id);
    println!("name: {}", printable(record.name.as_bytes()));
    println!("version: {}", record.version);
    println!("key: {}", printable(record.key.as_bytes()));
    println!("status: {}", record.status);
    println!("began: {}", moment(record.started_ms));
    if let Some(input) = input(shown) {
        println!("input: {input}");
    }
    if let Some(trouble) = &shown.trouble {
        println!("trouble: {}", printable(trouble.as_bytes()));
    }
    let steps = shown.steps.iter();
    let steps = steps.map(|(name, at)| vec![printable(name.as_bytes()), phase(at)]);
    let first = shown.history.first().map_or(0, |entry| entry.at_ms);
    let events = history(shown).into_iter().map(|(entry, said)| {
        let after = (entry.at_ms - first) as f64 / 1000.0;
        vec![format!("{after:.3} s"), said]
    });
    let wishes = shown.wishes.iter().map(|wish| {
        let Wish { who, why, order } = wish;
        vec![
            printable(who.as_bytes()),
            describe(order),
            printable(why.as_bytes()),
        ]
    });
    let parts = [
        (vec!["STEP", "STANDS"], steps.collect::<Vec<_>>()),
        (vec!["AFTER", "WHAT HAPPENED"], events.collect()),
        (
            vec!["WANTED BY", "ORDER THAT WAITS", "REASON"],
            wishes.collect(),
        ),
    ];
    for (head, rows) in parts.iter().filter(|(_, rows)| !rows.is_empty()) {
        println!();
        table(head, rows);
    }
}

fn as_json(shown: &Shown) -> Value {
    let mut object = record_json(&shown.record);
    let steps = shown.steps.iter();
    let steps = steps.map(|(name, at)| json!({ "step": name, "stands": phase(at) }));
    let events = history(shown).into_iter();
    let events = events
        .map(|(entry, said)| json!({ "at_ms": entry.at_ms, "event": entry.event, "text": said }));
    let wishes = shown.wishes.iter();
    let wishes =
        wishes.map(|wish| json!({ "by": wish.who, "reason": wish.why, "order": wish.order }));
    object["input"] = input(shown).cloned().unwrap_or_default();
    object["steps"] = steps.collect::<Vec<_>>().into();
    object["history"] = events.collect::<Vec<_>>().into();
    object["waiting"] = wishes.collect::<Vec<_>>().into();
    object["trouble"] = json!(shown.trouble);
    object
}
