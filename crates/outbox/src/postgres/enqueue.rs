//! Enqueuing: one statement in the caller's own transaction.

use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use super::{PgOutbox, RING, RING_SHIFT};
use crate::message::headers_to_text;
use crate::{Enqueued, Limits, Message, Result};

/// A statement for database layers other than sqlx, such as SeaORM: run it in your transaction. It
/// gives one row: `id bigint, seq bigint` (null without order).
#[derive(Debug, Clone, PartialEq)]
pub struct PgStatement {
    /// The text, with `$1` to `$5`.
    pub text: String,
    /// The values, in order.
    pub values: [PgValue; 5],
}

/// A value of a [`PgStatement`].
#[derive(Debug, Clone, PartialEq)]
pub enum PgValue {
    /// A `uuid`.
    Uuid(Uuid),
    /// A `text`, or null.
    Text(Option<String>),
    /// A `bytea`.
    Bytes(Vec<u8>),
}

/// The key's counter first: its row lock is what makes ids of a key grow in the order of commits. The
/// id is drawn from what that gave, so after it, and after the transaction has an id of its own.
const ORDERED: &str = "\
    WITH k AS (
        INSERT INTO quorate_outbox_key AS k (topic, key, n) VALUES ($2, $3, 1)
        ON CONFLICT (topic, key) DO UPDATE SET n = k.n + 1 RETURNING n
    ), i AS MATERIALIZED (
        SELECT n, CASE WHEN n > 0 THEN nextval('quorate_outbox_id_{part}') END AS id FROM k
    )";
/// The transaction's id first: a row whose transaction takes one later could escape the barrier.
const UNORDERED: &str = "\
    WITH x AS MATERIALIZED (SELECT pg_current_xact_id() AS x),
    i AS MATERIALIZED (
        SELECT NULL::bigint AS n,
               CASE WHEN x IS NOT NULL THEN nextval('quorate_outbox_id_{part}') END AS id FROM x
    )";
/// Many at once. As for one, the transaction's id comes first.
const UNORDERED_ALL: &str = "\
    WITH x AS MATERIALIZED (SELECT pg_current_xact_id() AS x),
    i AS MATERIALIZED (
        SELECT m.*, CASE WHEN x IS NOT NULL THEN nextval('quorate_outbox_id_{part}') END AS id
        FROM x, unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bytea[])
            AS m (message_id, topic, key, headers, payload)
    )
    INSERT INTO quorate_outbox (part, id, slot, message_id, topic, key, headers, payload)
    SELECT {part}, id, {first} + ((id >> {shift}) & {mask}), message_id, topic, key, headers, payload
    FROM i";
const INSERT: &str = "
    INSERT INTO quorate_outbox (part, id, slot, message_id, topic, key, seq, headers, payload)
    SELECT {part}, id, {first} + ((id >> {shift}) & {mask}), $1, $2, $3, n, $4, $5 FROM i
    RETURNING id, seq";

impl PgOutbox {
    /// The same with other limits on messages.
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Writes a message in the caller's transaction: it is sent if and when that commits.
    ///
    /// A keyed message locks the counter of its topic and key until the transaction ends. Enqueue late
    /// in the transaction, and several keys by [`PgOutbox::enqueue_all`].
    ///
    /// # Errors
    /// `Invalid`, `TooLarge` before anything is written; `Unavailable` and `Schema` of the database, after
    /// which the transaction has to be rolled back.
    pub async fn enqueue(&self, tx: &mut PgConnection, message: &Message) -> Result<Enqueued> {
        self.limits.check(message)?;
        let part = message.part(self.inner.parts);
        let text = statement(part, message.ordered);
        let row = sqlx::query(AssertSqlSafe(text))
            .bind(message.id)
            .bind(&message.topic)
            .bind(&message.key)
            .bind(headers_to_text(&message.headers))
            .bind(&message.payload[..])
            .fetch_one(tx)
            .await?;
        Ok(Enqueued {
            part,
            id: row.try_get(0)?,
            seq: row.try_get(1)?,
        })
    }

    /// Writes several messages, locking keys in one order for everybody, so that no two such calls wait
    /// for each other in a circle. Messages of one key keep their order. Those without order go in one
    /// statement.
    ///
    /// # Errors
    /// As [`PgOutbox::enqueue`].
    pub async fn enqueue_all(&self, tx: &mut PgConnection, messages: &[Message]) -> Result<()> {
        for message in messages {
            self.limits.check(message)?;
        }
        let (mut sorted, unordered): (Vec<&Message>, Vec<&Message>) =
            messages.iter().partition(|message| message.ordered);
        sorted.sort_by(|a, b| (&a.topic, &a.key).cmp(&(&b.topic, &b.key)));
        for message in sorted {
            self.enqueue(tx, message).await?;
        }
        self.enqueue_unordered(tx, &unordered).await
    }

    /// Messages without order may be in any part: so they are all in one, by one statement.
    async fn enqueue_unordered(&self, tx: &mut PgConnection, messages: &[&Message]) -> Result<()> {
        let Some(first) = messages.first() else {
            return Ok(());
        };
        let text = filled(UNORDERED_ALL, first.part(self.inner.parts));
        let each = || messages.iter();
        sqlx::query(AssertSqlSafe(text))
            .bind(each().map(|m| m.id).collect::<Vec<Uuid>>())
            .bind(each().map(|m| m.topic.as_str()).collect::<Vec<_>>())
            .bind(each().map(|m| m.key.as_deref()).collect::<Vec<_>>())
            .bind(
                each()
                    .map(|m| headers_to_text(&m.headers))
                    .collect::<Vec<_>>(),
            )
            .bind(each().map(|m| &m.payload[..]).collect::<Vec<_>>())
            .execute(tx)
            .await?;
        Ok(())
    }

    /// The statement that [`PgOutbox::enqueue`] runs, for other database layers.
    ///
    /// # Errors
    /// `Invalid`, `TooLarge`.
    pub fn statement(&self, message: &Message) -> Result<PgStatement> {
        self.limits.check(message)?;
        let part = message.part(self.inner.parts);
        Ok(PgStatement {
            text: statement(part, message.ordered),
            values: [
                PgValue::Uuid(message.id),
                PgValue::Text(Some(message.topic.clone())),
                PgValue::Text(message.key.clone()),
                PgValue::Text(Some(headers_to_text(&message.headers))),
                PgValue::Bytes(message.payload.to_vec()),
            ],
        })
    }

    /// Wakes relays of this process at once; call it after the commit. A hint, never needed.
    pub fn wake(&self) {
        self.inner.hint.notify_waiters();
    }
}

fn statement(part: u16, ordered: bool) -> String {
    let head = if ordered { ORDERED } else { UNORDERED };
    filled(&format!("{head}{INSERT}"), part)
}

fn filled(text: &str, part: u16) -> String {
    text.replace("{part}", &part.to_string())
        .replace("{first}", &(i64::from(part) * RING).to_string())
        .replace("{shift}", &RING_SHIFT.to_string())
        .replace("{mask}", &(RING - 1).to_string())
}
