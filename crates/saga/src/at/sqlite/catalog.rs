//! What the catalog says of a table, and how its rows become images.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::failed;
use crate::at::Value;
use crate::at::image::Image;
use crate::{Error, ErrorKind, Result};

#[derive(Debug)]
pub(super) struct Column {
    pub(super) name: String,
    /// From 1, in the order of the primary key; 0 is not in it.
    key: i64,
    /// A foreign key of another table follows this column on update.
    cascades_on_update: bool,
}

#[derive(Debug)]
pub(super) struct Table {
    /// As it was made: names are the same in every case of letters.
    pub(super) name: String,
    /// Without those that are computed.
    pub(super) columns: Vec<Column>,
    /// Indexes of the primary key's columns, in its order.
    pub(super) key: Vec<usize>,
    /// A trigger may change a row after `RETURNING` has shown it.
    pub(super) has_triggers: bool,
    cascades_on_delete: bool,
}

/// `"name"`
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl Table {
    pub(super) async fn read(connection: &mut SqliteConnection, name: &str) -> Result<Table> {
        let found = sqlx::query(
            "SELECT name, type, sql FROM sqlite_master WHERE lower(name) = lower($1) AND type IN ('table', 'view')",
        );
        let found = found
            .bind(name)
            .fetch_optional(&mut *connection)
            .await
            .map_err(failed)?;
        let missing = || Error::new(ErrorKind::NotFound, format!("there is no table `{name}`"));
        let found = found.ok_or_else(missing)?;
        let (name, kind, sql): (String, String, String) =
            (found.try_get(0)?, found.try_get(1)?, found.try_get(2)?);
        if kind != "table" || sql.to_ascii_uppercase().starts_with("CREATE VIRTUAL") {
            let text = format!("{name} is a view or virtual: AT can't undo its changes");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let referring = referring(connection, &name).await?;
        let read = "SELECT name, pk FROM pragma_table_xinfo($1) WHERE hidden = 0 ORDER BY cid";
        let rows = sqlx::query(read)
            .bind(&name)
            .fetch_all(&mut *connection)
            .await
            .map_err(failed)?;
        let mut columns = Vec::with_capacity(rows.len());
        for row in rows {
            let name: String = row.try_get(0)?;
            let key = row.try_get(1)?;
            let follows = |(to, on_update, _): &(String, bool, bool)| {
                *on_update && (to.eq_ignore_ascii_case(&name) || (to.is_empty() && key > 0))
            };
            let cascades_on_update = referring.iter().any(follows);
            columns.push(Column {
                name,
                key,
                cascades_on_update,
            });
        }
        let triggers = "SELECT count(*) FROM sqlite_master WHERE type = 'trigger' AND tbl_name = $1
             AND name NOT LIKE 'quorate_at_guard_%'";
        let triggers = sqlx::query(triggers)
            .bind(&name)
            .fetch_one(&mut *connection)
            .await;
        let triggers: i64 = triggers.map_err(failed)?.try_get(0)?;
        let mut table = Table {
            key: (0..columns.len()).filter(|&i| columns[i].key > 0).collect(),
            name,
            columns,
            has_triggers: triggers > 0,
            cascades_on_delete: referring.iter().any(|(_, _, on_delete)| *on_delete),
        };
        table.key.sort_by_key(|&i| table.columns[i].key);
        table.check_key(connection).await?;
        Ok(table)
    }

    async fn check_key(&self, connection: &mut SqliteConnection) -> Result<()> {
        let refused = |text: String| Err(Error::new(ErrorKind::Unsupported, text));
        if self.key.is_empty() {
            return refused(format!(
                "{} has no primary key: AT names rows by it; add one",
                self.name
            ));
        }
        let collated = "SELECT count(*) FROM pragma_index_list($1) l, pragma_index_xinfo(l.name) x
             WHERE l.origin = 'pk' AND x.key = 1 AND x.coll <> 'BINARY'";
        let collated = sqlx::query(collated)
            .bind(&self.name)
            .fetch_one(connection)
            .await;
        let collated: i64 = collated.map_err(failed)?.try_get(0)?;
        if collated > 0 {
            let text = "has a collation other than BINARY, so that different keys are one";
            return refused(format!(
                "the primary key of {} {text}: AT can't lock such rows",
                self.name
            ));
        }
        Ok(())
    }

    pub(super) fn column(&self, name: &str) -> Result<&Column> {
        let found = self
            .columns
            .iter()
            .find(|column| column.name.eq_ignore_ascii_case(name));
        found.ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                format!("{} has no column `{name}` to write", self.name),
            )
        })
    }

    /// The canonical text of a row's primary key, as SQL: the same here and in the guard's triggers.
    pub(super) fn key_text(&self, row: &str) -> String {
        let parts = self.key.iter().map(|&i| {
            let column = format!("{row}{}", quoted(&self.columns[i].name));
            format!(
                "CASE typeof({column}) WHEN 'text' THEN '''' || {column} || ''''
                 WHEN 'blob' THEN 'X''' || hex({column}) || '''' ELSE {column} END"
            )
        });
        format!("json_array({})", parts.collect::<Vec<_>>().join(", "))
    }

    /// What a row is read as by [`Table::row_of`].
    pub(super) fn selected(&self) -> String {
        let parts = self.columns.iter().map(|column| {
            let name = quoted(&column.name);
            format!("typeof({name}), {name}")
        });
        format!(
            "{}, {}",
            self.key_text(""),
            parts.collect::<Vec<_>>().join(", ")
        )
    }

    /// The key and the image of a row.
    pub(super) fn row_of(&self, row: &SqliteRow) -> Result<(String, Image)> {
        let mut image = Image::new();
        for (i, column) in self.columns.iter().enumerate() {
            let at = 2 + i * 2;
            let kind: String = row.try_get(at - 1)?;
            let text = match kind.as_str() {
                "null" => None,
                "integer" => Some(row.try_get_unchecked::<i64, _>(at)?.to_string()),
                "real" => Some(format!("{:?}", row.try_get_unchecked::<f64, _>(at)?)),
                "text" => Some(format!("'{}'", row.try_get_unchecked::<String, _>(at)?)),
                _ => Some(format!(
                    "X'{}'",
                    hex(&row.try_get_unchecked::<Vec<u8>, _>(at)?)
                )),
            };
            if self.key.contains(&i) && matches!(kind.as_str(), "null" | "real") {
                let text = format!(
                    "a row of {} has {} in its primary key, which is no name for it: use another key",
                    self.name,
                    if kind == "null" {
                        "a null"
                    } else {
                        "a fraction"
                    }
                );
                return Err(Error::new(ErrorKind::Unsupported, text));
            }
            image.insert(column.name.clone(), text);
        }
        Ok((row.try_get(0)?, image))
    }

    pub(super) fn key_columns(&self) -> String {
        let parts = self.key.iter().map(|&i| quoted(&self.columns[i].name));
        parts.collect::<Vec<_>>().join(", ")
    }

    /// `"a" IS ? AND "b" IS ?`
    pub(super) fn key_is(&self) -> String {
        let parts = self
            .key
            .iter()
            .map(|&i| format!("{} IS ?", quoted(&self.columns[i].name)));
        parts.collect::<Vec<_>>().join(" AND ")
    }

    /// The primary key in an image.
    pub(super) fn key_of(&self, image: &Image) -> Result<Vec<Value>> {
        self.key
            .iter()
            .map(|&i| value_of(image.get(&self.columns[i].name)))
            .collect()
    }

    pub(super) fn check_delete(&self) -> Result<()> {
        if self.cascades_on_delete {
            return Err(self.cascade("delete", "of its rows"));
        }
        Ok(())
    }

    pub(super) fn check_update(&self, column: &Column) -> Result<()> {
        if column.key > 0 {
            let text = format!(
                "column {} is of the primary key of {}, which names the row: delete and insert instead",
                column.name, self.name
            );
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        if column.cascades_on_update {
            return Err(self.cascade("update", &format!("of column {}", column.name)));
        }
        Ok(())
    }

    fn cascade(&self, what: &str, of: &str) -> Error {
        let text = format!(
            "a foreign key of another table follows a {what} {of} in {}: AT could not undo that there; \
             change those rows by statements of their own",
            self.name
        );
        Error::new(ErrorKind::Unsupported, text)
    }
}

/// Foreign keys of others that follow this table: the column, or an empty name for the primary key; whether on
/// update; whether on delete.
async fn referring(
    connection: &mut SqliteConnection,
    table: &str,
) -> Result<Vec<(String, bool, bool)>> {
    let read = "SELECT coalesce(f.\"to\", ''), f.on_update NOT IN ('NO ACTION', 'RESTRICT'),
            f.on_delete NOT IN ('NO ACTION', 'RESTRICT')
         FROM sqlite_master m, pragma_foreign_key_list(m.name) f
         WHERE m.type = 'table' AND lower(f.\"table\") = lower($1)";
    let rows = sqlx::query(read)
        .bind(table)
        .fetch_all(connection)
        .await
        .map_err(failed)?;
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)))
        .collect()
}

/// A value from its text in an image.
pub(super) fn value_of(text: Option<&Option<String>>) -> Result<Value> {
    let Some(Some(text)) = text else {
        return Ok(Value::Null);
    };
    let corrupt = || {
        Error::new(
            ErrorKind::Corrupt,
            format!("an image has `{text}`, which is no value"),
        )
    };
    let inner = |from: usize| {
        text.get(from..text.len().saturating_sub(1))
            .ok_or_else(corrupt)
    };
    if text.starts_with('\'') {
        return Ok(Value::Text(inner(1)?.to_owned()));
    }
    if text.starts_with("X'") {
        let digits = inner(2)?.as_bytes();
        let byte = |pair: &[u8]| {
            let pair = std::str::from_utf8(pair).ok()?;
            u8::from_str_radix(pair, 16).ok()
        };
        let bytes: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
        return Ok(Value::Bytes(bytes.ok_or_else(corrupt)?));
    }
    if let Ok(value) = text.parse() {
        return Ok(Value::Int(value));
    }
    text.parse().map(Value::Real).map_err(|_| corrupt())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}
