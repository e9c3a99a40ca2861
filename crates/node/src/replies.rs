//! Where answers go: many requests, many answers, in any order.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use quorate_kv::OpResult;
use quorate_sharding::{Answer, Response};
use tokio::sync::mpsc;

/// Answers, each with its request's id.
pub type ReplyBatch = Vec<(u64, Response)>;

/// The way back to whoever sent requests. Clones lead to the same place.
#[derive(Debug, Clone)]
pub struct Replies {
    sender: mpsc::UnboundedSender<ReplyBatch>,
    unsent: Option<Unsent>,
}

/// The bytes of answers that were made and that their reader has not taken yet. Clones count together.
#[derive(Debug, Clone)]
pub struct Unsent {
    bytes: Arc<AtomicUsize>,
    most: usize,
}

impl Unsent {
    /// Counts answers of so many bytes as taken.
    pub fn taken(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn is_full(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) >= self.most
    }
}

/// About how much memory an answer takes, in bytes: the same before and after it is sent.
pub fn answer_bytes(response: &Response) -> usize {
    const HEAD: usize = 64;
    HEAD + match response {
        Ok(Answer::Entry(Some(entry))) => entry.key.len() + entry.value.len(),
        Ok(Answer::Scan { entries, .. }) => entries
            .iter()
            .map(|entry| HEAD + entry.key.len() + entry.value.len())
            .sum(),
        Ok(Answer::Compare { results, .. }) => results.iter().map(result_bytes).sum(),
        _ => 0,
    }
}

fn result_bytes(result: &OpResult) -> usize {
    match result {
        OpResult::Entry(Some(entry)) => entry.key.len() + entry.value.len(),
        _ => 0,
    }
}

impl Replies {
    /// A way back and its end. What is under way is bounded by the requests that were taken.
    pub fn channel() -> (Replies, mpsc::UnboundedReceiver<ReplyBatch>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let unsent = None;
        (Replies { sender, unsent }, receiver)
    }

    /// The same, for a reader who may be slow: while answers of so many bytes wait for it, reads are refused. It says
    /// what it took by the [`Unsent`].
    pub fn bounded(bytes: usize) -> (Replies, mpsc::UnboundedReceiver<ReplyBatch>, Unsent) {
        let (mut replies, receiver) = Replies::channel();
        let unsent = Unsent {
            bytes: Arc::default(),
            most: bytes,
        };
        replies.unsent = Some(unsent.clone());
        (replies, receiver, unsent)
    }

    /// Whether the reader has to take answers before more are made that may be large.
    pub(crate) fn is_full(&self) -> bool {
        self.unsent.as_ref().is_some_and(Unsent::is_full)
    }

    /// Sends answers; if nobody waits for them any more they are dropped.
    pub(crate) fn send(&self, answers: ReplyBatch) {
        if !answers.is_empty() {
            if let Some(unsent) = &self.unsent {
                let bytes = answers.iter().map(|(_, answer)| answer_bytes(answer)).sum();
                unsent.bytes.fetch_add(bytes, Ordering::Relaxed);
            }
            let _ = self.sender.send(answers);
        }
    }

    /// Sends answers that go to several places, those of one place together.
    pub(crate) fn send_each(answers: impl Iterator<Item = (Replies, u64, Response)>) {
        let mut places: Vec<(Replies, ReplyBatch)> = Vec::new();
        for (to, id, response) in answers {
            let place = places
                .iter_mut()
                .find(|(place, _)| place.sender.same_channel(&to.sender));
            match place {
                Some((_, batch)) => batch.push((id, response)),
                None => places.push((to, vec![(id, response)])),
            }
        }
        for (place, batch) in places {
            place.send(batch);
        }
    }
}
