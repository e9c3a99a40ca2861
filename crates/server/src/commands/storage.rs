//! `storage`: the files of an engine, from outside. What there is to find is found by
//! `quorate_storage::inspect`; this prints it.

use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use quorate_env::Env;
use quorate_storage::inspect::{
    Inspection, Lost, PlacedKey, Repair, Summary, TableContent, ValueContent, Verification, repair,
};
use quorate_storage::{Engine, ErrorKind, IterOptions, KeyspaceOptions};
use serde_json::{Value, json};

use super::BAD_NEWS;
use super::output::{hex, size, table};
use super::progress::ByteProgress;
use crate::args::{CheckArgs, DumpArgs, Escaped, InspectArgs, Output, StorageArgs, StorageCommand};

/// `quorate storage`.
///
/// # Errors
/// When the directory holds no store, a process has it open, or it cannot be read.
pub fn storage(args: StorageArgs) -> Result<ExitCode> {
    // No job is ever run: nothing is flushed or compacted.
    let env = Env::real(1);
    match args.command {
        StorageCommand::Inspect(args) => inspect(&env, &args),
        StorageCommand::Verify(args) => verify(&env, &args),
        StorageCommand::Dump(args) => dump(&env, &args),
        StorageCommand::Repair(args) => mend(&env, &args),
    }
}

fn open(env: &Env, dir: &Path) -> Result<Inspection> {
    Inspection::open(env, dir).map_err(|error| match error.kind() {
        ErrorKind::Corruption => anyhow::anyhow!(
            "{error}; `quorate storage repair {}` may help",
            dir.display()
        ),
        _ => error.into(),
    })
}

fn inspect(env: &Env, args: &InspectArgs) -> Result<ExitCode> {
    let summary = open(env, &args.dir)?.summary();
    match args.output {
        Output::Json => println!("{}", summary_json(&summary)),
        Output::Text => print_summary(&summary),
    }
    Ok(ExitCode::SUCCESS)
}

fn print_summary(summary: &Summary) {
    println!("{}: {}", summary.dir.display(), summary.manifest);
    let log = match summary.logged {
        true => "; the write-ahead log may hold more",
        false => "; no write-ahead log",
    };
    println!(
        "operations up to {} are in tables{log}",
        summary.flushed_sequence
    );
    for (keyspace, watermark) in &summary.keyspaces {
        let kind = match (keyspace.versioned, watermark) {
            (false, _) => "plain".to_owned(),
            (true, 0) => "versioned".to_owned(),
            (true, version) => format!("versioned, history from version {version} on"),
        };
        println!("keyspace {} ({}): {kind}", keyspace.name, keyspace.id.0);
    }
    print_tables(&summary.tables);
    print_values(&summary.values);
    for name in &summary.left_overs {
        println!("{name}: nothing refers to it; the next opening removes it");
    }
}

fn print_tables(tables: &[TableContent]) {
    let row = |t: &TableContent| {
        let of_each = t.keyspaces.iter().map(|k| {
            let versions = match (k.min_version, k.max_version) {
                (_, 0) => String::new(),
                (low, high) => format!(" at {low}..{high}"),
            };
            format!("{}: {}{versions}", k.id.0, k.entries)
        });
        vec![
            t.level.to_string(),
            t.file.clone(),
            size(t.size_bytes),
            t.entries.to_string(),
            (t.deletions + t.range_deletions).to_string(),
            placed(&t.smallest),
            placed(&t.largest),
            of_each.collect::<Vec<_>>().join(", "),
        ]
    };
    let rows: Vec<_> = tables.iter().map(row).collect();
    let head = [
        "LEVEL",
        "TABLE",
        "SIZE",
        "ENTRIES",
        "DELETED",
        "FIRST",
        "LAST",
        "KEYSPACES",
    ];
    if !rows.is_empty() {
        table(&head, &rows);
    }
    let bytes = tables.iter().map(|t| t.size_bytes).sum();
    let entries: u64 = tables.iter().map(|t| t.entries).sum();
    println!(
        "{} tables, {}, {entries} entries",
        tables.len(),
        size(bytes)
    );
}

fn print_values(values: &[ValueContent]) {
    if values.is_empty() {
        return;
    }
    let row = |v: &ValueContent| {
        vec![
            v.file.clone(),
            size(v.size_bytes),
            v.values.to_string(),
            v.live_values.to_string(),
            size(v.dead_bytes),
        ]
    };
    let rows: Vec<_> = values.iter().map(row).collect();
    table(&["VALUE FILE", "SIZE", "VALUES", "ALIVE", "DEAD"], &rows);
    let bytes = values.iter().map(|v| v.size_bytes).sum();
    println!("{} value files, {}", values.len(), size(bytes));
}

fn verify(env: &Env, args: &CheckArgs) -> Result<ExitCode> {
    let inspection = open(env, &args.dir)?;
    let progress = ByteProgress::new("verifying", args.quiet);
    let (mut done, total) = (0, inspection.file_bytes());
    let found = inspection.verify(&mut |bytes| {
        done += bytes;
        progress.show(done, total);
    });
    progress.end();
    match args.output {
        Output::Json => println!("{}", verification_json(&found)),
        Output::Text => print_verification(&found),
    }
    Ok(good_if(found.damages.is_empty()))
}

fn print_verification(found: &Verification) {
    for damage in &found.damages {
        let place = damage.at.map(|at| format!(", block at byte {at}"));
        println!(
            "{}{}: {}",
            damage.file,
            place.unwrap_or_default(),
            damage.what
        );
    }
    println!(
        "{} tables and {} value files ({}) with {} entries and {} batches in the log were read: {}",
        found.tables,
        found.value_files,
        size(found.bytes),
        found.entries,
        found.log_batches,
        match found.damages.len() {
            0 => "all sound".to_owned(),
            n => format!("{n} damages"),
        }
    );
}

fn mend(env: &Env, args: &CheckArgs) -> Result<ExitCode> {
    let progress = ByteProgress::new("checking", args.quiet);
    let done = repair(env, &args.dir, &mut |done, total| {
        progress.show(done, total)
    });
    progress.end();
    let done = done?;
    match args.output {
        Output::Json => println!("{}", repair_json(&done)),
        Output::Text => print_repair(&done),
    }
    Ok(good_if(done.lost.is_empty()))
}

fn print_repair(done: &Repair) {
    if !done.needed {
        println!(
            "{}: nothing is wrong, nothing was changed",
            done.dir.display()
        );
        return;
    }
    if let Some(damage) = &done.manifest_damage {
        println!("manifest: {damage}");
    }
    if !done.certain {
        println!(
            "which tables counted is not certain: all sound ones were taken. What was deleted or \
             overwritten shortly before may be back."
        );
    }
    if !done.merged.is_empty() {
        println!(
            "{} overlapping tables were merged into new ones",
            done.merged.len()
        );
    }
    for name in &done.missing {
        println!("{name}: the damaged manifest knew it, it is not there: replaced since, or lost");
    }
    for lost in &done.lost {
        print_lost(lost);
    }
    print_tables(&done.tables);
}

fn print_lost(lost: &Lost) {
    let what = match &lost.content {
        Some((entries, first, last)) => {
            let (first, last) = (placed(first), placed(last));
            format!("{entries} entries from {first} to {last}")
        }
        None => "what it held is not known".to_owned(),
    };
    let now = match &lost.moved_to {
        Some(path) => format!("moved to {}", path.display()),
        None => "the file is missing".to_owned(),
    };
    println!("lost {}: {what}; {}; {now}", lost.file, lost.why);
}

fn dump(env: &Env, args: &DumpArgs) -> Result<ExitCode> {
    let inspection = open(env, &args.dir)?;
    let engine = inspection.read()?;
    let all = engine.keyspaces();
    let wanted = |k: &KeyspaceOptions| match &args.keyspace {
        None => true,
        Some(name) => k.name == *name || k.id.0.to_string() == *name,
    };
    let chosen: Vec<_> = all.iter().filter(|k| wanted(k)).collect();
    if chosen.is_empty() {
        let names: Vec<_> = all.iter().map(|k| k.name.as_str()).collect();
        bail!("there is no such keyspace; there are {}", names.join(", "));
    }
    let mut left = if args.limit == 0 {
        u64::MAX
    } else {
        args.limit
    };
    let mut out = BufWriter::new(io::stdout().lock());
    for keyspace in chosen {
        match dump_keyspace(&engine, keyspace, args, &mut left, &mut out) {
            // Whoever reads has read enough.
            Err(error) if is_broken_pipe(&error) => return Ok(ExitCode::SUCCESS),
            done => done?,
        }
    }
    match out.flush() {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        done => done?,
    }
    Ok(ExitCode::SUCCESS)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<io::Error>();
    cause.is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

fn dump_keyspace(
    engine: &dyn Engine,
    keyspace: &KeyspaceOptions,
    args: &DumpArgs,
    left: &mut u64,
    out: &mut impl Write,
) -> Result<()> {
    let options = IterOptions {
        lower: args.from.0.clone(),
        upper: args.to.as_ref().map(|to| to.0.clone()),
        all_versions: true,
        ..IterOptions::default()
    };
    let mut iter = engine.iterate(keyspace.id, options)?;
    iter.seek_to_first()?;
    while iter.valid() && *left > 0 {
        *left -= 1;
        let (key, value, deleted) = (iter.key(), iter.value(), iter.is_deletion());
        match args.output {
            Output::Json => {
                let entry = json!({
                    "keyspace": keyspace.name,
                    "key": escaped(key),
                    "version": iter.version(),
                    "deleted": deleted,
                    "value_hex": hex(value),
                });
                writeln!(out, "{entry}")?;
            }
            Output::Text => {
                let version = match keyspace.versioned {
                    true => format!("@{}", iter.version()),
                    false => String::new(),
                };
                let value = if deleted {
                    "(deleted)".to_owned()
                } else {
                    escaped(value)
                };
                writeln!(out, "{}\t{}{version}\t{value}", keyspace.name, escaped(key))?;
            }
        }
        iter.next()?;
    }
    Ok(())
}

fn good_if(good: bool) -> ExitCode {
    match good {
        true => ExitCode::SUCCESS,
        false => BAD_NEWS.into(),
    }
}

fn escaped(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn placed(key: &PlacedKey) -> String {
    format!("{}:{}", key.keyspace.0, escaped(&key.key))
}

/// Reads bytes as [`escaped`] writes them.
pub fn parse_escaped(text: &str) -> Result<Escaped, String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'\\' {
            bytes.push(first);
            continue;
        }
        let Some((&kind, after)) = rest.split_first() else {
            return Err("it ends with a backslash alone".into());
        };
        rest = after;
        bytes.push(match kind {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'\\' | b'\'' | b'"' => kind,
            b'x' => {
                let digits = rest.get(..2).and_then(|d| std::str::from_utf8(d).ok());
                let byte = digits.and_then(|d| u8::from_str_radix(d, 16).ok());
                rest = rest.get(2..).unwrap_or_default();
                byte.ok_or("\\x wants two hex digits")?
            }
            _ => {
                return Err(
                    "after a backslash comes n, r, t, x and two hex digits, or itself".into(),
                );
            }
        });
    }
    Ok(Escaped(bytes))
}

fn placed_json(key: &PlacedKey) -> Value {
    json!({ "keyspace": key.keyspace.0, "key": escaped(&key.key) })
}

fn table_json(table: &TableContent) -> Value {
    let keyspaces = table.keyspaces.iter().map(|k| {
        json!({
            "id": k.id.0,
            "entries": k.entries,
            "deletions": k.deletions,
            "min_version": k.min_version,
            "max_version": k.max_version,
        })
    });
    json!({
        "file": table.file,
        "level": table.level,
        "size_bytes": table.size_bytes,
        "entries": table.entries,
        "deletions": table.deletions,
        "range_deletions": table.range_deletions,
        "values_apart": table.values_apart,
        "values_apart_bytes": table.values_apart_bytes,
        "smallest": placed_json(&table.smallest),
        "largest": placed_json(&table.largest),
        "min_sequence": table.sequences.0,
        "max_sequence": table.sequences.1,
        "keyspaces": keyspaces.collect::<Vec<_>>(),
    })
}

fn value_file_json(values: &ValueContent) -> Value {
    json!({
        "file": values.file,
        "size_bytes": values.size_bytes,
        "values": values.values,
        "value_bytes": values.value_bytes,
        "live_values": values.live_values,
        "dead_bytes": values.dead_bytes,
    })
}

fn summary_json(summary: &Summary) -> Value {
    let keyspaces = summary.keyspaces.iter().map(|(k, watermark)| {
        json!({ "id": k.id.0, "name": k.name, "versioned": k.versioned, "watermark": watermark })
    });
    json!({
        "dir": summary.dir,
        "manifest": summary.manifest,
        "flushed_sequence": summary.flushed_sequence,
        "logged": summary.logged,
        "keyspaces": keyspaces.collect::<Vec<_>>(),
        "tables": summary.tables.iter().map(table_json).collect::<Vec<_>>(),
        "value_files": summary.values.iter().map(value_file_json).collect::<Vec<_>>(),
        "left_overs": summary.left_overs,
    })
}

fn verification_json(found: &Verification) -> Value {
    let damages = found
        .damages
        .iter()
        .map(|d| json!({ "file": d.file, "at": d.at, "what": d.what }));
    json!({
        "tables": found.tables,
        "value_files": found.value_files,
        "bytes": found.bytes,
        "entries": found.entries,
        "log_batches": found.log_batches,
        "damages": damages.collect::<Vec<_>>(),
    })
}

fn repair_json(done: &Repair) -> Value {
    let lost = done.lost.iter().map(|lost| {
        let content = lost.content.as_ref().map(|(entries, first, last)| {
            json!({
                "entries": entries,
                "smallest": placed_json(first),
                "largest": placed_json(last),
            })
        });
        json!({
            "file": lost.file,
            "why": lost.why,
            "content": content,
            "moved_to": lost.moved_to,
        })
    });
    json!({
        "dir": done.dir,
        "needed": done.needed,
        "certain": done.certain,
        "manifest_damage": done.manifest_damage,
        "merged": done.merged,
        "missing": done.missing,
        "lost": lost.collect::<Vec<_>>(),
        "tables": done.tables.iter().map(table_json).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::{escaped, parse_escaped};

    #[test]
    fn escaped_bytes_are_read_as_they_were_written() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(parse_escaped(&escaped(&all)).unwrap().0, all);
        assert_eq!(parse_escaped("naïve").unwrap().0, "naïve".as_bytes());
        for wrong in ["\\", "\\x", "\\x1", "\\xzz", "\\q"] {
            assert!(parse_escaped(wrong).is_err(), "{wrong}");
        }
    }
}
