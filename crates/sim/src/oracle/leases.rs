//! Nobody reads by lease once another leads.
//!
//! Sharper than what clients see: it is wrong too where nobody wrote meanwhile. Who led in a term and reads by lease
//! in it does so before any later leader appends its first entry.

use super::Leadership;
use crate::history::Violation;

/// A replica reads by lease, as the leader `by`; `newest` is the greatest leadership that there was.
///
/// # Errors
/// Another leads since.
pub fn read(group: u64, by: Leadership, newest: Leadership) -> Result<(), Violation> {
    if newest <= by {
        return Ok(());
    }
    let message = format!(
        "group {group}: replica {} reads by its lease of term {}, though replica {} leads in term {}",
        by.1, by.0, newest.1, newest.0
    );
    Err(Violation::new("leases", message))
}
