//! No acknowledged write is lost: what is read in the end is the last acknowledged write of a key, or a later
//! one.

use crate::history::{Action, History, Level, Op, Outcome, Violation};

/// Judges the last linearizable read of each key.
pub fn check(history: &History) -> Result<(), Violation> {
    history
        .keys()
        .into_iter()
        .try_for_each(|key| check_key(key, &history.of(key)))
}

fn check_key(key: u64, ops: &[Op]) -> Result<(), Violation> {
    let is_read = |op: &&Op| op.action == Action::Read(Level::Linearizable) && op.is_known();
    let Some(last) = ops.iter().filter(is_read).max_by_key(|op| op.began_us) else {
        return Ok(());
    };
    let Outcome::Done { value, version, .. } = last.outcome else {
        return Ok(());
    };
    let mut newest = (0, 0);
    let mut unknown_delete = false;
    for op in ops.iter().filter(|op| op.is_write()) {
        match op.outcome {
            Outcome::Done {
                applied: true,
                value,
                version,
            } if op.ended_us < last.began_us => newest = newest.max((version, value)),
            Outcome::Done { .. } => {}
            Outcome::Unknown => unknown_delete |= op.written() == Some(0),
        }
    }
    let lost = match value {
        // Deleted, by the newest write or by one of unknown outcome.
        0 => newest.1 != 0 && !unknown_delete && !deleted_later(ops, newest.0),
        _ => version < newest.0 || (version == newest.0 && value != newest.1),
    };
    if lost {
        let message = format!(
            "key {key}: value {} of version {} was acknowledged, in the end there is value {value} of \
             version {version}",
            newest.1, newest.0
        );
        return Err(Violation::new("acknowledged_kept", message));
    }
    Ok(())
}

fn deleted_later(ops: &[Op], than: u64) -> bool {
    ops.iter().any(|op| match op.outcome {
        Outcome::Done {
            applied: true,
            value: 0,
            version,
        } => op.is_write() && version >= than,
        _ => false,
    })
}
