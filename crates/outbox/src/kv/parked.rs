//! Messages that were set aside. What is said of one, with the stream that it belongs to, is an entry of its own,
//! apart from the message: to count what is parked, or to say what is to be done with it, reads no payload.

use std::collections::HashSet;

use bytes::Bytes;
use quorate_kv::{Compare, Entry, Mutation, Op};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::enqueue::{condition, decode_row, encode_row};
use super::store::READ_BYTES;
use super::{KvOutbox, decode, encode};
use crate::store::{Change, Most, Parked, Row, Unpark, Which, Wish};
use crate::{Error, ErrorKind, Result};

/// What is said of a parked message.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Aside {
    message_id: Uuid,
    /// Topic and key; `None` without order.
    stream: Option<(String, String)>,
    reason: String,
    attempts: i64,
    wish: u8,
}

impl Aside {
    fn of(row: &Row, reason: &str) -> Aside {
        Aside {
            message_id: row.message_id,
            stream: row.stream(),
            reason: reason.to_owned(),
            attempts: 1,
            wish: Wish::None.number(),
        }
    }

    fn wish(&self) -> Wish {
        Wish::of(i64::from(self.wish))
    }

    fn is_of(&self, which: &Which) -> bool {
        match which {
            Which::Message(id) => self.message_id == *id,
            Which::Stream { topic, key } => {
                let stream = self.stream.as_ref();
                stream.is_some_and(|(t, k)| t == topic && k == key)
            }
        }
    }
}

impl KvOutbox {
    fn aside_key(&self, part: u16, id: i64) -> Bytes {
        self.key(part, &format!("p/{id:020}"))
    }

    fn parked_key(&self, part: u16, id: i64) -> Bytes {
        self.key(part, &format!("d/{id:020}"))
    }

    /// The id at the end of a key that begins with `<prefix>/~outbox/<folder>`.
    fn id_of(&self, part: u16, folder: &str, key: &[u8]) -> Result<i64> {
        let begin = self.key(part, folder);
        let digits = key.strip_prefix(&begin[..]);
        let digits = digits.and_then(|rest| std::str::from_utf8(rest).ok());
        digits.and_then(|rest| rest.parse().ok()).ok_or_else(|| {
            let text = format!("the outbox has an entry without a number: {key:?}");
            Error::new(ErrorKind::Corrupt, text)
        })
    }

    /// Reads a stored message. One that can't be read is damaged, not an error: others go on.
    pub(super) fn read_row(&self, part: u16, folder: &str, entry: &Entry) -> Result<Row> {
        let id = self.id_of(part, folder, &entry.key)?;
        let damaged = |why: String| Row {
            damage: Some(why),
            ..empty(part, id)
        };
        Ok(match decode_row(&entry.value) {
            Ok(row) if row.id == id => row,
            Ok(row) => damaged(format!("its number is {id}, and it says {}", row.id)),
            Err(error) => damaged(error.to_string()),
        })
    }

    /// Adds to a compare what a change writes beside the relay entry, under the condition that no operator has
    /// said otherwise meanwhile.
    pub(super) async fn add_change(
        &self,
        part: u16,
        change: &Change,
        mut compare: Compare,
    ) -> Result<Compare> {
        for park in &change.parks {
            let id = park.row.id;
            let message = match &park.row.damage {
                None => encode_row(&park.row)?,
                // As it is stored, for a person to mend.
                Some(_) => {
                    let stored = self.get(self.message_key(part, id)).await?;
                    stored.map_or(Bytes::new(), |entry| entry.value)
                }
            };
            let aside = encode(&Aside::of(&park.row, &park.reason))?;
            compare = compare
                .then(put(self.aside_key(part, id), aside))
                .then(put(self.parked_key(part, id), message));
        }
        for unpark in &change.unparks {
            match unpark {
                Unpark::Gone(id) => {
                    let keys = [self.aside_key(part, *id), self.parked_key(part, *id)];
                    for key in keys {
                        compare = compare.then(Op::Mutate(Mutation::delete(key)));
                    }
                }
                Unpark::Back { id, wish, reason } => {
                    let key = self.aside_key(part, *id);
                    if let Some(entry) = self.get(key.clone()).await? {
                        let mut aside = read_aside(part, *id, &entry);
                        aside.attempts += 1;
                        aside.reason = reason.clone();
                        if aside.wish() == *wish {
                            aside.wish = Wish::None.number();
                        }
                        compare = compare
                            .when(key.clone(), condition(entry.version))
                            .then(put(key, encode(&aside)?));
                    }
                }
            }
        }
        Ok(compare)
    }

    /// What is said of each parked message of a part, by id.
    pub(super) async fn asides(&self, part: u16, limit: usize) -> Result<Vec<(i64, Aside)>> {
        let entries = self.scan(part, "p/", "p0", limit).await?;
        let read = |entry: &Entry| {
            let id = self.id_of(part, "p/", &entry.key)?;
            Ok((id, read_aside(part, id, entry)))
        };
        entries.iter().map(read).collect()
    }

    async fn parked_one(&self, part: u16, id: i64, aside: Aside) -> Result<Parked> {
        let wish = aside.wish();
        let row = match self.get(self.parked_key(part, id)).await? {
            Some(entry) => self.read_row(part, "d/", &entry)?,
            None => Row {
                damage: Some("the message is not there".into()),
                ..empty(part, id)
            },
        };
        Ok(Parked {
            part,
            row,
            reason: aside.reason,
            attempts: aside.attempts,
            wish,
        })
    }

    pub(super) async fn list_parked(
        &self,
        which: Option<&Which>,
        limit: usize,
    ) -> Result<Vec<Parked>> {
        let mut found = Vec::new();
        for part in 0..crate::store::Store::parts(self) {
            // With a choice to make, nothing says how many have to be looked at.
            let most = which.map_or(limit - found.len(), |_| usize::MAX);
            for (id, aside) in self.asides(part, most).await? {
                if found.len() >= limit {
                    return Ok(found);
                }
                if which.is_none_or(|which| aside.is_of(which)) {
                    found.push(self.parked_one(part, id, aside).await?);
                }
            }
        }
        Ok(found)
    }

    pub(super) async fn streams(&self, part: u16) -> Result<HashSet<(String, String)>> {
        let asides = self.asides(part, usize::MAX).await?;
        Ok(asides.into_iter().filter_map(|(_, a)| a.stream).collect())
    }

    /// Ids of a part grow with the sequences of its keys, so the order of ids is that of streams.
    pub(super) async fn wanted(&self, part: u16, most: Most) -> Result<Vec<Parked>> {
        let mut closed = HashSet::new();
        let (mut wanted, mut bytes) = (Vec::new(), 0);
        for (id, aside) in self.asides(part, usize::MAX).await? {
            if aside.wish() == Wish::None {
                closed.extend(aside.stream);
            } else if aside.stream.as_ref().is_none_or(|s| !closed.contains(s)) {
                let parked = self.parked_one(part, id, aside).await?;
                bytes += parked.row.size();
                let is_full = bytes > most.bytes.min(READ_BYTES) && !wanted.is_empty();
                if is_full || wanted.len() >= most.rows {
                    break;
                }
                wanted.push(parked);
            }
        }
        Ok(wanted)
    }

    pub(super) async fn set_wish(&self, which: &Which, wish: Wish) -> Result<u64> {
        let mut set = 0;
        for part in 0..crate::store::Store::parts(self) {
            for (id, aside) in self.asides(part, usize::MAX).await? {
                let key = self.aside_key(part, id);
                let entry = match aside.is_of(which) {
                    true => self.get(key.clone()).await?,
                    false => None,
                };
                let Some(entry) = entry else {
                    continue;
                };
                let mut aside = read_aside(part, id, &entry);
                aside.wish = wish.number();
                let compare = Compare::new()
                    .when(key.clone(), condition(entry.version))
                    .then(put(key, encode(&aside)?));
                set += u64::from(self.kv.compare(compare).await?.succeeded);
            }
        }
        Ok(set)
    }
}

fn put(key: Bytes, value: Bytes) -> Op {
    Op::Mutate(Mutation::put(key, value))
}

/// A message of which nothing is known but its place.
fn empty(part: u16, id: i64) -> Row {
    Row {
        id,
        message_id: Row::made_id(part, id),
        topic: String::new(),
        key: None,
        seq: None,
        headers: Vec::new(),
        payload: Bytes::new(),
        created_ms: 0,
        damage: None,
    }
}

/// Reads what is said of a parked message. If that can't be read, the message stays parked all the same.
fn read_aside(part: u16, id: i64, entry: &Entry) -> Aside {
    decode(&entry.value, "parked message").unwrap_or_else(|error| {
        let row = empty(part, id);
        Aside::of(&row, &error.to_string())
    })
}
