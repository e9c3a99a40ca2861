//! What a shard's group agrees upon: commands, as bytes in the Raft log.
//!
//! ```text
//! command   = format u8 (1), kind u8, body
//! kind 2    = nothing                                   hash this state
//! kind 3    = stamp u64, answer u32, count u32, operation*      writes of clients, each on its own
//! kind 1    = as 3 without `answer`, which is without bound; read, no longer written
//! operation = client u64, sequence u64, range epoch u64, tag u8, fields
//! ```
//!
//! Conditions and epochs are judged when a command is applied, from state alone; nothing in here is
//! read from a clock or from settings then, which may differ. `stamp` is the leader's hybrid time when
//! it proposed, `answer` its limit on what the gets of one compare answer, in bytes.

use bytes::Bytes;
use quorate_kv::{Condition, Limits, Mutation, Op, Version};
use quorate_sharding::{Operation, WriteId};

use crate::codec::{Damaged, Reader, Result, put_bytes, put_list, put_u32, put_u64};

const FORMAT: u8 = 1;
const WRITES_UNBOUNDED: u8 = 1;
const HASH: u8 = 2;
const WRITES: u8 = 3;

/// A decoded command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    Writes {
        stamp: Version,
        /// The most that the gets of one compare may answer.
        answer_bytes_max: u32,
        writes: Vec<Write>,
    },
    Hash,
}

/// One client's write inside a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    pub id: WriteId,
    /// The version of the shard's range that the client assumed.
    pub range_epoch: u64,
    /// A put, delete, batch or compare.
    pub operation: Operation,
}

/// Builds a command of writes as they come.
pub(crate) struct WritesBuilder {
    bytes: Vec<u8>,
    count: u32,
}

const COUNT_AT: usize = 14;

impl WritesBuilder {
    pub(crate) fn new(stamp: Version, answer_bytes_max: u32) -> WritesBuilder {
        let mut bytes = vec![FORMAT, WRITES];
        put_u64(&mut bytes, stamp);
        put_u32(&mut bytes, answer_bytes_max);
        put_u32(&mut bytes, 0);
        WritesBuilder { bytes, count: 0 }
    }

    pub(crate) fn push(&mut self, id: WriteId, range_epoch: u64, operation: &Operation) {
        let out = &mut self.bytes;
        put_u64(out, id.client);
        put_u64(out, id.sequence);
        put_u64(out, range_epoch);
        put_operation(out, operation);
        self.count += 1;
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn finish(mut self) -> Bytes {
        self.bytes[COUNT_AT..COUNT_AT + 4].copy_from_slice(&self.count.to_be_bytes());
        self.bytes.into()
    }
}

/// The command that makes every replica hash its state.
pub(crate) fn hash_command() -> Bytes {
    Bytes::from_static(&[FORMAT, HASH])
}

impl Command {
    pub(crate) fn decode(bytes: Bytes) -> Result<Command> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? != FORMAT {
            return Err(Damaged("a command has an unknown format"));
        }
        match reader.u8()? {
            kind @ (WRITES | WRITES_UNBOUNDED) => Ok(Command::Writes {
                stamp: reader.u64()?,
                answer_bytes_max: match kind {
                    WRITES => reader.u32()?,
                    _ => u32::MAX,
                },
                writes: reader.list(write)?,
            }),
            HASH => Ok(Command::Hash),
            _ => Err(Damaged("a command has an unknown kind")),
        }
    }
}

/// A command is closed when it has so many bytes.
pub(crate) const COMMAND_BYTES: usize = 1 << 20;

/// A command is closed, too, when its compares could answer so many bytes: every replica makes the
/// answers of a whole command in memory.
pub(crate) const ANSWER_BYTES: usize = 64 << 20;

/// The most bytes that a write could answer with, whatever is stored.
pub(crate) fn answer_bytes_max(limits: &Limits, operation: &Operation) -> usize {
    let Operation::Compare {
        then_ops, else_ops, ..
    } = operation
    else {
        return 0;
    };
    let gets = |ops: &[Op]| ops.iter().filter(|op| !matches!(op, Op::Mutate(_))).count();
    let entry = limits.key_bytes + limits.value_bytes;
    (gets(then_ops).max(gets(else_ops)) * entry).min(limits.batch_bytes)
}

/// The most bytes that one write may take inside a command. Twice the largest batch, for the keys
/// and values in it may be small and many.
pub(crate) fn write_bytes_max(limits: &Limits) -> usize {
    (limits.batch_bytes * 2).max(limits.key_bytes + limits.value_bytes) + COMMAND_BYTES / 2
}

/// The most bytes of a command: one that was nearly closed, and the largest write.
pub(crate) fn command_bytes_max(limits: &Limits) -> usize {
    write_bytes_max(limits) + COMMAND_BYTES + COMMAND_BYTES / 2
}

/// The bytes that a write takes inside a command; of a read next to nothing.
pub(crate) fn size_bytes(operation: &Operation) -> usize {
    const HEAD: usize = 25;
    const CONDITION: usize = 9;
    const LENGTH: usize = 4;
    let mutation = |mutation: &Mutation| 1 + 2 * LENGTH + mutation.size_bytes();
    let ops = |ops: &[Op]| -> usize {
        let op = |op: &Op| match op {
            Op::Mutate(mutated) => mutation(mutated),
            other => 1 + LENGTH + other.key().len(),
        };
        LENGTH + ops.iter().map(op).sum::<usize>()
    };
    HEAD + match operation {
        Operation::Put { key, value, .. } => CONDITION + 2 * LENGTH + key.len() + value.len(),
        Operation::Delete { key, .. } => CONDITION + LENGTH + key.len(),
        Operation::Batch { mutations } => LENGTH + mutations.iter().map(mutation).sum::<usize>(),
        Operation::Compare {
            conditions,
            then_ops,
            else_ops,
        } => {
            let keys = conditions.iter().map(|(key, _)| key.len());
            let conditions = keys.map(|len| CONDITION + LENGTH + len).sum::<usize>();
            LENGTH + conditions + ops(then_ops) + ops(else_ops)
        }
        _ => 0,
    }
}

const PUT: u8 = 1;
const DELETE: u8 = 2;
const BATCH: u8 = 3;
const COMPARE: u8 = 4;
const GET: u8 = 5;

fn put_operation(out: &mut Vec<u8>, operation: &Operation) {
    match operation {
        Operation::Put {
            key,
            value,
            condition,
        } => {
            out.push(PUT);
            put_condition(out, *condition);
            put_bytes(out, key);
            put_bytes(out, value);
        }
        Operation::Delete { key, condition } => {
            out.push(DELETE);
            put_condition(out, *condition);
            put_bytes(out, key);
        }
        Operation::Batch { mutations } => {
            out.push(BATCH);
            put_list(out, mutations, put_mutation);
        }
        Operation::Compare {
            conditions,
            then_ops,
            else_ops,
        } => {
            out.push(COMPARE);
            put_list(out, conditions, |out, (key, condition)| {
                put_condition(out, *condition);
                put_bytes(out, key);
            });
            put_list(out, then_ops, put_op);
            put_list(out, else_ops, put_op);
        }
        // Reads never reach a log: `Shard::submit` sends them another way.
        _ => debug_assert!(false, "a read in a command"),
    }
}

fn put_op(out: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Mutate(mutation) => put_mutation(out, mutation),
        other => {
            out.push(GET);
            put_bytes(out, other.key());
        }
    }
}

fn put_mutation(out: &mut Vec<u8>, mutation: &Mutation) {
    match mutation {
        Mutation::Put { key, value } => {
            out.push(PUT);
            put_bytes(out, key);
            put_bytes(out, value);
        }
        other => {
            out.push(DELETE);
            put_bytes(out, other.key());
        }
    }
}

fn put_condition(out: &mut Vec<u8>, condition: Condition) {
    match condition {
        Condition::Absent => out.push(1),
        Condition::Present => out.push(2),
        Condition::Version(version) => {
            out.push(3);
            put_u64(out, version);
        }
        _ => out.push(0),
    }
}

fn write(reader: &mut Reader) -> Result<Write> {
    Ok(Write {
        id: WriteId {
            client: reader.u64()?,
            sequence: reader.u64()?,
        },
        range_epoch: reader.u64()?,
        operation: operation(reader)?,
    })
}

fn operation(reader: &mut Reader) -> Result<Operation> {
    Ok(match reader.u8()? {
        PUT => {
            let condition = condition(reader)?;
            Operation::Put {
                condition,
                key: reader.bytes()?,
                value: reader.bytes()?,
            }
        }
        DELETE => {
            let condition = condition(reader)?;
            Operation::Delete {
                condition,
                key: reader.bytes()?,
            }
        }
        BATCH => Operation::Batch {
            mutations: reader.list(mutation)?,
        },
        COMPARE => Operation::Compare {
            conditions: reader.list(|reader| {
                let condition = condition(reader)?;
                Ok((reader.bytes()?, condition))
            })?,
            then_ops: reader.list(op)?,
            else_ops: reader.list(op)?,
        },
        _ => return Err(Damaged("an operation has an unknown tag")),
    })
}

fn op(reader: &mut Reader) -> Result<Op> {
    Ok(match reader.u8()? {
        GET => Op::Get {
            key: reader.bytes()?,
        },
        tag => Op::Mutate(mutation_of(tag, reader)?),
    })
}

fn mutation(reader: &mut Reader) -> Result<Mutation> {
    let tag = reader.u8()?;
    mutation_of(tag, reader)
}

fn mutation_of(tag: u8, reader: &mut Reader) -> Result<Mutation> {
    match tag {
        PUT => Ok(Mutation::put(reader.bytes()?, reader.bytes()?)),
        DELETE => Ok(Mutation::delete(reader.bytes()?)),
        _ => Err(Damaged("a mutation has an unknown tag")),
    }
}

fn condition(reader: &mut Reader) -> Result<Condition> {
    Ok(match reader.u8()? {
        0 => Condition::None,
        1 => Condition::Absent,
        2 => Condition::Present,
        3 => Condition::Version(reader.u64()?),
        _ => return Err(Damaged("a condition has an unknown tag")),
    })
}
