//! TCC: try, confirm, cancel, as a definition of a saga.
//!
//! Every branch *tries*: it sets aside what it needs. When all have, every branch is *confirmed*, and that is tried
//! until it is done; if one has not, every branch is *cancelled*, the refused and the unknown ones too.
//!
//! ```
//! use quorate_saga::Tcc;
//! let payment = Tcc::named("payment").branch("account", "accounts").branch("stock", "stock").build()?;
//! assert_eq!(payment.steps().len(), 4);
//! # Ok::<(), quorate_saga::Error>(())
//! ```
//!
//! A branch's service is a [`Service`](crate::participant::Service): its `act` is the try, `undo` the cancel,
//! `confirm` the confirm; all three are fenced under the branch's name.
//!
//! A saga may have such a branch among its steps too: see [`Step::confirm`].

use std::time::Duration;

use crate::Result;
use crate::definition::{Definition, Retry, Saga, Step};

/// Builds the definition of a TCC transaction.
#[derive(Debug)]
pub struct Tcc {
    name: String,
    version: u32,
    deadline: Option<Duration>,
    patience: Duration,
    tries: Retry,
    confirms: Retry,
    cancels: Retry,
    branches: Vec<(String, String)>,
}

impl Tcc {
    /// Begins a definition.
    pub fn named(name: impl Into<String>) -> Tcc {
        Tcc {
            name: name.into(),
            version: 1,
            deadline: None,
            patience: Duration::from_secs(10),
            tries: Retry::attempts(3),
            confirms: Retry::attempts(20),
            cancels: Retry::attempts(20),
            branches: Vec::new(),
        }
    }

    /// Its version.
    pub fn version(mut self, version: u32) -> Tcc {
        self.version = version;
        self
    }

    /// How long all tries together may take.
    pub fn deadline(mut self, deadline: Duration) -> Tcc {
        self.deadline = Some(deadline);
        self
    }

    /// How long each command waits for its answer. Default: 10 s.
    pub fn patience(mut self, patience: Duration) -> Tcc {
        self.patience = patience;
        self
    }

    /// How tries, confirms and cancels are repeated. Default: 3 times, 20 times, 20 times.
    pub fn retries(mut self, tries: Retry, confirms: Retry, cancels: Retry) -> Tcc {
        (self.tries, self.confirms, self.cancels) = (tries, confirms, cancels);
        self
    }

    /// Adds a branch that the consumers of `topic` do.
    pub fn branch(mut self, name: impl Into<String>, topic: impl Into<String>) -> Tcc {
        self.branches.push((name.into(), topic.into()));
        self
    }

    /// Checks and ends the definition. The step of a branch's confirm is named `<branch>.confirm`.
    ///
    /// # Errors
    /// As [`Saga::build`].
    pub fn build(self) -> Result<Definition> {
        let tries = self.branches.iter().map(|(name, topic)| {
            let step = Step::new(name, topic).deadline(self.patience);
            let step = step
                .retry(self.tries)
                .undo_retry(self.cancels)
                .undo_refused();
            vec![step]
        });
        let confirms = self.branches.iter().map(|(name, topic)| {
            let step = Step::confirm(name, topic).deadline(self.patience);
            vec![step.retry(self.confirms)]
        });
        let mut saga = Saga::named(self.name).version(self.version);
        if let Some(deadline) = self.deadline {
            saga = saga.deadline(deadline);
        }
        saga.parallel(tries).then_parallel(confirms).build()
    }
}
