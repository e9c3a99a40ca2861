//! The stream of invalidations in the model: what is said, and how answers come late, twice, in another order, with
//! messages missing, from a server that has trimmed, lost or replaced its stream.

use std::sync::Arc;

use super::model::{LOCAL_CLOCK, Model, PROCESSES};
use super::schedules::Chance;
use crate::Version;
use crate::core::planted::{self, Bug};
use crate::core::{Batch, Feed, Heard, Message, Told, is_believed};

/// For how long after a proof a local tier is believed.
const STALENESS_MAX: u64 = 12;

/// The stream as the server has it, and what was acknowledged to anybody.
#[derive(Default)]
pub struct Stream {
    epoch: u64,
    last: u64,
    messages: Vec<Message>,
    /// When, which key, which version.
    pub acknowledged: Vec<(u64, usize, Version)>,
    /// Reads that local tiers of processes that hear answered.
    pub served: u64,
}

impl Stream {
    fn name(&self) -> Arc<str> {
        self.epoch.to_string().into()
    }

    pub fn publish(&mut self, told: Told) {
        self.last += 1;
        let number = self.last;
        self.messages.push(Message { number, told });
    }

    /// The newest version of a key that was acknowledged more than the bound before a time.
    pub fn acknowledged_long_ago(&self, key: usize, time: u64) -> Version {
        let of_key = self
            .acknowledged
            .iter()
            .filter(|(at, of, _)| *of == key && at + STALENESS_MAX < time);
        of_key
            .map(|(_, _, version)| *version)
            .max()
            .unwrap_or_default()
    }

    /// What is past a process's position.
    fn answer(&self, feed: &Feed, chance: &mut Chance) -> Batch {
        let position = feed.position().filter(|at| at.stream == self.name());
        let past = |message: &&Message| position.is_some_and(|at| message.number > at.number);
        let some = 1 + chance.below(3) as usize;
        Batch {
            stream: self.name(),
            messages: self
                .messages
                .iter()
                .filter(past)
                .take(some)
                .cloned()
                .collect(),
            end: (!chance.one_in(6)).then_some(self.last),
        }
    }
}

/// What a process hears.
#[derive(Default)]
pub struct Ears {
    feed: Feed,
    until: Option<u64>,
    /// Answers on their way, with the times of the questions.
    answers: Vec<(u64, Batch)>,
    /// What is yet to be done, and the proof that comes after it.
    heard: Option<Heard>,
}

impl Ears {
    pub fn believe(&self, now: u64) -> bool {
        is_believed(self.until.unwrap_or(0), now)
    }

    fn prove(&mut self, proven: Option<u64>) {
        self.until = self.until.max(proven.map(|at| at + STALENESS_MAX));
    }
}

impl Model {
    /// Something happens to the stream, or to a process that hears it: one step, or all from a question to its proof.
    pub fn hear(&mut self, chance: &mut Chance) {
        if chance.one_in(8) {
            return self.disturb_stream(chance);
        }
        let process = chance.below(PROCESSES as u64) as usize;
        let steps = if chance.one_in(2) { 1 } else { 5 };
        for _ in 0..steps {
            self.hear_step(process, chance);
        }
    }

    fn hear_step(&mut self, process: usize, chance: &mut Chance) {
        let (time, stream) = (self.time + LOCAL_CLOCK, &self.stream);
        let of = &mut self.processes[process];
        let (Some(ears), Some(local)) = (&mut of.ears, &mut of.local) else {
            return;
        };
        if let Some(heard) = &mut ears.heard {
            if heard.told.is_empty() {
                let proven = heard.proven;
                ears.prove(proven);
                ears.heard = None;
                return;
            }
            match heard.told.remove(0) {
                Told::Key(key, invalidation) => local.invalidate(&key, invalidation),
                Told::All => local.clear(),
                Told::Nothing => {}
            }
            return;
        }
        if ears.answers.is_empty() || (ears.answers.len() < 3 && chance.one_in(6)) {
            let answer = stream.answer(&ears.feed, chance);
            ears.answers.push((time, answer));
            return;
        }
        let at = chance.below(ears.answers.len() as u64) as usize;
        let (mut asked, mut batch) = ears.answers[at].clone();
        if !chance.one_in(8) {
            ears.answers.swap_remove(at);
        }
        if chance.one_in(8) && !batch.messages.is_empty() {
            let lost = chance.below(batch.messages.len() as u64) as usize;
            batch.messages.remove(lost);
        }
        if planted::is_on(Bug::FeedProvesTheTimeOfTheAnswer) {
            asked = time;
        }
        let heard = ears.feed.take(batch, asked);
        if planted::is_on(Bug::FeedProvesBeforeItIsDone) {
            ears.prove(heard.proven);
        }
        ears.heard = Some(heard);
    }

    /// The oldest messages are trimmed, the stream is flushed, or another server takes over.
    fn disturb_stream(&mut self, chance: &mut Chance) {
        let Some(remote) = &mut self.remote else {
            return;
        };
        if !chance.one_in(3) {
            let trimmed = self.stream.messages.len().min(1 + chance.below(2) as usize);
            self.stream.messages.drain(..trimmed);
            return;
        }
        remote.clear();
        self.stream.messages.clear();
        self.stream.epoch += 1;
        // Numbers may be given out once more.
        self.stream.last = chance.below(self.stream.last + 2);
    }
}
