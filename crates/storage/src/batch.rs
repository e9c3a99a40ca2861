//! Batches: operations that happen together or not at all.
//!
//! A batch is held as it goes to the write-ahead log, so that logging it is one copy. The bytes are
//! described in `docs/formats.md`.

use crate::codec::{Reader, put_bytes, put_varint};
use crate::condition::{Condition, Requirement};
use crate::engine::{KeyRange, Sequence};
use crate::expiry;
use crate::key::{self, Kind};
use crate::options::KeyspaceId;

/// The longest key: what a length of 16 bits can say.
pub const MAX_KEY_BYTES: usize = u16::MAX as usize;

/// The largest batch.
pub const MAX_BATCH_BYTES: usize = 512 << 20;

/// Bytes of format, first sequence and count before the operations.
pub(crate) const HEADER_BYTES: usize = 13;

const FORMAT: u8 = 1;
/// In the byte of the kind: a version follows.
const HAS_VERSION: u8 = 0x80;
/// In the byte of the kind, of a range deletion: it goes to the end of the keyspace.
const TO_THE_END: u8 = 0x40;

/// Operations on keys of any keyspaces, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    operations: Vec<u8>,
    count: u32,
    /// Bytes of places and values.
    payload_bytes: usize,
    longest_key: usize,
    /// Not logged: what is logged was found to hold.
    requirements: Vec<Requirement>,
}

/// One operation of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Operation<'a> {
    pub(crate) kind: Kind,
    pub(crate) keyspace: KeyspaceId,
    /// `None` in a plain keyspace.
    pub(crate) version: Option<u64>,
    /// Of a range deletion, the first key.
    pub(crate) key: &'a [u8],
    /// Of a range deletion, the end of the range, unless it is that of the keyspace.
    pub(crate) value: &'a [u8],
    pub(crate) to_the_end: bool,
}

impl Operation<'_> {
    /// The first place behind a range deletion.
    pub(crate) fn end_place(&self) -> Vec<u8> {
        match self.to_the_end {
            true => key::end_of_keyspace(self.keyspace),
            false => key::place(self.keyspace, self.value),
        }
    }
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Batch::default()
    }

    /// Sets a key of a plain keyspace.
    pub fn put(&mut self, keyspace: KeyspaceId, key: &[u8], value: &[u8]) {
        self.push(Kind::Put, keyspace, None, key, value);
    }

    /// Deletes a key of a plain keyspace.
    pub fn delete(&mut self, keyspace: KeyspaceId, key: &[u8]) {
        self.push(Kind::Delete, keyspace, None, key, &[]);
    }

    /// Sets a key of a versioned keyspace, at a version. Writing a version again replaces it.
    ///
    /// Versions of a key are not to decrease. A write below a version that the key already has lands
    /// in history; but if that version is a deletion at or below the watermark, which compaction
    /// may have dropped, it comes back to life. So a replay must not end before what it repeats did.
    pub fn put_at(&mut self, keyspace: KeyspaceId, key: &[u8], version: u64, value: &[u8]) {
        self.push(Kind::Put, keyspace, Some(version), key, value);
    }

    /// Deletes a key of a versioned keyspace, at a version: older versions stay readable there.
    pub fn delete_at(&mut self, keyspace: KeyspaceId, key: &[u8], version: u64) {
        self.push(Kind::Delete, keyspace, Some(version), key, &[]);
    }

    /// Deletes all keys of a range of a plain keyspace, whatever their number, at the cost of one
    /// operation. What this batch writes to the range before is deleted too, what it writes after is
    /// not. A range whose end is not behind its first key is empty.
    pub fn delete_range(&mut self, keyspace: KeyspaceId, range: KeyRange<'_>) {
        self.push_range(keyspace, None, range);
    }

    /// Deletes all keys of a range of a versioned keyspace, at a version: reads below it see what they
    /// saw; reads from it on see no entry of a lower version, nor one of the same version that was
    /// written before. That is what a [`delete_at`](Self::delete_at) of each possible key would do,
    /// but that an iterator over all versions does not yield it.
    pub fn delete_range_at(&mut self, keyspace: KeyspaceId, range: KeyRange<'_>, version: u64) {
        self.push_range(keyspace, Some(version), range);
    }

    /// Lets the batch be written only if a condition holds of a key, as it is before the batch: all
    /// conditions must, or the batch is refused with `ConditionFailed`. Nobody else writes to the key
    /// in between. A batch of nothing but conditions asks whether they hold.
    pub fn require(&mut self, keyspace: KeyspaceId, key: &[u8], condition: Condition) {
        self.requirements.push(Requirement {
            keyspace,
            key: key.to_vec(),
            condition,
        });
    }

    /// How many operations it holds; conditions are none.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether it holds no operation.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Its size, as it is logged.
    pub fn size_bytes(&self) -> usize {
        HEADER_BYTES + self.operations.len()
    }

    /// Removes all operations and conditions and keeps the memory.
    pub fn clear(&mut self) {
        self.requirements.clear();
        self.operations.clear();
        self.count = 0;
        self.payload_bytes = 0;
        self.longest_key = 0;
    }

    fn push(&mut self, kind: Kind, id: KeyspaceId, version: Option<u64>, key: &[u8], value: &[u8]) {
        self.push_head(kind as u8, id, version, key);
        if matches!(kind, Kind::Put | Kind::Expiring) {
            put_bytes(&mut self.operations, value);
        }
        self.payload_bytes += value.len();
    }

    fn push_range(&mut self, id: KeyspaceId, version: Option<u64>, range: KeyRange<'_>) {
        let kind = Kind::RangeDelete as u8;
        match range.upper {
            None => self.push_head(kind | TO_THE_END, id, version, range.lower),
            Some(upper) if upper > range.lower => {
                self.push_head(kind, id, version, range.lower);
                put_bytes(&mut self.operations, upper);
                self.payload_bytes += upper.len();
                self.longest_key = self.longest_key.max(upper.len());
            }
            Some(_) => {}
        }
    }

    fn push_head(&mut self, kind: u8, id: KeyspaceId, version: Option<u64>, key: &[u8]) {
        let out = &mut self.operations;
        out.push(kind | if version.is_some() { HAS_VERSION } else { 0 });
        put_varint(out, u64::from(id.0));
        if let Some(version) = version {
            put_varint(out, version);
        }
        put_bytes(out, key);
        self.count += 1;
        self.payload_bytes += key::KEYSPACE_BYTES + key.len();
        self.longest_key = self.longest_key.max(key.len());
    }

    fn push_operation(&mut self, op: &Operation<'_>) {
        match op.kind {
            Kind::Put | Kind::Delete | Kind::Expiring => {
                self.push(op.kind, op.keyspace, op.version, op.key, op.value);
            }
            Kind::Pointer => debug_assert!(false, "no batch holds pointers"),
            Kind::RangeDelete => {
                let upper = (!op.to_the_end).then_some(op.value);
                let lower = op.key;
                self.push_range(op.keyspace, op.version, KeyRange { lower, upper });
            }
        }
    }

    /// The same batch, in which the values of some keyspaces bear a time.
    pub(crate) fn stamped(&self, expires: impl Fn(KeyspaceId) -> bool, now_ms: u64) -> Batch {
        let mut stamped = Batch {
            requirements: self.requirements.clone(),
            ..Batch::default()
        };
        let mut value = Vec::new();
        for op in self.iter() {
            if op.kind == Kind::Put && expires(op.keyspace) {
                expiry::stamp(&mut value, now_ms, op.value);
                let kind = Kind::Expiring;
                stamped.push(kind, op.keyspace, op.version, op.key, &value);
            } else {
                stamped.push_operation(&op);
            }
        }
        stamped
    }

    /// What a log record starts with.
    pub(crate) fn header(&self, first: Sequence) -> [u8; HEADER_BYTES] {
        let mut header = [FORMAT; HEADER_BYTES];
        header[1..9].copy_from_slice(&first.to_le_bytes());
        header[9..].copy_from_slice(&self.count.to_le_bytes());
        header
    }

    pub(crate) fn operations(&self) -> &[u8] {
        &self.operations
    }

    pub(crate) fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    pub(crate) fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    pub(crate) fn longest_key(&self) -> usize {
        self.longest_key
    }

    pub(crate) fn iter(&self) -> Operations<'_> {
        Operations {
            reader: Reader::new(&self.operations),
        }
    }

    /// The batch of a log record and its first sequence; the text says what is wrong with it.
    pub(crate) fn decode(record: &[u8]) -> Result<(Sequence, Batch), String> {
        let mut reader = Reader::new(record);
        let header = (|| Some((reader.u8()?, reader.u64()?, reader.u32()?)))();
        let (format, first, count) = header.ok_or("a batch is shorter than its header")?;
        if format != FORMAT {
            return Err(format!(
                "a batch has format {format}, this engine knows {FORMAT}"
            ));
        }
        let mut batch = Batch::new();
        while !reader.is_empty() {
            let op = next_operation(&mut reader).ok_or("an operation of a batch is nonsense")?;
            batch.push_operation(&op);
        }
        if batch.count != count {
            return Err(format!(
                "a batch of {count} operations holds {}",
                batch.count
            ));
        }
        Ok((first, batch))
    }
}

/// Walks over the operations of a batch.
pub(crate) struct Operations<'a> {
    reader: Reader<'a>,
}

impl<'a> Iterator for Operations<'a> {
    type Item = Operation<'a>;

    fn next(&mut self) -> Option<Operation<'a>> {
        next_operation(&mut self.reader)
    }
}

fn next_operation<'a>(reader: &mut Reader<'a>) -> Option<Operation<'a>> {
    let head = reader.u8()?;
    let to_the_end = head & TO_THE_END != 0;
    let kind = Kind::from_u8(head & !(HAS_VERSION | TO_THE_END))?;
    if to_the_end && kind != Kind::RangeDelete {
        return None;
    }
    let keyspace = KeyspaceId(u16::try_from(reader.varint()?).ok()?);
    let version = match head & HAS_VERSION {
        0 => None,
        _ => Some(reader.varint()?),
    };
    let key = reader.bytes()?;
    let value = match kind {
        Kind::Put | Kind::Expiring => reader.bytes()?,
        Kind::RangeDelete if !to_the_end => reader.bytes()?,
        Kind::Delete | Kind::RangeDelete => &[],
        // Only in tables.
        Kind::Pointer => return None,
    };
    Some(Operation {
        kind,
        keyspace,
        version,
        key,
        value,
        to_the_end,
    })
}
