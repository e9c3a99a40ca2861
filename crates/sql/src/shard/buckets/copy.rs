//! A table's rows on their way between two databases: as JSON, which PostgreSQL writes and reads itself for any type.

use std::collections::BTreeSet;

use sqlx::{PgConnection, Postgres, Row};

use super::sql;
use crate::backend::Backend;
use crate::{Error, ErrorKind, Result};

/// What has to be known of a table to copy its rows.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Table {
    /// As it was named.
    pub name: String,
    quoted: String,
    /// Columns that can be written, and their types.
    columns: Vec<(String, String)>,
    /// Columns of the primary key.
    keys: Vec<String>,
}

/// Rows and their keys, each as JSON.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pub keys: Vec<String>,
    pub rows: Vec<String>,
}

impl Table {
    /// Looks at a table.
    ///
    /// Errors: `Invalid` for one without a primary key or without a column `bucket` of type `int`; `Refused` for one that is
    /// not there.
    pub async fn load(connection: &mut PgConnection, name: &str) -> Result<Table> {
        let quoted = Postgres::quote(name);
        let columns = "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute \
            WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '' \
            ORDER BY attnum";
        let columns = sqlx::query_as(columns).bind(&quoted);
        let columns: Vec<(String, String)> = columns.fetch_all(&mut *connection).await?;
        let keys = "SELECT a.attname::text FROM pg_index i \
            CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k(number, at) \
            JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number \
            WHERE i.indrelid = $1::text::regclass AND i.indisprimary ORDER BY k.at";
        let keys: Vec<String> = sqlx::query_scalar(keys)
            .bind(&quoted)
            .fetch_all(connection)
            .await?;
        let invalid = |why: &str| {
            let text = format!("the table {name} can't be moved: it has no {why}");
            Err(Error::new(ErrorKind::Invalid, text))
        };
        if keys.is_empty() {
            return invalid("primary key");
        }
        if !columns
            .iter()
            .any(|(name, kind)| name == "bucket" && kind == "integer")
        {
            return invalid("column bucket of type int");
        }
        Ok(Table {
            name: name.to_owned(),
            quoted,
            columns,
            keys,
        })
    }

    /// A table with buckets that is not among those that were named.
    pub async fn left_out(
        connection: &mut PgConnection,
        named: &[String],
    ) -> Result<Option<String>> {
        let look = "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid \
            WHERE c.relkind IN ('r', 'p') AND a.attname = 'bucket' AND a.atttypid = 'int4'::regtype \
            AND NOT a.attisdropped AND NOT c.relispartition AND c.relname <> 'quorate_buckets' \
            AND c.relnamespace = ANY (SELECT oid FROM pg_namespace WHERE nspname = ANY (current_schemas(false))) \
            AND c.oid <> ALL (SELECT t::regclass::oid FROM unnest($1::text[]) t) LIMIT 1";
        let named: Vec<String> = named.iter().map(|name| Postgres::quote(name)).collect();
        let look = sqlx::query_scalar(look).bind(named);
        Ok(look.fetch_optional(connection).await?)
    }

    fn keys(&self, of: &str) -> String {
        let keys = self
            .keys
            .iter()
            .map(|key| format!("{of}.{}", quote_one(key)));
        keys.collect::<Vec<_>>().join(", ")
    }

    fn same_keys(&self) -> String {
        let same = |key: &String| format!("t.{0} = k.{0}", quote_one(key));
        self.keys.iter().map(same).collect::<Vec<_>>().join(" AND ")
    }

    fn key_json(&self, of: &str) -> String {
        let pair = |key: &String| {
            let text = key.replace('\'', "''");
            format!("'{text}', {of}.{}", quote_one(key))
        };
        let pairs: Vec<String> = self.keys.iter().map(pair).collect();
        format!("json_build_object({})::text", pairs.join(", "))
    }

    /// The rows of a bucket after a key, in the order of their keys.
    pub async fn batch(
        &self,
        connection: &mut PgConnection,
        bucket: i32,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Lines> {
        let table = &self.quoted;
        let from = format!(
            "({}) > (SELECT {} FROM json_populate_record(NULL::{table}, $2::json) k)",
            self.keys("t"),
            self.keys("k")
        );
        let text = format!(
            "SELECT row_to_json(t)::text, {} FROM {table} t WHERE t.bucket = $1 AND {} ORDER BY {} LIMIT {limit}",
            self.key_json("t"),
            if after.is_some() {
                &from
            } else {
                "$2::text IS NULL"
            },
            self.keys("t")
        );
        let rows = sqlx::query(sql(text)).bind(bucket).bind(after);
        lines_of(rows.fetch_all(connection).await?)
    }

    /// What has become of the rows of these keys: those that are there, in one of the buckets.
    pub async fn find(
        &self,
        connection: &mut PgConnection,
        keys: Vec<String>,
        buckets: &[i32],
    ) -> Result<Lines> {
        let text = format!(
            "SELECT row_to_json(t)::text FROM {0} t JOIN json_populate_recordset(NULL::{0}, $1::json) k ON {1} \
             WHERE t.bucket = ANY($2)",
            self.quoted,
            self.same_keys()
        );
        let rows = sqlx::query_scalar(sql(text))
            .bind(list(&keys))
            .bind(buckets);
        let rows: Vec<String> = rows.fetch_all(connection).await?;
        // Two ways to write one key find one row twice.
        let rows: BTreeSet<String> = rows.into_iter().collect();
        let rows = rows.into_iter().collect();
        Ok(Lines { keys, rows })
    }

    /// Has these keys be these rows, in this transaction.
    pub async fn put(
        &self,
        connection: &mut PgConnection,
        lines: &Lines,
        buckets: &[i32],
    ) -> Result<()> {
        let table = &self.quoted;
        let remove = format!(
            "DELETE FROM {table} t USING json_populate_recordset(NULL::{table}, $1::json) k \
             WHERE {} AND t.bucket = ANY($2)",
            self.same_keys()
        );
        let remove = sqlx::query(sql(remove))
            .bind(list(&lines.keys))
            .bind(buckets);
        remove.execute(&mut *connection).await?;
        let columns = self.column_list();
        let insert = format!(
            "INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE \
             SELECT {columns} FROM json_populate_recordset(NULL::{table}, $1::json)"
        );
        let insert = sqlx::query(sql(insert)).bind(list(&lines.rows));
        insert.execute(connection).await?;
        Ok(())
    }

    /// Whether it has that column, and it can be written.
    pub fn has(&self, column: &str) -> bool {
        self.columns.iter().any(|(name, _)| name == column)
    }

    /// The rows of a bucket whose columns have these values, locked.
    pub async fn matching(
        &self,
        connection: &mut PgConnection,
        bucket: i32,
        (names, values): &(Vec<String>, Vec<String>),
    ) -> Result<Lines> {
        let same = |name: &String| format!("t.{0} = m.{0}", quote_one(name));
        let same: Vec<String> = names.iter().map(same).collect();
        let text = format!(
            "SELECT row_to_json(t)::text, {} FROM {1} t, json_populate_record(NULL::{1}, json_object($2, $3)) m \
             WHERE t.bucket = $1 AND {2} FOR UPDATE OF t",
            self.key_json("t"),
            self.quoted,
            same.join(" AND ")
        );
        let rows = sqlx::query(sql(text)).bind(bucket).bind(names).bind(values);
        lines_of(rows.fetch_all(connection).await?)
    }

    /// Inserts rows with these values changed, into a bucket of a set. Copies of a move, in buckets that are not owned here, make
    /// way: the move finds that their rows have gone.
    pub async fn give(
        &self,
        connection: &mut PgConnection,
        rows: &[String],
        (names, values): &(Vec<String>, Vec<String>),
        (set, bucket): (&str, i32),
    ) -> Result<()> {
        let columns = self.column_list();
        let given = self.given();
        let clear = format!(
            "DELETE FROM {0} t USING ({given}) k WHERE {1} AND t.bucket IN \
             (SELECT bucket FROM quorate_buckets WHERE name = $4 AND state = {2})",
            self.quoted,
            self.same_keys(),
            super::state::ABSENT
        );
        let insert = format!(
            "INSERT INTO {0} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM ({given}) g",
            self.quoted
        );
        let (names, values) = with_bucket(names, values, bucket);
        let rows = list(rows);
        let clear = sqlx::query(sql(clear)).bind(&rows).bind(&names);
        clear
            .bind(&values)
            .bind(set)
            .execute(&mut *connection)
            .await?;
        let insert = sqlx::query(sql(insert)).bind(&rows).bind(&names);
        insert.bind(&values).execute(connection).await?;
        Ok(())
    }

    /// Whether a row of these keys is there in a bucket that is not owned here.
    pub async fn is_left_over(
        &self,
        connection: &mut PgConnection,
        rows: &[String],
        ((names, values), set, bucket): (&(Vec<String>, Vec<String>), &str, i32),
    ) -> Result<bool> {
        let text = format!(
            "SELECT EXISTS (SELECT 1 FROM {0} t, ({1}) k WHERE {2} AND t.bucket IN \
             (SELECT bucket FROM quorate_buckets WHERE name = $4 AND state NOT IN ({3}, {4})))",
            self.quoted,
            self.given(),
            self.same_keys(),
            super::state::OWNED,
            super::state::PARTING
        );
        let (names, values) = with_bucket(names, values, bucket);
        let left = sqlx::query_scalar(sql(text)).bind(list(rows));
        let left = left.bind(names).bind(values).bind(set);
        Ok(left.fetch_one(connection).await?)
    }

    /// Rows of a list, with values changed in them.
    fn given(&self) -> String {
        format!(
            "SELECT r.* FROM json_array_elements($1::json) e CROSS JOIN LATERAL \
             json_populate_record(json_populate_record(NULL::{0}, e.value), json_object($2, $3)) r",
            self.quoted
        )
    }

    /// Removes the rows of a list of keys from a bucket.
    pub async fn take(&self, connection: &mut PgConnection, keys: &str, bucket: i32) -> Result<()> {
        let text = format!(
            "DELETE FROM {0} t USING json_populate_recordset(NULL::{0}, $1::json) k WHERE {1} AND t.bucket = $2",
            self.quoted,
            self.same_keys()
        );
        let remove = sqlx::query(sql(text)).bind(keys).bind(bucket);
        remove.execute(connection).await?;
        Ok(())
    }

    fn column_list(&self) -> String {
        let columns = self.columns.iter().map(|(name, _)| quote_one(name));
        columns.collect::<Vec<_>>().join(", ")
    }

    /// Removes some rows of the buckets; answers how many. In two partitions rows may have one `ctid`: so the bucket is
    /// asked for twice.
    pub async fn remove(&self, connection: &mut PgConnection, buckets: &[i32]) -> Result<u64> {
        let text = format!(
            "DELETE FROM {0} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {0} WHERE bucket = ANY($1) LIMIT 1000)) \
             AND bucket = ANY($1)",
            self.quoted
        );
        let removed = sqlx::query(sql(text)).bind(buckets).execute(connection);
        Ok(removed.await?.rows_affected())
    }

    /// Stands for all rows of a bucket.
    pub async fn digest(&self, connection: &mut PgConnection, bucket: i32) -> Result<String> {
        let text = format!(
            "SELECT count(*)::text || ':' || md5(coalesce(string_agg(line, '' ORDER BY line), '')) \
             FROM (SELECT md5(t::text) COLLATE \"C\" AS line FROM {} t WHERE t.bucket = $1) lines",
            self.quoted
        );
        let digest = sqlx::query_scalar(sql(text)).bind(bucket);
        Ok(digest.fetch_one(connection).await?)
    }

    /// Statements that have the keys of all rows noted that are changed in these buckets from now on. They wait for the
    /// transactions that have changed the table.
    pub fn note_on(&self, id: i64, part: usize, buckets: &[i32]) -> String {
        let (name, table) = (trigger(id, part), &self.quoted);
        let buckets: Vec<String> = buckets.iter().map(i32::to_string).collect();
        let buckets = format!("'{{{}}}'::int[]", buckets.join(","));
        let note = |row: &str| {
            format!(
                "IF {row}.bucket = ANY ({buckets}) THEN \
                 INSERT INTO quorate_bucket_changes (move, part, key) VALUES ({id}, {part}, {}); END IF;",
                self.key_json(row)
            )
        };
        format!(
            "CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql \
             SET search_path FROM CURRENT AS $quorate$ BEGIN \
             IF TG_OP <> 'DELETE' THEN {} END IF; IF TG_OP <> 'INSERT' THEN {} END IF; RETURN NULL; END $quorate$; \
             DROP TRIGGER IF EXISTS {name} ON {table}; \
             CREATE TRIGGER {name} AFTER INSERT OR UPDATE OR DELETE ON {table} \
             FOR EACH ROW EXECUTE FUNCTION {name}()",
            note("NEW"),
            note("OLD")
        )
    }

    /// Ends that.
    pub fn note_off(&self, id: i64, part: usize) -> String {
        let (name, table) = (trigger(id, part), &self.quoted);
        format!("DROP TRIGGER IF EXISTS {name} ON {table}; DROP FUNCTION IF EXISTS {name}()")
    }
}

/// Rows and their keys, as they were asked for.
fn lines_of(rows: Vec<sqlx::postgres::PgRow>) -> Result<Lines> {
    let mut lines = Lines::default();
    for row in rows {
        lines.rows.push(row.try_get(0)?);
        lines.keys.push(row.try_get(1)?);
    }
    Ok(lines)
}

fn trigger(id: i64, part: usize) -> String {
    format!("quorate_move_{id}_{part}")
}

pub(super) fn list(lines: &[String]) -> String {
    format!("[{}]", lines.join(","))
}

/// A column's name, which may have a dot.
pub(super) fn quote_one(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Names and values that change, the bucket among them.
fn with_bucket<'n>(
    names: &'n [String],
    values: &[String],
    bucket: i32,
) -> (Vec<&'n str>, Vec<String>) {
    let names = names.iter().map(String::as_str).chain(["bucket"]);
    let values = values.iter().cloned().chain([bucket.to_string()]);
    (names.collect(), values.collect())
}
