//! A global transaction: its name, its age, its deadline.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use crate::{Error, ErrorKind, Result};

/// The longest name of a global transaction, a branch, a resource or a home, in bytes.
pub const NAME_MAX: usize = 100;

/// A global transaction. Costs nothing to begin: its first branch is its first write.
///
/// Travels between services as text, `gid;home;began_ms;deadline_ms`, by `Display` and `FromStr`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Global {
    pub(crate) gid: String,
    pub(crate) home: String,
    pub(crate) began_ms: i64,
    pub(crate) deadline_ms: i64,
}

/// What is known of a global transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GlobalStatus {
    /// It has branches, and nothing is decided. Past its deadline it is rolled back.
    Begun,
    /// To commit is decided; some resource may still hold its locks.
    Committing,
    /// To roll back is decided; some resource may still have to be undone.
    RollingBack,
    /// A row was changed by somebody else before it could be undone. An operator decides.
    NeedsOperator,
    /// Committed everywhere.
    Committed,
    /// Undone everywhere.
    RolledBack,
    /// No branch and no decision is known: never begun, or forgotten.
    Unknown,
}

/// What can be decided about a global transaction. What is decided first stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Its changes stay.
    Commit,
    /// Its changes are undone.
    Rollback,
}

impl Global {
    /// A new one. `home` is the name of the place where its outcome is decided.
    pub(crate) fn begin(home: &str, timeout: Duration) -> Global {
        let began_ms = now_ms();
        Global {
            gid: Uuid::now_v7().simple().to_string(),
            home: home.to_owned(),
            began_ms,
            deadline_ms: began_ms.saturating_add(millis(timeout)),
        }
    }

    /// The same work once more, after this one was rolled back because it met another's lock. It keeps its
    /// age, so that in the end it is the oldest, and waits instead of giving way.
    pub fn again(&self, timeout: Duration) -> Global {
        Global {
            began_ms: self.began_ms,
            ..Global::begin(&self.home, timeout)
        }
    }

    /// Its name.
    pub fn gid(&self) -> &str {
        &self.gid
    }

    /// The place where its outcome is decided.
    pub fn home(&self) -> &str {
        &self.home
    }

    /// How long until its deadline, by this machine's clock.
    pub fn left(&self) -> Duration {
        let left = self.deadline_ms.saturating_sub(now_ms());
        Duration::from_millis(u64::try_from(left).unwrap_or(0))
    }

    /// Whether it gives way to nobody but older ones: the smaller age, then the smaller name, is older.
    pub(crate) fn is_older_than(&self, began_ms: i64, gid: &str) -> bool {
        (self.began_ms, self.gid.as_str()) < (began_ms, gid)
    }
}

impl fmt::Display for Global {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Global {
            gid,
            home,
            began_ms,
            deadline_ms,
        } = self;
        write!(f, "{gid};{home};{began_ms};{deadline_ms}")
    }
}

impl FromStr for Global {
    type Err = Error;

    fn from_str(text: &str) -> Result<Global> {
        let bad = || {
            let text =
                format!("`{text}` is no global transaction: `gid;home;began_ms;deadline_ms` is");
            Error::new(ErrorKind::Invalid, text)
        };
        let parts: Vec<&str> = text.split(';').collect();
        let [gid, home, began, deadline] = parts[..] else {
            return Err(bad());
        };
        check_name("global transaction", gid)?;
        check_name("home", home)?;
        Ok(Global {
            gid: gid.to_owned(),
            home: home.to_owned(),
            began_ms: began.parse().map_err(|_| bad())?,
            deadline_ms: deadline.parse().map_err(|_| bad())?,
        })
    }
}

/// Names go into statements and settings: letters, digits and `_ - .` only.
pub(crate) fn check_name(what: &str, name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if !name.is_empty() && name.len() <= NAME_MAX && name.chars().all(fits) {
        return Ok(());
    }
    let text = format!(
        "`{}` can't be the name of a {what}: 1 to {NAME_MAX} letters, digits, `_`, `-` or `.` can",
        name.chars().take(NAME_MAX).collect::<String>()
    );
    Err(Error::new(ErrorKind::Invalid, text))
}

pub(crate) fn now_ms() -> i64 {
    millis(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default(),
    )
}

pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
