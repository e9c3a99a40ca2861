//! Versions of the source, and what a fill needs of it.

use quorate_kv::{Domain, Token};

/// A place in the source's history. Any version of a later epoch is above all of an earlier one.
///
/// Of a [`Kv`](quorate_kv::Kv) the epoch is the incarnation and `n` the key-value store's own version; of a
/// database they are, say, timeline and position in its log; of a table with a version column, 0 and that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Version {
    /// Which history: raised when a failover or a restore may have taken back what was committed.
    pub epoch: u32,
    /// The place in it, never decreasing for a key.
    pub n: u64,
}

impl Version {
    /// Below every other: demands nothing.
    pub const ZERO: Version = Version { epoch: 0, n: 0 };

    /// A version of the first epoch.
    pub const fn new(n: u64) -> Self {
        Version { epoch: 0, n }
    }

    /// The first of an epoch.
    pub const fn epoch(epoch: u32) -> Self {
        Version { epoch, n: 0 }
    }

    /// The version that a token names.
    pub fn of(token: &Token) -> Self {
        Version {
            epoch: token.domain.incarnation,
            n: token.version,
        }
    }

    /// The token that names this version in a source's domain, whose incarnation gives way to the epoch.
    pub fn token(self, domain: Domain) -> Token {
        Token {
            domain: Domain {
                incarnation: self.epoch,
                ..domain
            },
            version: self.n,
        }
    }
}

/// How new a source's answer has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Need {
    /// It is known that the source has been at this version: an older answer is refused.
    pub at_least: Version,
    /// The answer must have all that was committed before it was asked: no replica that may lag.
    pub latest: bool,
}

impl Need {
    /// Anything will do.
    pub const NOTHING: Need = Need {
        at_least: Version::ZERO,
        latest: false,
    };

    /// The newest state.
    pub const LATEST: Need = Need {
        at_least: Version::ZERO,
        latest: true,
    };

    /// At least this version.
    pub const fn at_least(version: Version) -> Self {
        Need {
            at_least: version,
            latest: false,
        }
    }

    /// What satisfies both.
    pub fn and(self, other: Need) -> Need {
        Need {
            at_least: self.at_least.max(other.at_least),
            latest: self.latest || other.latest,
        }
    }
}
