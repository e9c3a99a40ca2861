//! What a reader asks for, and what it gets.

use std::time::Duration;

use bytes::Bytes;
use quorate_kv::Token;

use crate::Version;

/// How new a read has to be. A level that can't be met in a tier goes to the source, or fails; it is never
/// weakened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Level {
    /// What is there: no older than what this cache was told of by an acknowledged invalidation.
    #[default]
    Any,
    /// What was the source's newest state at most so long before the read began.
    BoundedStale(Duration),
    /// What has at least the write that gave this token.
    AtLeast(Token),
    /// All that was committed before the read began: asks the source, together with others that wait.
    Linearizable,
}

/// Where an answer comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The tier in this process.
    Local,
    /// The tier that processes share.
    Remote,
    /// The source.
    Source,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read<V = Bytes> {
    /// The value; `None` when the source has none.
    pub value: Option<V>,
    /// The version at which the source got it; where there is no value, one at which there was none.
    pub version: Version,
    /// A version at which it was still the newest.
    pub seen: Version,
    /// Where it comes from.
    pub tier: Origin,
    /// How long ago it was the newest for sure; `None` when nobody knows, as of what a lagging replica gave.
    pub age: Option<Duration>,
    /// Whether it has expired and was served all the same, within what the options and the level allow.
    pub is_stale: bool,
}
