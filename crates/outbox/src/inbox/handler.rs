//! [`Handler`]: what a service does with a message, and how it says that it could not.

use crate::Delivery;
use crate::store::BoxFuture;

/// Why a handler did not apply a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Whether the same message may succeed later.
    pub retry: bool,
    /// For people.
    pub reason: String,
}

impl Failure {
    /// A failure that may pass.
    pub fn retry(reason: impl Into<String>) -> Failure {
        Failure {
            retry: true,
            reason: reason.into(),
        }
    }

    /// A failure that will not: the message is dead at once.
    pub fn last(reason: impl Into<String>) -> Failure {
        Failure {
            retry: false,
            reason: reason.into(),
        }
    }
}

#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Failure::retry(error.to_string())
    }
}

impl From<crate::Error> for Failure {
    fn from(error: crate::Error) -> Self {
        Failure {
            retry: error.is_retryable(),
            reason: error.to_string(),
        }
    }
}

/// What is done with a message. `C` is the database's connection, inside the transaction.
pub trait Handler<C>: Send + Sync + 'static {
    /// Applies the message with the transaction that is given; must not commit or roll it back. May be
    /// called again for the same message after a failure, then with nothing of the first try left.
    /// A panic counts as a failure that may pass.
    fn handle<'a>(
        &'a self,
        tx: &'a mut C,
        message: &'a Delivery,
    ) -> BoxFuture<'a, std::result::Result<(), Failure>>;

    /// Applies several messages of a partition at once, with the transaction that is given; `None` (the
    /// default) when it can only do one by one. A failure rolls all of them back, and they come one by one by
    /// [`Handler::handle`]. Only asked at [`Level::AtLeastOnce`](crate::Level::AtLeastOnce): such a handler
    /// tells repetitions by itself.
    fn handle_all<'a>(
        &'a self,
        _tx: &'a mut C,
        _messages: &'a [Delivery],
    ) -> Option<BoxFuture<'a, std::result::Result<(), Failure>>> {
        None
    }
}
