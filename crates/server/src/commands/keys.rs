//! `put`, `get`, `del` and `scan`.

use std::io::Read;
use std::process::ExitCode;

use anyhow::{Context, Result};
use quorate_kv::{
    Condition, Delete, Get, Kv, Limits, Put, ReadLevel, Scan, ScanOrder, Token, Written,
};
use serde_json::json;

use super::output::{entry_json, printable, write_value};
use super::{BAD_NEWS, open};
use crate::args::{DelArgs, GetArgs, Level, Output, PutArgs, ScanArgs};

/// Entries that one page of `scan` asks for.
const PAGE: usize = 1000;

/// `quorate put`.
///
/// # Errors
/// When the value cannot be read or the write fails.
pub async fn put(args: PutArgs) -> Result<ExitCode> {
    let value = match (&args.file, &args.value) {
        (Some(path), _) => {
            std::fs::read(path).with_context(|| format!("read {}", path.display()))?
        }
        (None, Some(value)) if value == "-" => {
            let mut bytes = Vec::new();
            // One byte more than any server takes, so that too much is refused and not cut.
            let most = Limits::VALUE_BYTES_CAP as u64 + 1;
            std::io::stdin()
                .take(most)
                .read_to_end(&mut bytes)
                .context("read standard input")?;
            bytes
        }
        (None, value) => value.clone().unwrap_or_default().into_bytes(),
    };
    let condition = match (args.if_absent, args.if_present, args.if_version) {
        (true, _, _) => Condition::Absent,
        (_, true, _) => Condition::Present,
        (_, _, Some(version)) => Condition::Version(version),
        _ => Condition::None,
    };
    let kv = open(&args.target).await?;
    let written = kv.put(Put::new(args.key, value).when(condition)).await?;
    report(
        &written,
        args.target.output,
        "written",
        "the condition does not hold",
    )
}

/// `quorate del`.
///
/// # Errors
/// When the delete fails.
pub async fn del(args: DelArgs) -> Result<ExitCode> {
    let condition = args.if_version.map_or(Condition::None, Condition::Version);
    let kv = open(&args.target).await?;
    let written = kv.delete(Delete::new(args.key).when(condition)).await?;
    let why = match written.version {
        0 => "the key is not there",
        _ => "the condition does not hold",
    };
    report(&written, args.target.output, "deleted", why)
}

fn report(written: &Written, output: Output, done: &str, why_not: &str) -> Result<ExitCode> {
    let (applied, version) = (written.applied, written.version);
    match output {
        Output::Json => {
            let token = written.token.to_string();
            println!(
                "{}",
                json!({ "applied": applied, "version": version, "token": token })
            );
        }
        Output::Text if applied => println!("{done} at version {version}"),
        Output::Text => println!("not {done}: {why_not} (version {version})"),
    }
    Ok(if applied {
        ExitCode::SUCCESS
    } else {
        BAD_NEWS.into()
    })
}

/// `quorate get`.
///
/// # Errors
/// When the token makes no sense or the read fails.
pub async fn get(args: GetArgs) -> Result<ExitCode> {
    let level = match &args.token {
        Some(token) => ReadLevel::AtLeast(Token::parse(token)?),
        None => level(args.level),
    };
    let kv = open(&args.target).await?;
    let found = kv.get(Get::new(args.key.clone()).level(level)).await?;
    match (&found, args.target.output) {
        (Some(entry), Output::Text) => write_value(&entry.value)?,
        (Some(entry), Output::Json) => println!("{}", entry_json(entry, true)),
        (None, Output::Text) => eprintln!("`{}` is not there", args.key),
        (None, Output::Json) => println!("null"),
    }
    Ok(if found.is_some() {
        ExitCode::SUCCESS
    } else {
        BAD_NEWS.into()
    })
}

/// `quorate scan`.
///
/// # Errors
/// When a page cannot be read.
pub async fn scan(args: ScanArgs) -> Result<ExitCode> {
    let kv = open(&args.target).await?;
    let order = match (args.reverse, args.unordered) {
        (true, _) => ScanOrder::KeyReverse,
        (_, true) => ScanOrder::Unordered,
        _ => ScanOrder::Key,
    };
    let scan = match args.prefix {
        Some(prefix) => Scan::prefix(prefix),
        None => Scan::range(args.start, args.end),
    };
    let scan = scan.order(order).level(level(args.level));
    let mut left = if args.limit == 0 {
        u64::MAX
    } else {
        args.limit
    };
    let mut page = None;
    while left > 0 {
        let limit = PAGE.min(usize::try_from(left).unwrap_or(PAGE));
        let part = kv.scan(scan.clone().limit(limit).page(page)).await?;
        left -= part.entries.len() as u64;
        for entry in &part.entries {
            match args.target.output {
                Output::Json => println!("{}", entry_json(entry, !args.keys_only)),
                Output::Text if args.keys_only => println!("{}", printable(&entry.key)),
                Output::Text => {
                    println!("{}\t{}", printable(&entry.key), printable(&entry.value));
                }
            }
        }
        page = part.next;
        if page.is_none() {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn level(level: Level) -> ReadLevel {
    match level {
        Level::Linearizable => ReadLevel::Linearizable,
        Level::Stale => ReadLevel::Stale,
    }
}
