//! Reads are never below their token, and stale reads show only what was once there.
//!
//! Of a token one may expect all that was acknowledged before the read began with a version up to the token's.

use std::collections::BTreeMap;

use crate::history::{Action, Level, Op, Outcome, Violation};

/// Judges the reads of one key.
pub fn check(key: u64, ops: &[Op]) -> Result<(), Violation> {
    let Known {
        written,
        deletes,
        unknown_delete_us,
    } = known_of(ops);
    let writers = writers_of(ops);
    for op in ops {
        let (
            Action::Read(level),
            Outcome::Done {
                value,
                version: found,
                ..
            },
        ) = (op.action, op.outcome)
        else {
            continue;
        };
        let fail = |message: String| {
            let message = format!("key {key}, client {}: {message}", op.client);
            Err(Violation::new("reads_at_token", message))
        };
        if value != 0 {
            match writers.get(&value) {
                None => return fail(format!("read value {value}, which nobody wrote")),
                Some(began) if *began > op.ended_us => {
                    return fail(format!("read value {value} before it was written"));
                }
                Some(_) => {}
            }
        }
        let Level::AtLeast(token) = level else {
            continue;
        };
        let mut before = written.range(..=token).rev();
        let due = before.find(|(_, ended)| **ended < op.began_us);
        let due = due.map(|(version, _)| *version);
        let due = due.unwrap_or(0);
        let fits = match value {
            0 => {
                due == 0
                    || deletes.iter().any(|delete| *delete >= due)
                    || unknown_delete_us < op.ended_us
            }
            _ => found >= due,
        };
        if !fits {
            return fail(format!(
                "read version {found} with a token of {token}, below which {due} was acknowledged"
            ));
        }
    }
    Ok(())
}

/// By value: when somebody began to write it.
fn writers_of(ops: &[Op]) -> BTreeMap<u64, u64> {
    let writes = ops
        .iter()
        .filter_map(|op| Some((op.written()?, op.began_us)));
    writes.collect()
}

/// What is known of a key's writes.
struct Known {
    /// By version: when the write ended.
    written: BTreeMap<u64, u64>,
    /// The versions of deletes.
    deletes: Vec<u64>,
    /// When the first delete of unknown outcome began.
    unknown_delete_us: u64,
}

fn known_of(ops: &[Op]) -> Known {
    let mut written = BTreeMap::new();
    let mut deletes = Vec::new();
    let mut unknown_delete_us = u64::MAX;
    for op in ops.iter().filter(|op| op.is_write()) {
        match op.outcome {
            Outcome::Done {
                applied: true,
                value,
                version,
            } => {
                written.insert(version, op.ended_us);
                if value == 0 {
                    deletes.push(version);
                }
            }
            Outcome::Unknown if op.written() == Some(0) => {
                unknown_delete_us = unknown_delete_us.min(op.began_us);
            }
            _ => {}
        }
    }
    Known {
        written,
        deletes,
        unknown_delete_us,
    }
}
