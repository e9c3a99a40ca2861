//! One operation on one shard: route, send, judge what came back, perhaps again.
//!
//! What is repeated, and when:
//!
//! | came back | reads | writes |
//! |---|---|---|
//! | answer | done | done |
//! | `WrongEpoch` | take in the new shards, again at once | the same |
//! | `NotLeader` | at the leader it names, else the next replica; the map anew if that one is not in it | the same |
//! | `Unavailable`, `NoQuorum`, not applied | next replica, after a pause | the same |
//! | `Overloaded`, by the node or by this client itself | after the pause that the hint says, if the budget pays for it and time is left; else fails at once | the same |
//! | any, outcome unknown | next replica | fails: outcome unknown |
//! | no answer in time | next replica, if time is left and the budget pays | fails: outcome unknown |
//! | any other error | fails | fails |
//!
//! A leader that is silent for a moment may be frozen or cut off, and another may lead: the other nodes are asked,
//! and once one says that it leads itself, nothing more is waited for from the silent one.

use std::sync::Arc;
use std::time::Duration;

use quorate_kv::{Error, ErrorKind, Outcome, ReadLevel, Result};
use quorate_sharding::{Answer, Failure, NamespaceId, NodeId, Operation, Request, Shard, WriteId};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::client::Inner;
use crate::counters::count;
use crate::routes::{Place, Target};
use crate::window::{SILENCE, Window};

/// The first pause before a repetition; it doubles each time.
const PAUSE_MIN: Duration = Duration::from_millis(2);
/// The longest pause before a repetition: elections take a few hundred milliseconds.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// When to come again after this client itself refused.
const HINT_HERE: Duration = Duration::from_millis(50);

/// One operation and how far it has come.
pub struct Call<'a> {
    inner: &'a Inner,
    namespace: NamespaceId,
    place: Place,
    operation: Operation,
    deadline: Instant,
    timeout: Duration,
    is_write: bool,
    to_leader: bool,
    write_id: WriteId,
    turn: usize,
    /// The node that was asked last and did not answer: not asked again at once.
    avoid: Option<NodeId>,
    pause: Duration,
    last: Option<Error>,
}

/// What to do after a failure.
enum Verdict {
    Fail(Error),
    Again,
    AgainAfterPause(Option<Duration>),
}

impl<'a> Call<'a> {
    /// A call of an operation on the shard at `place`.
    pub fn new(
        inner: &'a Inner,
        namespace: NamespaceId,
        place: Place,
        operation: Operation,
        deadline: Instant,
    ) -> Self {
        let is_write = operation.is_write();
        let any_replica = match operation.level() {
            Some(ReadLevel::Stale | ReadLevel::AtLeast(_)) => true,
            Some(ReadLevel::Linearizable) => inner.options.read_any_replica,
            _ => false,
        };
        Call {
            inner,
            namespace,
            place,
            deadline,
            timeout: deadline.saturating_duration_since(Instant::now()),
            is_write,
            to_leader: !any_replica,
            write_id: if is_write {
                inner.next_write()
            } else {
                WriteId::default()
            },
            operation,
            turn: if any_replica { inner.next_turn() } else { 0 },
            avoid: None,
            pause: PAUSE_MIN,
            last: None,
        }
    }

    /// Carries it through; also gives the shard that answered.
    ///
    /// # Errors
    /// What the server answered if that is final, `DeadlineExceeded` when time ran out; a write's
    /// outcome is `Unknown` if it may have happened.
    pub async fn run(mut self) -> Result<(Arc<Shard>, Answer)> {
        self.inner.budget.earn();
        loop {
            if Instant::now() >= self.deadline {
                return Err(self.gave_up());
            }
            let Some(target) = self.target()? else {
                self.last = Some(Error::new(
                    ErrorKind::Unavailable,
                    "no shard in the map holds the key at the moment",
                ));
                self.refresh().await;
                self.rest(None).await;
                continue;
            };
            match self.attempt(&target).await {
                Ok(answer) => return Ok((target.shard, answer)),
                Err(failure) => match self.judge(&target, failure).await {
                    Verdict::Fail(error) => return Err(error),
                    Verdict::Again => {}
                    Verdict::AgainAfterPause(hint) => self.rest(hint).await,
                },
            }
        }
    }

    /// Where to go now, if the map has the shard; checks that a batch still fits into one.
    fn target(&self) -> Result<Option<Target>> {
        let routes = self.inner.routes.read();
        let target = routes.target(
            self.namespace,
            &self.place,
            self.to_leader,
            self.turn,
            self.avoid,
        );
        if let Some(target) = &target {
            let namespace = routes.map().namespace(self.namespace);
            let encoding = namespace.map(|n| n.kind.encoding()).unwrap_or_default();
            let inside = |key: &bytes::Bytes| target.shard.contains(&encoding.encode_bytes(key));
            let whole = match &self.operation {
                Operation::Batch { mutations } => mutations.iter().all(|m| inside(m.key())),
                Operation::Compare {
                    conditions,
                    then_ops,
                    else_ops,
                } => {
                    conditions.iter().all(|(key, _)| inside(key))
                        && then_ops.iter().chain(else_ops).all(|op| inside(op.key()))
                }
                _ => true,
            };
            if !whole {
                return Err(Error::new(
                    ErrorKind::CrossShard,
                    "the keys are in several shards: a batch or compare is of one shard",
                ));
            }
        }
        Ok(target)
    }

    /// Sends it to the node, if that has not too much in flight from here, and tells the node's window how it went.
    async fn attempt(&self, target: &Target) -> std::result::Result<Answer, Failure> {
        let Some(_permit) = target.window.enter(self.operation.size_bytes()) else {
            count(&self.inner.counts.refused_here);
            let message = format!(
                "more is in flight to node {} than it takes at the moment",
                target.node
            );
            let error = Error::new(ErrorKind::Overloaded, message);
            return Err(error.with_retry_after(HINT_HERE).into());
        };
        let begun = Instant::now();
        let answer = self.ask(target, begun).await;
        self.learn(&target.window, &answer, begun.elapsed());
        answer
    }

    /// What an answer says of the node's load, or of the way to it.
    fn learn(
        &self,
        window: &Window,
        answer: &std::result::Result<Answer, Failure>,
        took: Duration,
    ) {
        let kind = answer.as_ref().err().map(|failure| failure.error.kind());
        match kind {
            None => {
                window.heard();
                // More of that, and answers would come too late.
                if took > self.timeout / 2 {
                    window.refused();
                } else {
                    window.answered();
                }
            }
            Some(ErrorKind::Overloaded) => {
                count(&self.inner.counts.refused_by_nodes);
                window.heard();
                window.refused();
            }
            // It answers others: it is slow, neither dead nor frozen.
            Some(ErrorKind::DeadlineExceeded) if !window.is_silent() => window.refused(),
            // Perhaps the transport said so, not the node.
            Some(ErrorKind::DeadlineExceeded | ErrorKind::Unavailable) => {}
            Some(_) => window.heard(),
        }
    }

    async fn ask(&self, target: &Target, now: Instant) -> std::result::Result<Answer, Failure> {
        let (reply, response) = oneshot::channel();
        let request = Request {
            request_id: 0,
            namespace: self.namespace,
            shard: target.shard.id,
            epoch: target.shard.epoch,
            write_id: self.write_id,
            timeout: self.deadline.saturating_duration_since(now),
            trace: None,
            operation: clipped(&self.operation, &target.shard),
        };
        self.inner.transport.send(&target.address, request, reply);
        let until = if self.is_write {
            self.deadline
        } else {
            self.deadline.min(now + self.inner.options.attempt_timeout)
        };
        let mut response = response;
        let mut answer = timeout_at(until.min(now + SILENCE), &mut response).await;
        if answer.is_err() {
            answer = tokio::select! {
                biased;
                answer = timeout_at(until, response) => answer,
                () = self.inner.led_elsewhere(target), if self.to_leader => {
                    return Err(self.silent(ErrorKind::Unavailable, target, "fell silent, and leads no more"));
                }
            };
        }
        match answer {
            Ok(Ok(response)) => response,
            Ok(Err(_)) => Err(self.silent(ErrorKind::Unavailable, target, "broke off")),
            Err(_) => Err(self.silent(ErrorKind::DeadlineExceeded, target, "did not answer")),
        }
    }

    /// The failure of a request that was sent and not answered.
    fn silent(&self, kind: ErrorKind, target: &Target, what: &str) -> Failure {
        let outcome = if self.is_write {
            Outcome::Unknown
        } else {
            Outcome::NotApplied
        };
        let message = format!("node {} at {} {what}", target.node, target.address);
        Error::new(kind, message).with_outcome(outcome).into()
    }

    async fn judge(&mut self, target: &Target, failure: Failure) -> Verdict {
        let Failure {
            mut error,
            redirect,
        } = failure;
        if !self.is_write {
            error = error.with_outcome(Outcome::NotApplied);
        }
        if let Some(redirect) = &redirect {
            let mut routes = self.inner.routes.write();
            routes.redirect(target.shard.id, target.node, redirect);
        }
        let kind = error.kind();
        let silent = match kind {
            ErrorKind::Unavailable => true,
            // One that answers others leads all the same; under load nobody is to be sent astray.
            ErrorKind::DeadlineExceeded => target.window.is_silent(),
            _ => false,
        };
        self.avoid = silent.then_some(target.node);
        if silent {
            let mut routes = self.inner.routes.write();
            routes.forget_leader(target.shard.id, target.node);
        }
        if error.outcome() != Outcome::NotApplied {
            return Verdict::Fail(error);
        }
        let verdict = match kind {
            ErrorKind::WrongEpoch => self.follow_epoch(target).await,
            ErrorKind::NotLeader => match redirect.and_then(|r| r.leader) {
                // Replicas have moved since the map was fetched.
                Some(leader) if target.shard.replica_on(leader).is_none() => {
                    self.refresh().await;
                    self.turn += 1;
                    Verdict::AgainAfterPause(None)
                }
                leader => self.follow_leader(target, leader),
            },
            ErrorKind::Unavailable if self.to_leader && self.is_led_by_another(target) => {
                self.turn = 0;
                Verdict::Again
            }
            ErrorKind::DeadlineExceeded if self.is_over() => Verdict::Again,
            ErrorKind::DeadlineExceeded if !self.may_repeat() => {
                Verdict::Fail(out_of_budget(&error))
            }
            ErrorKind::Unavailable | ErrorKind::DeadlineExceeded | ErrorKind::NoQuorum => {
                self.turn += 1;
                let replicas = target.shard.replicas.len().max(1);
                if self.turn.is_multiple_of(replicas) {
                    self.refresh().await;
                    Verdict::AgainAfterPause(error.retry_after())
                } else {
                    Verdict::Again
                }
            }
            ErrorKind::Overloaded => self.come_again(&error),
            ErrorKind::UnknownNamespace => self.follow_namespace(error.clone()).await,
            _ => Verdict::Fail(error.clone()),
        };
        self.last = Some(error);
        verdict
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// Whether the budget pays for a repetition.
    fn may_repeat(&self) -> bool {
        let paid = self.inner.budget.spend();
        let counts = &self.inner.counts;
        count(if paid {
            &counts.retries
        } else {
            &counts.budget_exhausted
        });
        paid
    }

    /// What to do when there was too much to do. Waiting for a deadline that passes meanwhile helps nobody.
    fn come_again(&self, error: &Error) -> Verdict {
        let after = self.spread(error.retry_after().unwrap_or(self.pause));
        if Instant::now() + after >= self.deadline {
            return Verdict::Fail(error.clone());
        }
        if self.may_repeat() {
            Verdict::AgainAfterPause(Some(after))
        } else {
            Verdict::Fail(out_of_budget(error))
        }
    }

    /// A hint as this call takes it: up to half as long again, so that not all come again together.
    fn spread(&self, hint: Duration) -> Duration {
        let step = (self.inner.next_turn().wrapping_mul(0x9E37_79B9) >> 8) & 0xFF;
        hint + hint * step as u32 / 512
    }

    /// The shard changed. If the redirect did not bring the change, the map may have it.
    async fn follow_epoch(&mut self, target: &Target) -> Verdict {
        if self.knows_better(target) {
            return Verdict::Again;
        }
        self.refresh().await;
        if self.knows_better(target) {
            return Verdict::Again;
        }
        // The node that answered is behind; another one may not be.
        self.turn += 1;
        Verdict::AgainAfterPause(None)
    }

    fn knows_better(&self, target: &Target) -> bool {
        let routes = self.inner.routes.read();
        let now = routes.shard(self.namespace, &self.place);
        now.is_some_and(|s| s.id != target.shard.id || s.epoch != target.shard.epoch)
    }

    /// Whether the next attempt goes to another node because that one leads, as far as is known.
    fn is_led_by_another(&self, target: &Target) -> bool {
        let leader = self.inner.routes.read().leader(target.shard.id);
        let is_other =
            |leader: NodeId| leader != target.node && target.shard.replica_on(leader).is_some();
        leader.is_some_and(is_other)
    }

    fn follow_leader(&mut self, target: &Target, hint: Option<NodeId>) -> Verdict {
        match hint {
            Some(leader) if leader != target.node && self.turn == 0 => {
                // Counts as a turn only when it comes back: two nodes may name each other.
                self.pause = (self.pause * 2).min(PAUSE_MAX);
                if self.pause < PAUSE_MAX {
                    Verdict::Again
                } else {
                    Verdict::AgainAfterPause(None)
                }
            }
            Some(leader) if leader != target.node => {
                self.turn = 0;
                Verdict::AgainAfterPause(None)
            }
            _ => {
                self.turn += 1;
                Verdict::AgainAfterPause(None)
            }
        }
    }

    /// A node may not have heard of a new namespace; one that the map lacks too is gone.
    async fn follow_namespace(&mut self, error: Error) -> Verdict {
        self.refresh().await;
        self.turn += 1;
        let known = self
            .inner
            .routes
            .read()
            .map()
            .namespace(self.namespace)
            .is_some();
        if known {
            Verdict::AgainAfterPause(None)
        } else {
            Verdict::Fail(error)
        }
    }

    async fn refresh(&self) {
        let _ = timeout_at(self.deadline, self.inner.refresh()).await;
    }

    /// Waits before the next attempt, longer each time, not past the deadline.
    async fn rest(&mut self, hint: Option<Duration>) {
        let pause = hint.unwrap_or(self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        let until = (Instant::now() + pause).min(self.deadline);
        tokio::time::sleep_until(until).await;
    }

    fn gave_up(self) -> Error {
        let why = match &self.last {
            Some(last) => format!(": {}", last.message()),
            None => String::new(),
        };
        let message = format!("gave up after {} ms{why}", self.timeout.as_millis());
        Error::new(ErrorKind::DeadlineExceeded, message)
    }
}

/// The error of a repetition that nothing is left for.
fn out_of_budget(error: &Error) -> Error {
    let message = format!(
        "{}; not tried again, since this client's budget of repetitions is used up",
        error.message()
    );
    let same = Error::new(error.kind(), message).with_outcome(error.outcome());
    match error.retry_after() {
        Some(after) => same.with_retry_after(after),
        None => same,
    }
}

/// The operation as it is for one shard: a scan keeps to the shard's range.
fn clipped(operation: &Operation, shard: &Shard) -> Operation {
    let mut operation = operation.clone();
    if let Operation::Scan { start, end, .. } = &mut operation {
        if *start < shard.start {
            *start = shard.start.clone();
        }
        if !shard.end.is_empty() && (end.is_empty() || *end > shard.end) {
            *end = shard.end.clone();
        }
    }
    operation
}
