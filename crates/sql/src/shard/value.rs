//! Values as they are compared and added up over shards.

use std::cmp::Ordering;

use crate::{Error, ErrorKind, Result};

/// As what a column is read. REQUIRES: the column is of that kind, or any for [`Kind::Text`]; MySQL and SQLite make something
/// of others without a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A whole number of up to 64 bits, with a sign.
    Int,
    /// A floating number of 64 bits.
    Float,
    /// Text, in the order of its bytes, whatever the column's collation: also of dates, UUIDs and the like, as
    /// the database writes them.
    Text,
}

/// A value that came of several shards.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// No value: of a column, or of an aggregate that no row has a value for.
    Null,
    /// A whole number. Sums of 64-bit numbers have room in it.
    Int(i128),
    /// A floating number.
    Float(f64),
    /// Text.
    Text(String),
}

impl Value {
    /// The number, where it is a whole one of up to 64 bits.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Value::Int(number) => i64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// The order of two values of one kind.
    pub(super) fn order(&self, other: &Value, nulls_first: bool) -> Ordering {
        let null = if nulls_first {
            Ordering::Less
        } else {
            Ordering::Greater
        };
        match (self, other) {
            (Value::Null, Value::Null) => Ordering::Equal,
            (Value::Null, _) => null,
            (_, Value::Null) => null.reverse(),
            (Value::Int(a), Value::Int(b)) => a.cmp(b),
            (Value::Float(a), Value::Float(b)) => a.total_cmp(b),
            (Value::Text(a), Value::Text(b)) => a.cmp(b),
            (Value::Int(_), _) | (Value::Float(_), Value::Text(_)) => Ordering::Less,
            (Value::Text(_), _) | (Value::Float(_), Value::Int(_)) => Ordering::Greater,
        }
    }

    /// The sum; no value counts as nothing.
    pub(super) fn plus(self, other: Value) -> Result<Value> {
        match (self, other) {
            (Value::Null, value) | (value, Value::Null) => Ok(value),
            (Value::Int(a), Value::Int(b)) => a.checked_add(b).map(Value::Int).ok_or_else(|| {
                Error::new(ErrorKind::Invalid, "a sum over shards is past 128 bits")
            }),
            (Value::Float(a), Value::Float(b)) => Ok(Value::Float(a + b)),
            (a, b) => Err(Error::new(
                ErrorKind::Corrupt,
                format!("shards answer sums of two kinds: {a:?} and {b:?}"),
            )),
        }
    }

    /// Of two values the one that is `wanted` of the other; one that is there rather than none.
    pub(super) fn pick(self, other: Value, wanted: Ordering) -> Value {
        match (&self, &other) {
            (Value::Null, _) => other,
            (_, Value::Null) => self,
            (a, b) if b.order(a, false) == wanted => other,
            _ => self,
        }
    }
}

/// A sum as a database writes it: a number, or its upper and lower 32 bits' sums apart, `upper:lower`.
pub(crate) fn parse_sum(text: &str) -> Result<Value> {
    let whole = |part: &str| part.parse::<i128>().ok();
    let sum = match text.split_once(':') {
        None => whole(text),
        Some((upper, lower)) => whole(upper)
            .zip(whole(lower))
            .and_then(|(upper, lower)| upper.checked_mul(1 << 32)?.checked_add(lower)),
    };
    sum.map(Value::Int).ok_or_else(|| {
        let text = format!("{text:?} is no sum of whole numbers: is the column of that kind?");
        Error::new(ErrorKind::Corrupt, text)
    })
}
