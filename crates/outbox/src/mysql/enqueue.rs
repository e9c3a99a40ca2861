//! Enqueuing in the caller's own transaction.
//!
//! The part's counter first: its row lock makes ids grow in the order of commits, and keeps everything else that
//! is written for the part free of waiting. Then the counters of the keys, then the rows.

use std::collections::BTreeMap;

use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, Connection, MySql, MySqlConnection, QueryBuilder};

use super::MySqlOutbox;
use super::session::{KEY_BYTES, NO_SAVEPOINT, fits, number, run};
use crate::message::headers_to_text;
use crate::{Enqueued, Error, ErrorKind, Message, Result};

/// For database layers other than sqlx, such as SeaORM: run these in your transaction, never outside of one, in
/// this order, and roll the transaction back if one fails. `NEXT` gives the id for `INSERT`, and locks the part.
/// The number that it gives is the statement's last insert id (`LAST_INSERT_ID()`). Values: part.
pub const MYSQL_NEXT: &str =
    "UPDATE quorate_outbox_counter SET last_id = LAST_INSERT_ID(last_id + 1) WHERE part = ?";
/// See [`MYSQL_NEXT`]. Only for messages with an order: gives the number, as its last insert id, for `INSERT`.
/// Values: part, topic, key.
pub const MYSQL_SEQ: &str = "\
    INSERT INTO quorate_outbox_key (part, topic, `key`, n) VALUES (?, ?, ?, LAST_INSERT_ID(1))
    ON DUPLICATE KEY UPDATE n = LAST_INSERT_ID(n + 1)";
/// See [`MYSQL_NEXT`]. Values: part, id, message id (16 bytes), topic, key, seq, headers, payload, and how many
/// bytes headers and payload are.
pub const MYSQL_INSERT: &str = "\
    INSERT INTO quorate_outbox
        (part, id, message_id, topic, `key`, seq, headers, payload, bytes, created)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, UTC_TIMESTAMP(6))";

const INSERT_ALL: &str = "\
    INSERT INTO quorate_outbox
        (part, id, message_id, topic, `key`, seq, headers, payload, bytes, created) ";
/// Without a transaction the second statement fails, before anything is written. And a failure half way is
/// taken back to here, so that no number of a key is without its message.
const BEGIN: &str = "SAVEPOINT quorate_outbox; ROLLBACK TO SAVEPOINT quorate_outbox";
const BACK: &str = "ROLLBACK TO SAVEPOINT quorate_outbox";
/// At most so many messages in one statement.
const ROWS: usize = 256;
/// What a statement has beside payload, headers and key.
const SLACK: usize = 1024;

impl MySqlOutbox {
    /// Writes a message in the caller's transaction: it is sent if and when that commits.
    ///
    /// It locks the message's part until the transaction ends: enqueue late in the transaction, and several
    /// messages by [`MySqlOutbox::enqueue_all`]. It changes what `LAST_INSERT_ID()` answers. On a MariaDB with
    /// `innodb_snapshot_isolation` (on by default in 11.8), begin the transaction at READ COMMITTED: at
    /// REPEATABLE READ whatever was read before makes it fail whenever another has enqueued meanwhile.
    ///
    /// # Errors
    /// `Invalid`, `TooLarge` before anything is written; `Invalid` also outside of a transaction that was
    /// begun by sqlx. `Unavailable` and `Schema` of the database, after which the transaction has to be rolled
    /// back: a deadlock or a wait that took too long can be tried again with all of it.
    pub async fn enqueue(&self, tx: &mut MySqlConnection, message: &Message) -> Result<Enqueued> {
        self.check(message)?;
        let part = message.part(self.inner.parts);
        let gave = self.write(tx, part, &[message]).await?;
        gave.first().copied().ok_or_else(no_counter)
    }

    /// Writes several messages, locking parts in one order for everybody, so that no two transactions that call
    /// it once wait for each other in a circle. Messages of one key keep their order.
    ///
    /// # Errors
    /// As [`MySqlOutbox::enqueue`].
    pub async fn enqueue_all(&self, tx: &mut MySqlConnection, messages: &[Message]) -> Result<()> {
        let mut parts: BTreeMap<u16, Vec<&Message>> = BTreeMap::new();
        for message in messages {
            self.check(message)?;
            if message.ordered {
                let part = message.part(self.inner.parts);
                parts.entry(part).or_default().push(message);
            }
        }
        // Messages without order may be in any part: so they are in one that is locked anyway.
        let mut free = messages
            .iter()
            .filter(|message| !message.ordered)
            .peekable();
        if let Some(first) = free.peek() {
            let locked = parts.keys().next().copied();
            let part = locked.unwrap_or_else(|| first.part(self.inner.parts));
            parts.entry(part).or_default().extend(free);
        }
        for (part, messages) in parts {
            let mut rest = messages.as_slice();
            while !rest.is_empty() {
                let (now, later) = rest.split_at(self.fitting(rest));
                self.write(tx, part, now).await?;
                rest = later;
            }
        }
        Ok(())
    }

    /// The part of a message, for those who run [`MYSQL_INSERT`] themselves. Checks the message too.
    ///
    /// # Errors
    /// `Invalid`, `TooLarge`.
    pub fn part(&self, message: &Message) -> Result<u16> {
        self.check(message)?;
        Ok(message.part(self.inner.parts))
    }

    /// The headers of a message as [`MYSQL_INSERT`] stores them.
    pub fn headers(&self, message: &Message) -> String {
        headers_to_text(&message.headers)
    }

    fn check(&self, message: &Message) -> Result<()> {
        self.limits.check(message)?;
        fits("key", message.key.as_deref().unwrap_or_default(), KEY_BYTES)?;
        let (size, packet) = (size(message), self.inner.packet);
        if size <= packet {
            return Ok(());
        }
        let text = format!(
            "the message: {size} bytes, more than the server's max_allowed_packet of {packet}"
        );
        Err(Error::new(ErrorKind::TooLarge, text))
    }

    /// How many of the messages go into one statement.
    fn fitting(&self, messages: &[&Message]) -> usize {
        let mut bytes = 0;
        let fit = messages.iter().take(ROWS).take_while(|message| {
            bytes += size(message);
            bytes <= self.inner.packet / 2
        });
        fit.count().max(1)
    }

    async fn write(
        &self,
        tx: &mut MySqlConnection,
        part: u16,
        messages: &[&Message],
    ) -> Result<Vec<Enqueued>> {
        if !tx.is_in_transaction() {
            return Err(no_transaction());
        }
        let written = self.write_rows(tx, part, messages).await;
        if written.is_err() {
            // If this fails too, there is no transaction any more.
            let _ = run(tx, BACK.to_owned()).await;
        }
        written
    }

    async fn write_rows(
        &self,
        tx: &mut MySqlConnection,
        part: u16,
        messages: &[&Message],
    ) -> Result<Vec<Enqueued>> {
        let mut keys: BTreeMap<(&str, &str), i64> = BTreeMap::new();
        for message in messages.iter().filter(|message| message.ordered) {
            *keys.entry(stream(message)).or_default() += 1;
        }
        let (mut id, mut numbers) = draw(tx, part, messages.len(), &keys).await?;
        let mut gave = Vec::with_capacity(messages.len());
        for message in messages {
            let number = numbers.get_mut(&stream(message));
            let seq = number.filter(|_| message.ordered).map(|number| {
                *number += 1;
                *number
            });
            gave.push(Enqueued { part, id, seq });
            id += 1;
        }
        insert(tx, &gave, messages).await?;
        Ok(gave)
    }
}

/// Raises the counters of the part and of its keys, in one round trip. Answers the first id, and for each key the
/// number before its first.
async fn draw<'a>(
    tx: &mut MySqlConnection,
    part: u16,
    count: usize,
    keys: &BTreeMap<(&'a str, &'a str), i64>,
) -> Result<(i64, BTreeMap<(&'a str, &'a str), i64>)> {
    let mut text = format!(
        "{BEGIN}; UPDATE quorate_outbox_counter SET last_id = LAST_INSERT_ID(last_id + {count})
         WHERE part = {part}"
    );
    for ((topic, key), count) in keys {
        // Only numbers and hexadecimal digits are put in.
        let (topic, key) = (hex(topic), hex(key));
        text.push_str(&format!(
            "; INSERT INTO quorate_outbox_key (part, topic, `key`, n)
             VALUES ({part}, x'{topic}', x'{key}', LAST_INSERT_ID({count}))
             ON DUPLICATE KEY UPDATE n = LAST_INSERT_ID(n + {count})"
        ));
    }
    let mut results = Vec::with_capacity(keys.len() + 3);
    {
        let mut found = sqlx::raw_sql(AssertSqlSafe(text)).execute_many(&mut *tx);
        while let Some(one) = found.try_next().await.map_err(without_transaction)? {
            results.push(one);
        }
    }
    let mut results = results.into_iter().skip(2);
    let drawn = results.next().filter(|one| one.rows_affected() == 1);
    let last = drawn.ok_or_else(no_counter)?.last_insert_id() as i64;
    let numbers = keys.iter().zip(results);
    let numbers =
        numbers.map(|((stream, count), one)| (*stream, one.last_insert_id() as i64 - count));
    Ok((last - count as i64 + 1, numbers.collect()))
}

async fn insert(tx: &mut MySqlConnection, gave: &[Enqueued], messages: &[&Message]) -> Result<()> {
    let mut query: QueryBuilder<MySql> = QueryBuilder::new(INSERT_ALL);
    query.push_values(gave.iter().zip(messages), |mut row, (gave, message)| {
        let headers = headers_to_text(&message.headers);
        let bytes = headers.len() + message.payload.len();
        row.push_bind(i64::from(gave.part))
            .push_bind(gave.id)
            .push_bind(message.id)
            .push_bind(message.topic.as_bytes())
            .push_bind(message.key.as_deref().map(str::as_bytes))
            .push_bind(gave.seq)
            .push_bind(headers.into_bytes())
            .push_bind(&message.payload[..])
            .push_bind(bytes as i64)
            .push("UTC_TIMESTAMP(6)");
    });
    // One text for one message is kept prepared; those for many are of many lengths.
    let keeps = messages.len() == 1;
    query.build().persistent(keeps).execute(tx).await?;
    Ok(())
}

fn stream(message: &Message) -> (&str, &str) {
    (&message.topic, message.key.as_deref().unwrap_or_default())
}

/// More than what it is in a packet; its key may be there twice as hexadecimal digits.
fn size(message: &Message) -> usize {
    let headers = message.headers.iter().map(|(n, v)| n.len() + v.len() + 8);
    let key = message.key.as_ref().map_or(0, String::len);
    message.payload.len() + headers.sum::<usize>() + 3 * key + SLACK
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn without_transaction(error: sqlx::Error) -> Error {
    match number(&error) {
        Some(NO_SAVEPOINT) => no_transaction(),
        _ => error.into(),
    }
}

fn no_transaction() -> Error {
    let text = "a message is enqueued in a transaction: there is none here, or the database has ended it \
                (a deadlock, a change of tables); begin one by sqlx, and begin anew after an error";
    Error::new(ErrorKind::Invalid, text)
}

pub(super) fn no_counter() -> Error {
    let text = "quorate_outbox_counter has not each part once: restore it, or drop all quorate_outbox \
                tables and migrate again";
    Error::new(ErrorKind::Schema, text)
}
