//! The statements that a branch may run: small enough that it is known which rows they change.

use crate::{Error, ErrorKind, Result};

/// A value. It takes the type of its column: what has no variant here, such as a numeric, a timestamp or a
/// uuid, is given as text in the database's own notation.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// No value.
    Null,
    /// True or false; 1 or 0 in SQLite.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A binary fraction.
    Real(f64),
    /// Text, and anything else by its text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
}

macro_rules! value_from {
    ($($from:ty => $make:expr;)*) => {$(
        impl From<$from> for Value {
            fn from(value: $from) -> Value {
                $make(value)
            }
        }
    )*};
}

value_from! {
    bool => Value::Bool;
    i64 => Value::Int;
    i32 => |value| Value::Int(i64::from(value));
    f64 => Value::Real;
    String => Value::Text;
    &str => |value: &str| Value::Text(value.to_owned());
    Vec<u8> => Value::Bytes;
    &[u8] => |value: &[u8]| Value::Bytes(value.to_vec());
    uuid::Uuid => |value: uuid::Uuid| Value::Text(value.to_string());
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Value {
        value.map_or(Value::Null, Into::into)
    }
}

/// How a column is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// `=`
    Eq,
    /// `<>`
    Ne,
    /// `<`
    Lt,
    /// `<=`
    Le,
    /// `>`
    Gt,
    /// `>=`
    Ge,
}

impl Op {
    pub(crate) fn sql(self) -> &'static str {
        match self {
            Op::Eq => "=",
            Op::Ne => "<>",
            Op::Lt => "<",
            Op::Le => "<=",
            Op::Gt => ">",
            Op::Ge => ">=",
        }
    }
}

/// One condition of a [`Rows`].
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Condition {
    Compare(String, Op, Value),
    IsNull(String, bool),
    In(String, Vec<Value>),
    /// The primary key, in the order of its columns.
    Key(Vec<Value>),
}

/// Which rows of a table: all conditions hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    pub(crate) table: String,
    pub(crate) conditions: Vec<Condition>,
    all: bool,
}

impl Rows {
    /// Rows of a table: `account`, or `schema.account`. Conditions follow.
    pub fn of(table: impl Into<String>) -> Rows {
        Rows {
            table: table.into(),
            conditions: Vec::new(),
            all: false,
        }
    }

    /// The row with a primary key of one column.
    pub fn key(self, key: impl Into<Value>) -> Rows {
        self.keys([key.into()])
    }

    /// The row with a primary key of several columns, in the key's order.
    pub fn keys(mut self, key: impl IntoIterator<Item = Value>) -> Rows {
        self.conditions
            .push(Condition::Key(key.into_iter().collect()));
        self
    }

    /// Rows whose column compares so with a value. Nothing compares with a null: see [`Rows::is_null`].
    pub fn filter(mut self, column: &str, op: Op, value: impl Into<Value>) -> Rows {
        self.conditions
            .push(Condition::Compare(column.to_owned(), op, value.into()));
        self
    }

    /// Rows whose column has no value.
    pub fn is_null(mut self, column: &str) -> Rows {
        self.conditions
            .push(Condition::IsNull(column.to_owned(), true));
        self
    }

    /// Rows whose column has a value.
    pub fn is_not_null(mut self, column: &str) -> Rows {
        self.conditions
            .push(Condition::IsNull(column.to_owned(), false));
        self
    }

    /// Rows whose column has one of the values.
    pub fn is_in(mut self, column: &str, values: impl IntoIterator<Item = Value>) -> Rows {
        self.conditions.push(Condition::In(
            column.to_owned(),
            values.into_iter().collect(),
        ));
        self
    }

    /// Every row. Without it, rows without a condition are refused.
    pub fn all(mut self) -> Rows {
        self.all = true;
        self
    }

    /// Deletes them.
    pub fn delete(self) -> Delete {
        Delete { rows: self }
    }

    /// Changes them.
    pub fn update(self) -> Update {
        Update {
            rows: self,
            sets: Vec::new(),
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.conditions.is_empty() && !self.all {
            let text = format!("no condition for `{}`: add one, or say all()", self.table);
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        Ok(())
    }
}

/// What an [`Update`] does to a column.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Set {
    To(Value),
    Add(Value),
}

/// Changes rows. The primary key can't be changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    pub(crate) rows: Rows,
    pub(crate) sets: Vec<(String, Set)>,
}

impl Update {
    /// Gives a column a value.
    pub fn set(mut self, column: &str, value: impl Into<Value>) -> Update {
        self.sets.push((column.to_owned(), Set::To(value.into())));
        self
    }

    /// Adds to a column. Of a negative number, subtracts.
    pub fn add(mut self, column: &str, value: impl Into<Value>) -> Update {
        self.sets.push((column.to_owned(), Set::Add(value.into())));
        self
    }
}

/// Deletes rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Delete {
    pub(crate) rows: Rows,
}

/// Inserts rows. A row that is there already is an error of the database.
#[derive(Debug, Clone, PartialEq)]
pub struct Insert {
    pub(crate) table: String,
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<Vec<Value>>,
}

impl Insert {
    /// Into a table one row, by [`Insert::value`].
    pub fn into(table: impl Into<String>) -> Insert {
        Insert {
            table: table.into(),
            columns: Vec::new(),
            rows: vec![Vec::new()],
        }
    }

    /// A column of the row. Columns that are not named get their defaults.
    pub fn value(mut self, column: &str, value: impl Into<Value>) -> Insert {
        self.columns.push(column.to_owned());
        if let Some(row) = self.rows.first_mut() {
            row.push(value.into());
        }
        self
    }

    /// Into a table several rows, each with a value for every column that is named.
    pub fn rows<'a>(
        table: impl Into<String>,
        columns: impl IntoIterator<Item = &'a str>,
        rows: Vec<Vec<Value>>,
    ) -> Insert {
        let columns = columns.into_iter().map(str::to_owned).collect();
        Insert {
            table: table.into(),
            columns,
            rows,
        }
    }

    /// Checks the shape. Rows are sorted, so that two of these wait for each other in no circle.
    pub(crate) fn checked(&self) -> Result<Vec<&[Value]>> {
        let columns = self.columns.len();
        if columns == 0 || self.rows.is_empty() || self.rows.iter().any(|row| row.len() != columns)
        {
            let text = format!(
                "an insert into `{}` needs a value for each column in each row",
                self.table
            );
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let mut rows: Vec<&[Value]> = self.rows.iter().map(Vec::as_slice).collect();
        rows.sort_by_key(|row| format!("{row:?}"));
        Ok(rows)
    }
}
