//! Errors: as a message, and as the details of a gRPC status.

use std::time::Duration;

use prost::Message;
use quorate_kv::{Error, ErrorKind, Outcome};
use quorate_sharding::{Failure, Redirect};
use tonic::{Code, Status};

use crate::v1;

impl From<&Error> for v1::Error {
    fn from(error: &Error) -> Self {
        v1::Error {
            kind: error.kind().code(),
            outcome: error.outcome() as u32,
            retry_after_ms: error.retry_after().map_or(0, millis_up),
            message: error.message().to_owned(),
            redirect: None,
        }
    }
}

impl From<v1::Error> for Error {
    fn from(wire: v1::Error) -> Self {
        let error = Error::new(ErrorKind::from_code(wire.kind), wire.message)
            .with_outcome(Outcome::from_code(wire.outcome));
        match wire.retry_after_ms {
            0 => error,
            ms => error.with_retry_after(Duration::from_millis(ms.into())),
        }
    }
}

impl From<Failure> for v1::Error {
    fn from(failure: Failure) -> Self {
        let mut wire = v1::Error::from(&failure.error);
        wire.redirect = failure.redirect.map(|redirect| v1::Redirect {
            shards: redirect.shards.into_iter().map(Into::into).collect(),
            leader: redirect.leader.unwrap_or_default(),
        });
        wire
    }
}

/// The failure of a wire error. A redirect that makes no sense is dropped: the error still counts,
/// and the client finds its way by the map.
pub fn failure_of_wire(mut wire: v1::Error) -> Failure {
    let redirect = wire.redirect.take().and_then(|redirect| {
        let shards: Result<Vec<_>, Error> =
            redirect.shards.into_iter().map(TryInto::try_into).collect();
        Some(Box::new(Redirect {
            shards: shards.ok()?,
            leader: (redirect.leader != 0).then_some(redirect.leader),
        }))
    });
    Failure {
        error: wire.into(),
        redirect,
    }
}

/// The status of an error, which carries it whole in its details.
pub fn status_of_error(error: &Error) -> Status {
    let code = match error.kind() {
        ErrorKind::InvalidArgument | ErrorKind::TooLarge | ErrorKind::WrongDomain => {
            Code::InvalidArgument
        }
        ErrorKind::UnknownNamespace => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::CrossShard | ErrorKind::WrongEpoch | ErrorKind::NotLeader => {
            Code::FailedPrecondition
        }
        ErrorKind::Unsupported => Code::Unimplemented,
        ErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorKind::Overloaded | ErrorKind::DiskFull => Code::ResourceExhausted,
        ErrorKind::NoQuorum | ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::Corruption => Code::DataLoss,
        _ => Code::Internal,
    };
    let details = v1::Error::from(error).encode_to_vec();
    Status::with_details(code, error.message(), details.into())
}

/// The error of a status: the one in its details, else one made of its code. `outcome` is what the
/// caller knows of a write in the second case.
pub fn error_of_status(status: &Status, outcome: Outcome) -> Error {
    if !status.details().is_empty()
        && let Ok(wire) = v1::Error::decode(status.details())
        && wire.kind != 0
    {
        return wire.into();
    }
    let kind = match status.code() {
        Code::InvalidArgument => ErrorKind::InvalidArgument,
        Code::DeadlineExceeded => ErrorKind::DeadlineExceeded,
        Code::ResourceExhausted => ErrorKind::Overloaded,
        Code::Unimplemented => ErrorKind::Unsupported,
        Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Aborted => {
            ErrorKind::Unavailable
        }
        _ => ErrorKind::Internal,
    };
    Error::new(kind, status.message()).with_outcome(outcome)
}

/// A duration in whole milliseconds, rounded up, at most what the wire can say.
pub(super) fn millis_up(duration: Duration) -> u32 {
    u32::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX)
}
