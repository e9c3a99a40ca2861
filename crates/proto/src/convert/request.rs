//! Requests: routed operations.

use std::time::Duration;

use bytes::Bytes;
use quorate_kv::{Condition, Error, Mutation, Op, ReadLevel, Token};
use quorate_sharding::{Operation, Request, WriteId};

use super::error::millis_up;
use super::invalid;
use crate::v1;
use crate::v1::request::Operation as WireOperation;

/// What stands for a condition that this version cannot say: the other side refuses it.
const NOT_EXPRESSIBLE: i32 = -1;

impl From<Request> for v1::Request {
    fn from(request: Request) -> Self {
        v1::Request {
            request_id: request.request_id,
            namespace: request.namespace,
            shard: request.shard,
            epoch: Some(request.epoch.into()),
            client_id: request.write_id.client,
            sequence: request.write_id.sequence,
            timeout_ms: millis_up(request.timeout),
            trace_context: request.trace.map(String::from).unwrap_or_default(),
            operation: Some(request.operation.into()),
        }
    }
}

impl TryFrom<v1::Request> for Request {
    type Error = Error;

    fn try_from(wire: v1::Request) -> Result<Self, Error> {
        let trace = wire.trace_context;
        Ok(Request {
            request_id: wire.request_id,
            namespace: wire.namespace,
            shard: wire.shard,
            epoch: wire.epoch.unwrap_or_default().into(),
            write_id: WriteId {
                client: wire.client_id,
                sequence: wire.sequence,
            },
            timeout: Duration::from_millis(wire.timeout_ms.into()),
            trace: (!trace.is_empty()).then(|| trace.into_boxed_str()),
            operation: wire
                .operation
                .ok_or_else(|| invalid("a request without an operation that is known here"))?
                .try_into()?,
        })
    }
}

impl From<Operation> for WireOperation {
    fn from(operation: Operation) -> Self {
        match operation {
            Operation::Get { key, level } => {
                let (level, token) = level_to_wire(level);
                WireOperation::Get(v1::Get { key, level, token })
            }
            Operation::Put {
                key,
                value,
                condition,
            } => WireOperation::Put(v1::Put {
                key,
                value,
                condition: condition_to_wire(condition),
            }),
            Operation::Delete { key, condition } => WireOperation::Delete(v1::Delete {
                key,
                condition: condition_to_wire(condition),
            }),
            Operation::Batch { mutations } => WireOperation::Batch(v1::Batch {
                mutations: mutations.into_iter().map(mutation_to_wire).collect(),
            }),
            Operation::Compare {
                conditions,
                then_ops,
                else_ops,
            } => WireOperation::Compare(v1::Compare {
                conditions: conditions
                    .into_iter()
                    .map(|(key, condition)| v1::KeyCondition {
                        key,
                        condition: condition_to_wire(condition),
                    })
                    .collect(),
                then_ops: then_ops.into_iter().map(op_to_wire).collect(),
                else_ops: else_ops.into_iter().map(op_to_wire).collect(),
            }),
            Operation::Scan {
                start,
                end,
                limit,
                limit_bytes,
                reverse,
                level,
            } => {
                let (level, token) = level_to_wire(level);
                WireOperation::Scan(v1::Scan {
                    start,
                    end,
                    limit,
                    limit_bytes,
                    reverse,
                    level,
                    token,
                })
            }
        }
    }
}

impl TryFrom<WireOperation> for Operation {
    type Error = Error;

    fn try_from(wire: WireOperation) -> Result<Self, Error> {
        Ok(match wire {
            WireOperation::Get(get) => Operation::Get {
                key: get.key,
                level: level_of_wire(get.level, &get.token)?,
            },
            WireOperation::Put(put) => Operation::Put {
                key: put.key,
                value: put.value,
                condition: condition_of_wire(put.condition)?,
            },
            WireOperation::Delete(delete) => Operation::Delete {
                key: delete.key,
                condition: condition_of_wire(delete.condition)?,
            },
            WireOperation::Batch(batch) => Operation::Batch {
                mutations: batch
                    .mutations
                    .into_iter()
                    .map(mutation_of_wire)
                    .collect::<Result<_, _>>()?,
            },
            WireOperation::Compare(compare) => Operation::Compare {
                conditions: compare
                    .conditions
                    .into_iter()
                    .map(|c| Ok((c.key, condition_of_wire(c.condition)?)))
                    .collect::<Result<_, Error>>()?,
                then_ops: ops_of_wire(compare.then_ops)?,
                else_ops: ops_of_wire(compare.else_ops)?,
            },
            WireOperation::Scan(scan) => Operation::Scan {
                start: scan.start,
                end: scan.end,
                limit: match scan.limit {
                    0 => return Err(invalid("a scan's limit is at least 1")),
                    limit => limit,
                },
                limit_bytes: scan.limit_bytes,
                reverse: scan.reverse,
                level: level_of_wire(scan.level, &scan.token)?,
            },
        })
    }
}

/// A level that this version cannot say is sent as the strongest, never as a weaker one.
fn level_to_wire(level: ReadLevel) -> (i32, Bytes) {
    match level {
        ReadLevel::AtLeast(token) => (
            v1::ReadLevel::AtLeast.into(),
            Bytes::copy_from_slice(&token.to_bytes()),
        ),
        ReadLevel::Stale => (v1::ReadLevel::Stale.into(), Bytes::new()),
        _ => (v1::ReadLevel::Linearizable.into(), Bytes::new()),
    }
}

fn level_of_wire(level: i32, token: &[u8]) -> Result<ReadLevel, Error> {
    Ok(match v1::ReadLevel::try_from(level) {
        Ok(v1::ReadLevel::Linearizable) => ReadLevel::Linearizable,
        Ok(v1::ReadLevel::AtLeast) => ReadLevel::AtLeast(Token::from_bytes(token)?),
        Ok(v1::ReadLevel::Stale) => ReadLevel::Stale,
        Err(_) => return Err(invalid("a read level that is not known here")),
    })
}

/// "None", the common case, takes no bytes.
fn condition_to_wire(condition: Condition) -> Option<v1::Condition> {
    let (kind, version) = match condition {
        Condition::None => return None,
        Condition::Absent => (v1::ConditionKind::Absent.into(), 0),
        Condition::Present => (v1::ConditionKind::Present.into(), 0),
        Condition::Version(version) => (v1::ConditionKind::Version.into(), version),
        _ => (NOT_EXPRESSIBLE, 0),
    };
    Some(v1::Condition { kind, version })
}

fn condition_of_wire(wire: Option<v1::Condition>) -> Result<Condition, Error> {
    let Some(wire) = wire else {
        return Ok(Condition::None);
    };
    Ok(match v1::ConditionKind::try_from(wire.kind) {
        Ok(v1::ConditionKind::None) => Condition::None,
        Ok(v1::ConditionKind::Absent) => Condition::Absent,
        Ok(v1::ConditionKind::Present) => Condition::Present,
        Ok(v1::ConditionKind::Version) => Condition::Version(wire.version),
        Err(_) => return Err(invalid("a condition that is not known here")),
    })
}

/// A mutation that this version cannot say becomes one of an empty key, which is refused.
fn mutation_to_wire(mutation: Mutation) -> v1::Mutation {
    match mutation {
        Mutation::Put { key, value } => v1::Mutation {
            key,
            value,
            delete: false,
        },
        Mutation::Delete { key } => v1::Mutation {
            key,
            value: Bytes::new(),
            delete: true,
        },
        _ => v1::Mutation::default(),
    }
}

fn mutation_of_wire(wire: v1::Mutation) -> Result<Mutation, Error> {
    match (wire.delete, wire.value.is_empty()) {
        (false, _) => Ok(Mutation::put(wire.key, wire.value)),
        (true, true) => Ok(Mutation::delete(wire.key)),
        (true, false) => Err(invalid("a delete with a value")),
    }
}

/// An operation that this version cannot say becomes an empty one, which is refused.
fn op_to_wire(op: Op) -> v1::Op {
    let op = match op {
        Op::Get { key } => Some(v1::op::Op::Get(key)),
        Op::Mutate(mutation) => Some(v1::op::Op::Mutate(mutation_to_wire(mutation))),
        _ => None,
    };
    v1::Op { op }
}

fn ops_of_wire(wire: Vec<v1::Op>) -> Result<Vec<Op>, Error> {
    wire.into_iter()
        .map(|op| match op.op {
            Some(v1::op::Op::Get(key)) => Ok(Op::Get { key }),
            Some(v1::op::Op::Mutate(mutation)) => Ok(Op::Mutate(mutation_of_wire(mutation)?)),
            None => Err(invalid("an operation that is not known here")),
        })
        .collect()
}
