//! Names of prepared transactions: whose they are, and what they belong to.

use std::fmt;

use crate::at::check_name;
use crate::{Error, ErrorKind, Result};

/// PostgreSQL takes fewer than 200 bytes.
const LIMIT: usize = 199;
const PREFIX: &str = "quorate";
/// The longest name of a coordinator or a database, in bytes.
const NAME_MAX: usize = 60;

/// The name under which a branch is prepared: `quorate:coordinator:log:transaction:branch`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BranchName {
    /// The coordinator's name.
    pub coordinator: String,
    /// The identity of its decision log.
    pub log: String,
    /// The transaction.
    pub transaction: String,
    /// The database's name.
    pub branch: String,
}

/// Names go into statements, between quotes and colons.
pub(super) fn check(what: &str, name: &str) -> Result<()> {
    check_name(what, name)?;
    if name.len() > NAME_MAX {
        let text = format!("the name of {what} `{name}` is longer than {NAME_MAX} bytes");
        return Err(Error::new(ErrorKind::TooLarge, text));
    }
    Ok(())
}

impl BranchName {
    /// Reads a name; `None` for what others have prepared.
    pub fn parse(text: &str) -> Option<BranchName> {
        let parts: Vec<&str> = text.split(':').collect();
        let [PREFIX, coordinator, log, transaction, branch] = parts[..] else {
            return None;
        };
        let all = [coordinator, log, transaction, branch];
        if all.iter().any(|part| check_name("branch", part).is_err()) {
            return None;
        }
        let [coordinator, log, transaction, branch] = all.map(str::to_owned);
        Some(BranchName {
            coordinator,
            log,
            transaction,
            branch,
        })
    }

    pub(super) fn checked(&self) -> Result<String> {
        let text = self.to_string();
        if text.len() > LIMIT || BranchName::parse(&text).as_ref() != Some(self) {
            let text =
                format!("`{text}` can't name a prepared transaction: at most {LIMIT} bytes can");
            return Err(Error::new(ErrorKind::TooLarge, text));
        }
        Ok(text)
    }
}

impl fmt::Display for BranchName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BranchName {
            coordinator,
            log,
            transaction,
            branch,
        } = self;
        write!(f, "{PREFIX}:{coordinator}:{log}:{transaction}:{branch}")
    }
}
