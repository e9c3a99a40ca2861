//! What the catalog says of a table, and the pieces of SQL that follow from it.

use sqlx::{PgConnection, Row};

use crate::{Error, ErrorKind, Result};

/// Types whose equal values have one text, so that a primary key can be compared by it.
const CANONICAL: &[&str] = &[
    "int2",
    "int4",
    "int8",
    "numeric",
    "text",
    "varchar",
    "bpchar",
    "char",
    "name",
    "uuid",
    "bytea",
    "bool",
    "date",
    "time",
    "timestamp",
    "timestamptz",
    "oid",
];
/// Arguments of one `jsonb_build_object` are limited to 100.
const COLUMNS_AT_ONCE: usize = 40;

#[derive(Debug)]
pub(super) struct Column {
    pub(super) name: String,
    /// Its type without a length, so that a cast does not cut text off.
    cast: String,
    base: String,
    is_generated: bool,
    is_identity_always: bool,
    key: Option<i32>,
    /// A foreign key of another table follows this column on delete, or on update.
    cascades_on_delete: bool,
    cascades_on_update: bool,
    is_deterministic: bool,
}

#[derive(Debug)]
pub(super) struct Table {
    /// Qualified and quoted: the same in every session.
    pub(super) name: String,
    pub(super) columns: Vec<Column>,
    /// Indexes of the primary key's columns, in its order.
    pub(super) key: Vec<usize>,
}

/// `"name"`
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `"schema"."name"` or `"name"`, of what the caller wrote.
fn quoted_path(name: &str) -> Result<String> {
    let fits =
        !name.is_empty() && !name.contains('\0') && name.split('.').all(|part| !part.is_empty());
    let parts: Vec<String> = name.split('.').map(quoted).collect();
    if !fits || parts.len() > 2 {
        let text = format!("`{name}` is no table: `table` or `schema.table` is, without quotes");
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    Ok(parts.join("."))
}

impl Table {
    /// Reads a table by the name that a caller gave.
    pub(super) async fn read(connection: &mut PgConnection, name: &str) -> Result<Table> {
        let path = quoted_path(name)?;
        Table::read_quoted(connection, &path).await
    }

    /// Reads a table by a name that is quoted already.
    pub(super) async fn read_quoted(connection: &mut PgConnection, path: &str) -> Result<Table> {
        let found = sqlx::query(
            "SELECT format('%I.%I', n.nspname, c.relname), c.relkind IN ('r', 'p')
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass($1)",
        );
        let found = found.bind(path).fetch_optional(&mut *connection).await?;
        let found = found.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("there is no table {path} in the search path"),
            )
        })?;
        if !found.try_get::<bool, _>(1)? {
            let text =
                format!("{path} is no table: AT can't undo changes of views and foreign tables");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let rows = sqlx::query(COLUMNS)
            .bind(path)
            .fetch_all(&mut *connection)
            .await?;
        let mut columns = Vec::with_capacity(rows.len());
        for row in rows {
            columns.push(Column {
                name: row.try_get(0)?,
                cast: row.try_get(1)?,
                base: row.try_get(2)?,
                is_generated: row.try_get(3)?,
                is_identity_always: row.try_get(4)?,
                key: row.try_get(5)?,
                cascades_on_delete: row.try_get(6)?,
                cascades_on_update: row.try_get(7)?,
                is_deterministic: row.try_get(8)?,
            });
        }
        Table::new(found.try_get(0)?, columns)
    }

    fn new(name: String, columns: Vec<Column>) -> Result<Table> {
        let mut key: Vec<usize> = (0..columns.len())
            .filter(|&i| columns[i].key.is_some())
            .collect();
        key.sort_by_key(|&i| columns[i].key);
        let refused = |text: String| Err(Error::new(ErrorKind::Unsupported, text));
        if key.is_empty() {
            return refused(format!(
                "{name} has no primary key: AT names rows by it; add one"
            ));
        }
        for column in key.iter().map(|&i| &columns[i]) {
            if !CANONICAL.contains(&column.base.as_str()) || !column.is_deterministic {
                return refused(format!(
                    "the primary key of {name} has column {} of type {}, or a collation, where equal values \
                     differ as text: AT can't lock such rows",
                    column.name, column.base
                ));
            }
        }
        Ok(Table { name, columns, key })
    }

    /// The column of a name.
    pub(super) fn column(&self, name: &str) -> Result<&Column> {
        self.columns
            .iter()
            .find(|column| column.name == name)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::Invalid,
                    format!("{} has no column `{name}`", self.name),
                )
            })
    }

    /// The image of a row, as SQL: every column by its exact text.
    pub(super) fn image(&self, row: &str) -> String {
        let pair = |column: &Column| {
            let name = column.name.replace('\'', "''");
            format!("'{name}', {row}.{}::text", quoted(&column.name))
        };
        let objects = self.columns.chunks(COLUMNS_AT_ONCE).map(|chunk| {
            let pairs: Vec<String> = chunk.iter().map(pair).collect();
            format!("jsonb_build_object({})", pairs.join(", "))
        });
        objects.collect::<Vec<_>>().join(" || ")
    }

    /// The canonical text of a row's primary key, as SQL.
    pub(super) fn key_text(&self, row: &str) -> String {
        let parts = self.key.iter().map(|&i| {
            let column = format!("{row}.{}", quoted(&self.columns[i].name));
            match self.columns[i].base.as_str() {
                "numeric" => format!("trim_scale({column})::text"),
                _ => format!("{column}::text"),
            }
        });
        format!(
            "jsonb_build_array({})::text",
            parts.collect::<Vec<_>>().join(", ")
        )
    }

    /// `t."a" AS k0, t."b" AS k1`
    pub(super) fn key_aliased(&self) -> String {
        let parts = self.key.iter().enumerate();
        let parts = parts.map(|(n, &i)| format!("t.{} AS k{n}", quoted(&self.columns[i].name)));
        parts.collect::<Vec<_>>().join(", ")
    }

    /// `t."a", t."b"`
    pub(super) fn key_columns(&self) -> String {
        let parts = self
            .key
            .iter()
            .map(|&i| format!("t.{}", quoted(&self.columns[i].name)));
        parts.collect::<Vec<_>>().join(", ")
    }

    /// `t."a" = b.k0 AND t."b" = b.k1`
    pub(super) fn key_joined(&self) -> String {
        let parts = self.key.iter().enumerate();
        let parts = parts.map(|(n, &i)| format!("t.{} = b.k{n}", quoted(&self.columns[i].name)));
        parts.collect::<Vec<_>>().join(" AND ")
    }

    /// `t."a" = CAST($1::jsonb ->> 0 AS int8)`: the row whose key's canonical text is a parameter.
    pub(super) fn key_is(&self, parameter: usize) -> String {
        let parts = self.key.iter().enumerate().map(|(n, &i)| {
            let column = &self.columns[i];
            let text = format!("${parameter}::jsonb ->> {n}");
            format!(
                "t.{} = CAST({text} AS {})",
                quoted(&column.name),
                column.cast
            )
        });
        parts.collect::<Vec<_>>().join(" AND ")
    }

    /// Refuses what foreign keys would carry on to other tables, of which there would be no image.
    pub(super) fn check_delete(&self) -> Result<()> {
        match self.columns.iter().find(|column| column.cascades_on_delete) {
            Some(column) => Err(self.cascade("delete", column)),
            None => Ok(()),
        }
    }

    /// Refuses a column that an update must not touch.
    pub(super) fn check_update(&self, column: &Column) -> Result<()> {
        if column.key.is_some() {
            let text = format!(
                "column {} is of the primary key of {}, which names the row: delete and insert instead",
                column.name, self.name
            );
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        if column.cascades_on_update {
            return Err(self.cascade("update", column));
        }
        Ok(())
    }

    fn cascade(&self, what: &str, column: &Column) -> Error {
        let text = format!(
            "a foreign key of another table follows column {} of {} on {what}: AT could not undo that there; \
             change those rows by statements of their own",
            column.name, self.name
        );
        Error::new(ErrorKind::Unsupported, text)
    }

    /// Columns that an image is written to: `(name, value from the image in a parameter)`.
    pub(super) fn written(&self, parameter: usize, is_insert: bool) -> Vec<(String, String)> {
        let columns = self.columns.iter().filter(|column| {
            !column.is_generated
                && (is_insert || (column.key.is_none() && !column.is_identity_always))
        });
        let value = |column: &Column| {
            let name = column.name.replace('\'', "''");
            format!("CAST(${parameter}::jsonb ->> '{name}' AS {})", column.cast)
        };
        columns
            .map(|column| (quoted(&column.name), value(column)))
            .collect()
    }

    /// Whether another session's row of the table is locked: the body of the guard's trigger.
    pub(super) fn cast(&self, column: &Column, parameter: usize) -> String {
        format!("CAST(${parameter}::text AS {})", column.cast)
    }
}

const COLUMNS: &str = "\
    SELECT a.attname, format_type(a.atttypid, -1), y.typname, a.attgenerated <> '',
           a.attidentity = 'a', array_position(i.indkey::int2[], a.attnum),
           EXISTS (SELECT 1 FROM pg_constraint f WHERE f.confrelid = a.attrelid AND f.contype = 'f'
                   AND a.attnum = ANY (f.confkey) AND f.confdeltype IN ('c', 'n', 'd')),
           EXISTS (SELECT 1 FROM pg_constraint f WHERE f.confrelid = a.attrelid AND f.contype = 'f'
                   AND a.attnum = ANY (f.confkey) AND f.confupdtype IN ('c', 'n', 'd')),
           coalesce(c.collisdeterministic, true)
    FROM pg_attribute a JOIN pg_type y ON y.oid = a.atttypid
    LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary
    LEFT JOIN pg_collation c ON c.oid = a.attcollation
    WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";
