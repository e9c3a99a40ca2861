//! Edits: what changes in the levels at once, as the manifest records it.

use std::sync::Arc;
use std::time::Duration;

use crate::codec::{Reader, put_bytes, put_varint};
use crate::engine::Sequence;
use crate::options::{KeyspaceId, KeyspaceOptions};
use crate::prefix::Prefix;
use crate::table::Properties;
use crate::values::ValueMeta;

/// What the manifest knows of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableMeta {
    pub(crate) number: u64,
    pub(crate) size_bytes: u64,
    pub(crate) properties: Properties,
    /// The sequence of all its entries, if the table came in whole; those in the file are then 0.
    pub(crate) ingested: Option<Sequence>,
}

impl TableMeta {
    /// The lowest and the highest sequence of what it holds.
    pub(crate) fn sequences(&self) -> (Sequence, Sequence) {
        let p = &self.properties;
        match self.ingested {
            Some(sequence) => (sequence, sequence),
            None => (p.min_sequence, p.max_sequence),
        }
    }
}

/// A change, all of which happens or none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Edit {
    pub(crate) keyspaces: Vec<KeyspaceOptions>,
    pub(crate) added: Vec<(usize, Arc<TableMeta>)>,
    /// Value files that tables added here need. One that none needs any more is gone.
    pub(crate) values: Vec<ValueMeta>,
    /// Level and number.
    pub(crate) removed: Vec<(usize, u64)>,
    pub(crate) flushed_sequence: Option<u64>,
    pub(crate) next_file: Option<u64>,
    /// Below these versions entries may have been dropped.
    pub(crate) watermarks: Vec<(KeyspaceId, u64)>,
    /// How late it was, by the engine's time: what expired by then may have been dropped.
    pub(crate) time_ms: Option<u64>,
}

const KEYSPACE: u64 = 1;
const ADDED: u64 = 2;
const REMOVED: u64 = 3;
const FLUSHED: u64 = 4;
const NEXT_FILE: u64 = 5;
const WATERMARK: u64 = 6;
const INGESTED: u64 = 7;
const TTL: u64 = 8;
const TIME: u64 = 9;
const VALUES: u64 = 10;

impl Edit {
    /// Fields, each a number and a length before its content.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut field = |tag: u64, write: &dyn Fn(&mut Vec<u8>)| {
            let mut content = Vec::new();
            write(&mut content);
            put_varint(&mut out, tag);
            put_bytes(&mut out, &content);
        };
        for k in &self.keyspaces {
            field(KEYSPACE, &|out| {
                put_varint(out, u64::from(k.id.0));
                put_varint(out, u64::from(k.versioned));
                put_bytes(out, k.name.as_bytes());
            });
            if let Some(ttl_ms) = k.ttl_ms() {
                field(TTL, &|out| {
                    put_varint(out, u64::from(k.id.0));
                    put_varint(out, ttl_ms);
                });
            }
        }
        for (level, table) in &self.added {
            let tag = if table.ingested.is_some() {
                INGESTED
            } else {
                ADDED
            };
            field(tag, &|out| {
                put_varint(out, *level as u64);
                put_varint(out, table.number);
                put_varint(out, table.size_bytes);
                table.properties.encode(out);
                if let Some(sequence) = table.ingested {
                    put_varint(out, sequence);
                }
            });
        }
        for values in &self.values {
            field(VALUES, &|out| values.encode(out));
        }
        for (level, number) in &self.removed {
            field(REMOVED, &|out| {
                put_varint(out, *level as u64);
                put_varint(out, *number);
            });
        }
        if let Some(sequence) = self.flushed_sequence {
            field(FLUSHED, &|out| put_varint(out, sequence));
        }
        if let Some(number) = self.next_file {
            field(NEXT_FILE, &|out| put_varint(out, number));
        }
        for (id, version) in &self.watermarks {
            field(WATERMARK, &|out| {
                put_varint(out, u64::from(id.0));
                put_varint(out, *version);
            });
        }
        if let Some(ms) = self.time_ms {
            field(TIME, &|out| put_varint(out, ms));
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Edit> {
        let mut edit = Edit::default();
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            let tag = reader.varint()?;
            let mut content = Reader::new(reader.bytes()?);
            edit.decode_field(tag, &mut content)?;
            if !content.is_empty() {
                return None;
            }
        }
        Some(edit)
    }

    fn decode_field(&mut self, tag: u64, content: &mut Reader<'_>) -> Option<()> {
        match tag {
            KEYSPACE => self.keyspaces.push(KeyspaceOptions {
                id: keyspace_id(content)?,
                versioned: content.varint()? != 0,
                name: String::from_utf8(content.bytes()?.to_vec()).ok()?,
                ttl: None,
                // Tables say which they were made with.
                prefix: Prefix::None,
            }),
            TTL => {
                let id = keyspace_id(content)?;
                let keyspace = self.keyspaces.iter_mut().find(|k| k.id == id)?;
                keyspace.ttl = Some(Duration::from_millis(content.varint()?));
            }
            TIME => self.time_ms = Some(content.varint()?),
            ADDED | INGESTED => {
                let level = content.length()?;
                let table = TableMeta {
                    number: content.varint()?,
                    size_bytes: content.varint()?,
                    properties: Properties::decode(content)?,
                    ingested: match tag {
                        INGESTED => Some(content.varint()?),
                        _ => None,
                    },
                };
                self.added.push((level, Arc::new(table)));
            }
            VALUES => self.values.push(ValueMeta::decode(content)?),
            REMOVED => self.removed.push((content.length()?, content.varint()?)),
            FLUSHED => self.flushed_sequence = Some(content.varint()?),
            NEXT_FILE => self.next_file = Some(content.varint()?),
            WATERMARK => self
                .watermarks
                .push((keyspace_id(content)?, content.varint()?)),
            _ => return None,
        }
        Some(())
    }
}

fn keyspace_id(content: &mut Reader<'_>) -> Option<KeyspaceId> {
    Some(KeyspaceId(u16::try_from(content.varint()?).ok()?))
}
