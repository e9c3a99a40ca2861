//! Is the history of a key linearizable? By versions, without search.
//!
//! The store gives each write a version, and they order the writes of a key. So all that is left to look at
//! is whether that order goes with time, and whether every read shows the newest write that it must.

use std::collections::BTreeMap;

use crate::history::{Action, Level, Op, Outcome, Value, Violation};

/// A write whose version is known.
#[derive(Debug, Clone, Copy)]
struct Write {
    value: Value,
    began_us: u64,
    ended_us: u64,
}

/// Judges the operations on one key, stale and token reads left out.
pub fn check(key: u64, ops: &[Op]) -> Result<(), Violation> {
    let fail = |message: String| {
        let message = format!("key {key}: {message}");
        Violation::new("linearizable_by_versions", message)
    };
    let writes = writes_of(ops).map_err(fail)?;
    check_order(&writes).map_err(fail)?;
    check_conditions(ops, &writes).map_err(fail)?;
    check_reads(ops, &writes).map_err(fail)
}

/// The writes by version: those acknowledged, and those of unknown outcome that somebody saw.
fn writes_of(ops: &[Op]) -> Result<BTreeMap<u64, Write>, String> {
    let mut writes: BTreeMap<u64, Write> = BTreeMap::new();
    for op in ops.iter().filter(|op| op.is_write()) {
        if let Outcome::Done {
            applied: true,
            value,
            version,
        } = op.outcome
        {
            let write = Write {
                value,
                began_us: op.began_us,
                ended_us: op.ended_us,
            };
            if let Some(other) = writes.insert(version, write) {
                let other = other.value;
                return Err(format!("values {value} and {other} have version {version}"));
            }
        }
    }
    let mut unknown = BTreeMap::new();
    for op in ops.iter().filter(|op| !op.is_known()) {
        unknown.extend(op.written().map(|value| (value, op.began_us)));
    }
    for op in ops {
        let Outcome::Done { value, version, .. } = op.outcome else {
            continue;
        };
        if op.is_write() || value == 0 {
            continue;
        }
        match writes.get(&version) {
            Some(write) if write.value == value => {}
            Some(write) => {
                let other = write.value;
                return Err(format!(
                    "version {version} is value {value} to one and {other} to another"
                ));
            }
            None => {
                let Some(began_us) = unknown.get(&value).copied() else {
                    return Err(format!(
                        "value {value} of version {version} was read, and not written so"
                    ));
                };
                let write = Write {
                    value,
                    began_us,
                    ended_us: u64::MAX,
                };
                writes.insert(version, write);
            }
        }
    }
    Ok(writes)
}

/// Who ended before another began has the smaller version.
fn check_order(writes: &BTreeMap<u64, Write>) -> Result<(), String> {
    let mut first_end = (u64::MAX, 0);
    for (version, write) in writes.iter().rev() {
        if first_end.0 < write.began_us {
            let later = first_end.1;
            return Err(format!(
                "version {later} was acknowledged before the write of {version} began"
            ));
        }
        first_end = first_end.min((write.ended_us, *version));
    }
    Ok(())
}

/// A conditional write follows the version that it named at once.
fn check_conditions(ops: &[Op], writes: &BTreeMap<u64, Write>) -> Result<(), String> {
    for op in ops {
        let (
            Action::WriteIf { expected, .. },
            Outcome::Done {
                applied: true,
                version,
                ..
            },
        ) = (op.action, op.outcome)
        else {
            continue;
        };
        let before = writes.range(..version).next_back();
        let fits = match (expected, before) {
            // Absent: never written, deleted, or deleted by one whose version nobody knows.
            (0, before) => {
                before.is_none_or(|(_, write)| write.value == 0) || has_unknown_delete(ops)
            }
            (expected, before) => before.is_some_and(|(version, _)| *version == expected),
        };
        if !fits {
            let before = before.map(|(version, _)| *version);
            return Err(format!(
                "version {version} was written on condition of {expected} and follows {before:?}"
            ));
        }
    }
    Ok(())
}

fn has_unknown_delete(ops: &[Op]) -> bool {
    ops.iter()
        .any(|op| !op.is_known() && op.written() == Some(0))
}

fn check_reads(ops: &[Op], writes: &BTreeMap<u64, Write>) -> Result<(), String> {
    let unknown_delete = has_unknown_delete(ops);
    let is_read = |op: &&Op| op.action == Action::Read(Level::Linearizable);
    let mut reads: Vec<&Op> = ops.iter().filter(is_read).collect();
    reads.sort_unstable_by_key(|op| op.began_us);
    // What was known to somebody, and when: versions of writes and of reads.
    let mut known: Vec<(u64, u64)> = writes.iter().map(|(v, w)| (w.ended_us, *v)).collect();
    known.extend(reads.iter().filter_map(|op| match op.outcome {
        Outcome::Done { value, version, .. } if value != 0 => Some((op.ended_us, version)),
        _ => None,
    }));
    known.sort_unstable();
    let (mut known, mut due) = (known.into_iter().peekable(), 0);
    for op in reads {
        while let Some((_, version)) = known.next_if(|(ended, _)| *ended < op.began_us) {
            due = due.max(version);
        }
        let Outcome::Done { value, version, .. } = op.outcome else {
            continue;
        };
        if value != 0 {
            let write = writes.get(&version);
            if version < due {
                return Err(format!(
                    "version {version} was read after {due} was known, {op:?}"
                ));
            }
            if write.is_some_and(|write| write.began_us > op.ended_us) {
                return Err(format!("version {version} was read before it was written"));
            }
            continue;
        }
        // Absent until the first write, and from a delete to the next write.
        let began = |version: &u64| writes.get(version).map_or(0, |write| write.began_us);
        let next = |version: u64| writes.range(version + 1..).next().map(|(v, _)| *v);
        let ends_after = |version: u64| next(version).is_none_or(|next| next > due);
        let from_start = ends_after(0);
        let deletes = writes.iter().filter(|(_, write)| write.value == 0);
        let mut spans =
            deletes.filter(|(version, _)| ends_after(**version) && began(version) <= op.ended_us);
        if !from_start && spans.next().is_none() && !unknown_delete {
            return Err(format!("the key was absent after {due} was known, {op:?}"));
        }
    }
    Ok(())
}
