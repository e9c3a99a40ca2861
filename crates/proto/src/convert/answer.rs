//! Responses: answers and failures.

use quorate_kv::{Entry, Error, OpResult};
use quorate_sharding::{Answer, Response};

use super::error::failure_of_wire;
use super::invalid;
use crate::v1;
use crate::v1::response::Result as WireResult;

impl v1::Response {
    /// The message for the response to the request of this id.
    pub fn new(request_id: u64, response: Response) -> Self {
        let result = match response {
            Ok(answer) => answer.into(),
            Err(failure) => WireResult::Error(failure.into()),
        };
        v1::Response {
            request_id,
            result: Some(result),
        }
    }

    /// The response; what makes no sense becomes a failure of unknown outcome.
    pub fn into_response(self) -> Response {
        let answer = match self.result {
            Some(WireResult::Error(error)) => return Err(failure_of_wire(error)),
            Some(result) => result.try_into(),
            None => Err(invalid("a response without a result that is known here")),
        };
        answer.map_err(|error: Error| error.with_outcome(quorate_kv::Outcome::Unknown).into())
    }
}

impl From<Entry> for v1::Entry {
    fn from(entry: Entry) -> Self {
        v1::Entry {
            key: entry.key,
            value: entry.value,
            version: entry.version,
            create_version: entry.create_version,
            write_count: entry.write_count,
        }
    }
}

impl From<v1::Entry> for Entry {
    fn from(wire: v1::Entry) -> Self {
        Entry {
            key: wire.key,
            value: wire.value,
            version: wire.version,
            create_version: wire.create_version,
            write_count: wire.write_count,
        }
    }
}

impl From<Answer> for WireResult {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Entry(entry) => WireResult::Found(found(entry)),
            Answer::Written {
                applied,
                version,
                group_version,
            } => WireResult::Written(v1::Written {
                applied,
                version,
                group_version,
            }),
            Answer::Batch { version } => WireResult::Batch(v1::BatchDone { version }),
            Answer::Compare {
                succeeded,
                results,
                version,
            } => WireResult::Compare(v1::CompareDone {
                succeeded,
                results: results.into_iter().map(op_result).collect(),
                version,
            }),
            Answer::Scan {
                entries,
                more,
                last,
            } => WireResult::Scan(v1::ScanDone {
                entries: entries.into_iter().map(Into::into).collect(),
                more,
                last: last.unwrap_or_default(),
            }),
        }
    }
}

impl TryFrom<WireResult> for Answer {
    type Error = Error;

    fn try_from(wire: WireResult) -> Result<Self, Error> {
        Ok(match wire {
            WireResult::Error(_) => return Err(invalid("an error where an answer is meant")),
            WireResult::Found(found) => Answer::Entry(found.entry.map(Into::into)),
            WireResult::Written(written) => Answer::Written {
                applied: written.applied,
                version: written.version,
                group_version: written.group_version,
            },
            WireResult::Batch(batch) => Answer::Batch {
                version: batch.version,
            },
            WireResult::Compare(compare) => Answer::Compare {
                succeeded: compare.succeeded,
                results: compare
                    .results
                    .into_iter()
                    .map(op_result_of_wire)
                    .collect::<Result<_, _>>()?,
                version: compare.version,
            },
            WireResult::Scan(scan) => {
                if scan.last.is_empty() && (scan.more || !scan.entries.is_empty()) {
                    return Err(invalid("a scan's entries without their last key"));
                }
                Answer::Scan {
                    entries: scan.entries.into_iter().map(Into::into).collect(),
                    more: scan.more,
                    last: (!scan.last.is_empty()).then_some(scan.last),
                }
            }
        })
    }
}

fn found(entry: Option<Entry>) -> v1::Found {
    v1::Found {
        entry: entry.map(Into::into),
    }
}

fn op_result(result: OpResult) -> v1::OpResult {
    let result = match result {
        OpResult::Entry(entry) => Some(v1::op_result::Result::Found(found(entry))),
        OpResult::Done => Some(v1::op_result::Result::Done(true)),
        _ => None,
    };
    v1::OpResult { result }
}

fn op_result_of_wire(wire: v1::OpResult) -> Result<OpResult, Error> {
    match wire.result {
        Some(v1::op_result::Result::Found(found)) => {
            Ok(OpResult::Entry(found.entry.map(Into::into)))
        }
        Some(v1::op_result::Result::Done(_)) => Ok(OpResult::Done),
        None => Err(invalid("a result that is not known here")),
    }
}
