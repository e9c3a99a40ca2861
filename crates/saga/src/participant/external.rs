//! [`ExternalParticipant`]: steps that are done outside of the participant's database.

use quorate_outbox::Delivery;
use quorate_outbox::inbox::{Failure, Handler};
use quorate_outbox::store::BoxFuture;
use serde_json::Value;

use super::fences::{Fences, Slot};
use super::handle::{bar, claim, failure, key, look, no_refusal, read, reply, slot};
use crate::definition::Op;
use crate::machine::Outcome;
use crate::message::{Command, HEADER_TRACE};
use crate::points;

/// A service whose effects are not in a database of ours: a bank's interface, a mail server. Calls may be repeated
/// for the same (saga, branch, operation) after a crash: pass that on as the idempotency key.
pub trait External: Send + Sync + 'static {
    /// Does the step; a TCC branch's try.
    fn act<'a>(&'a self, command: &'a Command) -> BoxFuture<'a, Outcome>;

    /// Undoes it; a TCC branch's cancel. Called whenever the act may have been called, also if it was refused
    /// or its outcome is not known: what was not done is nothing to undo, and that is `Done`.
    fn undo<'a>(&'a self, command: &'a Command) -> BoxFuture<'a, Outcome>;

    /// Confirms what was tried, for TCC.
    fn confirm<'a>(&'a self, command: &'a Command) -> BoxFuture<'a, Outcome> {
        let text = format!("`{}` confirms nothing", command.branch);
        Box::pin(async move { Outcome::Refused(text) })
    }
}

/// Does an external service's steps: the handler for a consumer of commands.
pub struct ExternalParticipant<F, E> {
    fences: F,
    service: E,
}

impl<F: Fences, E: External> ExternalParticipant<F, E> {
    /// A participant, with fences in this database.
    pub fn new(fences: F, service: E) -> ExternalParticipant<F, E> {
        ExternalParticipant { fences, service }
    }

    async fn one(&self, tx: &mut F::Connection, delivery: &Delivery) -> Result<(), Failure> {
        let command = read(delivery)?;
        let fences = &self.fences;
        let topic = &delivery.partition.topic;
        let attempted = key(&command, Slot::Attempted);
        if command.op == Op::Act && claim(fences, tx, &attempted).await? {
            // Committed before anything is called: whoever undoes it knows that it may have been.
            let again = command
                .message(topic, delivery.header(HEADER_TRACE))
                .map_err(failure)?;
            fences.send(tx, &[again]).await.map_err(failure)?;
            points::pass("participant.attempted");
            fences.wake();
            return Ok(());
        }
        let outcome = self.perform(tx, &command).await?;
        points::pass("participant.called");
        let reply = reply(&command, outcome, delivery)?;
        fences.send(tx, &[reply]).await.map_err(failure)?;
        fences.wake();
        Ok(())
    }

    async fn perform(&self, tx: &mut F::Connection, command: &Command) -> Result<Outcome, Failure> {
        let fences = &self.fences;
        let own = key(command, slot(command.op));
        if !claim(fences, tx, &own).await? {
            let said = look(fences, tx, &own).await?;
            return said.ok_or_else(|| Failure::retry("the fence row has gone meanwhile"));
        }
        let outcome = match command.op {
            Op::Act => self.service.act(command).await,
            Op::Undo => {
                bar(fences, tx, command).await?;
                match look(fences, tx, &key(command, Slot::Attempted)).await? {
                    Some(_) => no_refusal(self.service.undo(command).await),
                    None => Outcome::Done(Value::Null),
                }
            }
            Op::Confirm => match look(fences, tx, &key(command, Slot::Act)).await? {
                Some(Outcome::Done(_)) => self.service.confirm(command).await,
                _ => Outcome::Unknown("nothing was tried, or it was cancelled".into()),
            },
        };
        if matches!(outcome, Outcome::Unknown(_)) {
            fences.give_up(tx, &[own]).await.map_err(failure)?;
        } else if outcome != Outcome::Done(Value::Null) {
            fences
                .settle(tx, &[(own, outcome.clone())])
                .await
                .map_err(failure)?;
        }
        Ok(outcome)
    }
}

impl<F: Fences, E: External> Handler<F::Connection> for ExternalParticipant<F, E> {
    fn handle<'a>(
        &'a self,
        tx: &'a mut F::Connection,
        message: &'a Delivery,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(self.one(tx, message))
    }
}
