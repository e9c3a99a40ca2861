//! Prefixes of keys, which filters know beside the keys themselves.
//!
//! A table's filter holds, for each of its keys that has a prefix, a hash of that. A scan whose bounds lie
//! within one prefix then goes around tables that have no key of it. Which extractor a table was made with
//! is written in its properties, and it alone is asked: with another one after the next opening, tables
//! made before stay as useful as they were. No extractor makes an answer wrong: a scan skips a table only if
//! all keys between its bounds have, by the table's own extractor, a prefix that the table does not hold.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::key::KEYSPACE_BYTES;
use crate::planted::{self, Bug};

/// What the prefix of a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Prefix {
    /// No key has one.
    #[default]
    None,
    /// The first so many bytes, at least one; a shorter key has none.
    Fixed(u16),
    /// All up to the first such byte and with it; a key without it has none.
    Delimiter(u8),
}

/// Tells the hash of a prefix from that of the same bytes as a key.
const SEED: u64 = 0x7072_6566_6978;

impl Prefix {
    /// The prefix of a key, if it has one.
    pub fn of<'a>(&self, key: &'a [u8]) -> Option<&'a [u8]> {
        match self {
            Prefix::None => None,
            Prefix::Fixed(length) => key.get(..usize::from(*length)),
            Prefix::Delimiter(byte) => {
                let at = key.iter().position(|b| b == byte)?;
                key.get(..=at)
            }
        }
    }

    /// The prefix of a place, the keyspace with it.
    pub(crate) fn of_place<'a>(&self, place: &'a [u8]) -> Option<&'a [u8]> {
        let prefix = self.of(place.get(KEYSPACE_BYTES..)?)?;
        place.get(..KEYSPACE_BYTES + prefix.len())
    }

    /// The prefix that all places have from `lower` to below `upper`, if there is one.
    pub(crate) fn of_range<'a>(&self, lower: &'a [u8], upper: Option<&[u8]>) -> Option<&'a [u8]> {
        let prefix = self.of_place(lower)?;
        // Every place from `lower` on and before this begins with the prefix. No upper bound that is
        // given may lie behind: what the prefix of `upper` is says nothing.
        let end = successor(prefix)?;
        let within = upper.is_some_and(|upper| upper <= end.as_slice());
        (within || planted::is_on(Bug::PrefixIgnoresUpperBound)).then_some(prefix)
    }

    /// As the properties of a table have it.
    pub(crate) fn code(self) -> u64 {
        match self {
            Prefix::None => 0,
            Prefix::Fixed(length) => 1 | u64::from(length) << 8,
            Prefix::Delimiter(byte) => 2 | u64::from(byte) << 8,
        }
    }

    pub(crate) fn from_code(code: u64) -> Option<Prefix> {
        match (code & 0xff, code >> 8) {
            (0, 0) => Some(Prefix::None),
            (1, length @ 1..) => Some(Prefix::Fixed(u16::try_from(length).ok()?)),
            (2, byte) => Some(Prefix::Delimiter(u8::try_from(byte).ok()?)),
            _ => None,
        }
    }
}

/// The first place behind all that begin so; `None` if there is none.
fn successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while end.last() == Some(&0xff) {
        end.pop();
    }
    *end.last_mut()? += 1;
    Some(end)
}

/// The hash that filters have of a prefix.
pub(crate) fn hash_prefix(prefix: &[u8]) -> u64 {
    xxh3_64_with_seed(prefix, SEED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::IterOptions;

    #[test]
    fn prefix_of_keys_is_what_it_says() {
        assert_eq!(Prefix::None.of(b"abc"), None);
        assert_eq!(Prefix::Fixed(2).of(b"abc"), Some(&b"ab"[..]));
        assert_eq!(Prefix::Fixed(3).of(b"ab"), None);
        assert_eq!(Prefix::Delimiter(b'/').of(b"a/b/c"), Some(&b"a/"[..]));
        assert_eq!(Prefix::Delimiter(b'/').of(b"abc"), None);
        for prefix in [Prefix::None, Prefix::Fixed(9), Prefix::Delimiter(255)] {
            assert_eq!(Prefix::from_code(prefix.code()), Some(prefix));
        }
        for nonsense in [3, 1, 0x100, 1 | 0x1_0000 << 8, 2 | 0x100 << 8] {
            assert_eq!(Prefix::from_code(nonsense), None, "{nonsense:x}");
        }
    }

    #[test]
    fn prefix_of_a_range_is_that_of_every_key_in_it() {
        let of = |prefix: Prefix, range: IterOptions| {
            let place = |key: &[u8]| [&[0, 7], key].concat();
            let (lower, upper) = (place(&range.lower), range.upper.as_deref().map(place));
            prefix
                .of_range(&lower, upper.as_deref())
                .map(<[u8]>::to_vec)
        };
        let fixed = Prefix::Fixed(2);
        let ab = Some(vec![0, 7, b'a', b'b']);
        assert_eq!(of(fixed, IterOptions::prefix(b"ab")), ab);
        assert_eq!(of(fixed, IterOptions::prefix(b"abc")), ab);
        assert_eq!(of(fixed, IterOptions::range(b"ab\x01", b"ac")), ab);
        assert_eq!(of(fixed, IterOptions::prefix(b"a")), None);
        assert_eq!(of(fixed, IterOptions::range(b"ab", b"ac\0")), None);
        assert_eq!(of(fixed, IterOptions::default()), None);
        let open = IterOptions {
            lower: b"ab".to_vec(),
            ..IterOptions::default()
        };
        assert_eq!(of(fixed, open), None);
        let word = Prefix::Delimiter(b'/');
        let a = Some(vec![0, 7, b'a', b'/']);
        assert_eq!(of(word, IterOptions::prefix(b"a/")), a);
        assert_eq!(of(word, IterOptions::range(b"a/x", b"a0")), a);
        assert_eq!(of(word, IterOptions::range(b"a/x", b"a1")), None);
        assert_eq!(of(word, IterOptions::prefix(b"a")), None);
    }
}
