//! [`Participant`]: commands behind fences, one by one or many at once.

use std::collections::{HashMap, HashSet};

use quorate_outbox::inbox::{Failure, Handler};
use quorate_outbox::store::BoxFuture;
use quorate_outbox::{Delivery, Message};
use serde_json::Value;

use super::Service;
use super::fences::{FenceKey, Fences, Slot};
use crate::definition::Op;
use crate::machine::Outcome;
use crate::message::{Command, HEADER_TRACE};
use crate::points;

/// Why an act comes to nothing whose undo came first.
pub(super) const BARRED: &str = "it was undone before it came";
const SAVE: &str = "SAVEPOINT quorate_saga";
const BACK: &str = "ROLLBACK TO SAVEPOINT quorate_saga";
const RELEASE: &str = "RELEASE SAVEPOINT quorate_saga";

/// Does a service's steps: the handler for a consumer of commands.
pub struct Participant<F, S> {
    fences: F,
    service: S,
    batches: bool,
}

impl<F: Fences, S: Service<F::Connection>> Participant<F, S> {
    /// A participant.
    pub fn new(fences: F, service: S) -> Participant<F, S> {
        Participant {
            fences,
            service,
            batches: false,
        }
    }

    /// The same for a service that has [`Service::act_all`], and [`Service::confirm_all`] if it confirms: commands
    /// are done many at once. If that fails they are done one by one.
    pub fn in_batches(mut self) -> Participant<F, S> {
        self.batches = true;
        self
    }

    async fn one(&self, tx: &mut F::Connection, delivery: &Delivery) -> Result<(), Failure> {
        let command = read(delivery)?;
        let outcome = self.perform(tx, &command).await?;
        points::pass("participant.acted");
        let reply = reply(&command, outcome, delivery)?;
        self.fences.send(tx, &[reply]).await.map_err(failure)?;
        points::pass("participant.replied");
        self.fences.wake();
        Ok(())
    }

    async fn perform(&self, tx: &mut F::Connection, command: &Command) -> Result<Outcome, Failure> {
        let slot = slot(command.op);
        let key = key(command, slot);
        if !claim(&self.fences, tx, &key).await? {
            points::pass("participant.repeated");
            let said = look(&self.fences, tx, &key).await?;
            return said.ok_or_else(|| Failure::retry("the fence row has gone meanwhile"));
        }
        points::pass("participant.fenced");
        match command.op {
            Op::Act => {}
            Op::Undo => {
                if !self.is_to_be_undone(tx, command).await? {
                    return Ok(Outcome::Done(Value::Null));
                }
            }
            Op::Confirm => {
                let act = look(&self.fences, tx, &self::key(command, Slot::Act)).await?;
                if !matches!(act, Some(Outcome::Done(_))) {
                    let text = "nothing was tried, or it was cancelled";
                    self.give_up(tx, key).await?;
                    return Ok(Outcome::Refused(text.into()));
                }
            }
        }
        self.call(tx, command, key).await
    }

    /// Calls the service; nothing is left of what is not done.
    async fn call(
        &self,
        tx: &mut F::Connection,
        command: &Command,
        key: FenceKey,
    ) -> Result<Outcome, Failure> {
        self.fences.run(tx, SAVE).await.map_err(failure)?;
        let outcome = match command.op {
            Op::Act => self.service.act(tx, command).await?,
            Op::Undo => no_refusal(self.service.undo(tx, command).await?),
            Op::Confirm => self.service.confirm(tx, command).await?,
        };
        let end = match outcome {
            Outcome::Done(_) => RELEASE,
            Outcome::Refused(_) | Outcome::Unknown(_) => BACK,
        };
        self.fences.run(tx, end).await.map_err(failure)?;
        if matches!(outcome, Outcome::Unknown(_)) {
            self.give_up(tx, key).await?;
        } else if outcome != Outcome::Done(Value::Null) {
            let settled = [(key, outcome.clone())];
            self.fences.settle(tx, &settled).await.map_err(failure)?;
        }
        Ok(outcome)
    }

    async fn give_up(&self, tx: &mut F::Connection, key: FenceKey) -> Result<(), Failure> {
        self.fences.give_up(tx, &[key]).await.map_err(failure)
    }

    /// Whether there is something to undo; bars the act if it has not come yet.
    async fn is_to_be_undone(
        &self,
        tx: &mut F::Connection,
        command: &Command,
    ) -> Result<bool, Failure> {
        bar(&self.fences, tx, command)
            .await
            .map(|act| matches!(act, Some(Outcome::Done(_))))
    }

    /// Many commands of different branches. The rare undos are done one by one, in the same transaction.
    async fn many(&self, tx: &mut F::Connection, deliveries: &[Delivery]) -> Result<(), Failure> {
        let mut replies = Vec::with_capacity(deliveries.len());
        let mut together: HashMap<Op, Vec<(Command, &Delivery)>> = HashMap::new();
        let mut seen = HashSet::new();
        for delivery in deliveries {
            let command = read(delivery)?;
            if !seen.insert((command.saga, command.branch.clone())) {
                return Err(Failure::retry("two commands of one branch: one by one"));
            }
            together
                .entry(command.op)
                .or_default()
                .push((command, delivery));
        }
        for (op, commands) in together {
            let (commands, from): (Vec<Command>, Vec<&Delivery>) = commands.into_iter().unzip();
            let outcomes = match op {
                Op::Undo => self.each(tx, &commands).await?,
                Op::Act | Op::Confirm => self.perform_all(tx, op, &commands).await?,
            };
            for ((command, outcome), delivery) in commands.iter().zip(outcomes).zip(from) {
                replies.push(reply(command, outcome, delivery)?);
            }
        }
        points::pass("participant.batch-acted");
        self.fences.send(tx, &replies).await.map_err(failure)?;
        points::pass("participant.batch-replied");
        self.fences.wake();
        Ok(())
    }

    async fn each(
        &self,
        tx: &mut F::Connection,
        commands: &[Command],
    ) -> Result<Vec<Outcome>, Failure> {
        let mut outcomes = Vec::with_capacity(commands.len());
        for command in commands {
            outcomes.push(self.perform(tx, command).await?);
        }
        Ok(outcomes)
    }

    /// Actions or confirms, all at once.
    async fn perform_all(
        &self,
        tx: &mut F::Connection,
        op: Op,
        commands: &[Command],
    ) -> Result<Vec<Outcome>, Failure> {
        if op == Op::Confirm {
            let acts: Vec<FenceKey> = commands.iter().map(|c| key(c, Slot::Act)).collect();
            let acts = self.fences.look(tx, &acts).await.map_err(failure)?;
            if !acts.iter().all(|act| matches!(act, Some(Outcome::Done(_)))) {
                return self.each(tx, commands).await;
            }
        }
        let keys: Vec<FenceKey> = commands.iter().map(|c| key(c, slot(op))).collect();
        let claimed = self.fences.claim(tx, &keys).await.map_err(failure)?;
        points::pass("participant.batch-fenced");
        if !claimed.iter().all(|claimed| *claimed) {
            // Repetitions among them: the transaction is begun anew, and they come one by one.
            return Err(Failure::retry("repetitions: one by one"));
        }
        let outcomes = {
            let called = match op {
                Op::Confirm => self.service.confirm_all(tx, commands),
                _ => self.service.act_all(tx, commands),
            };
            let at_once = called.ok_or_else(|| {
                Failure::retry("the service does not do that at once: one by one")
            })?;
            at_once.await?
        };
        if outcomes.len() != commands.len() {
            return Err(Failure::retry(
                "the service answered another number of commands",
            ));
        }
        let mut settled = Vec::new();
        let mut given_up = Vec::new();
        for (key, outcome) in keys.into_iter().zip(&outcomes) {
            match outcome {
                Outcome::Unknown(_) => given_up.push(key),
                Outcome::Done(Value::Null) => {}
                other => settled.push((key, other.clone())),
            }
        }
        self.fences.settle(tx, &settled).await.map_err(failure)?;
        self.fences.give_up(tx, &given_up).await.map_err(failure)?;
        Ok(outcomes)
    }
}

impl<F: Fences, S: Service<F::Connection>> Handler<F::Connection> for Participant<F, S> {
    fn handle<'a>(
        &'a self,
        tx: &'a mut F::Connection,
        message: &'a Delivery,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(self.one(tx, message))
    }

    fn handle_all<'a>(
        &'a self,
        tx: &'a mut F::Connection,
        messages: &'a [Delivery],
    ) -> Option<BoxFuture<'a, Result<(), Failure>>> {
        self.batches.then(|| Box::pin(self.many(tx, messages)) as _)
    }
}

/// What the act came to; bars it if it has not come yet.
pub(super) async fn bar<F: Fences>(
    fences: &F,
    tx: &mut F::Connection,
    command: &Command,
) -> Result<Option<Outcome>, Failure> {
    let act = key(command, Slot::Act);
    if claim(fences, tx, &act).await? {
        let barred = [(act, Outcome::Refused(BARRED.into()))];
        fences.settle(tx, &barred).await.map_err(failure)?;
        return Ok(None);
    }
    look(fences, tx, &act).await
}

pub(super) async fn claim<F: Fences>(
    fences: &F,
    tx: &mut F::Connection,
    key: &FenceKey,
) -> Result<bool, Failure> {
    let claimed = fences.claim(tx, std::slice::from_ref(key)).await;
    Ok(claimed.map_err(failure)?.first() == Some(&true))
}

pub(super) async fn look<F: Fences>(
    fences: &F,
    tx: &mut F::Connection,
    key: &FenceKey,
) -> Result<Option<Outcome>, Failure> {
    let found = fences.look(tx, std::slice::from_ref(key)).await;
    Ok(found.map_err(failure)?.pop().flatten())
}

pub(super) fn key(command: &Command, slot: Slot) -> FenceKey {
    FenceKey::new(command.saga, &command.branch, slot)
}

pub(super) fn slot(op: Op) -> Slot {
    match op {
        Op::Act => Slot::Act,
        Op::Undo => Slot::Undo,
        Op::Confirm => Slot::Confirm,
    }
}

/// What has to be done can't be refused.
pub(super) fn no_refusal(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Refused(why) => Outcome::Unknown(why),
        other => other,
    }
}

/// A command that can't be read never will be.
pub(super) fn read(delivery: &Delivery) -> Result<Command, Failure> {
    Command::read(delivery).map_err(|error| Failure::last(error.to_string()))
}

pub(super) fn reply(
    command: &Command,
    outcome: Outcome,
    delivery: &Delivery,
) -> Result<Message, Failure> {
    let reply = command.reply(outcome);
    let message = reply.message(&command.reply_to, delivery.header(HEADER_TRACE));
    message.map_err(failure)
}

pub(super) fn failure(error: crate::Error) -> Failure {
    error.into()
}
