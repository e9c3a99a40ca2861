//! Where answers go: many requests, many answers, in any order.

use quorate_sharding::Response;
use tokio::sync::mpsc;

/// Answers, each with its request's id.
pub type ReplyBatch = Vec<(u64, Response)>;

/// The way back to whoever sent requests. Clones lead to the same place.
#[derive(Debug, Clone)]
pub struct Replies {
    sender: mpsc::UnboundedSender<ReplyBatch>,
}

impl Replies {
    /// A way back and its end. What is under way is bounded by the requests that were taken.
    pub fn channel() -> (Replies, mpsc::UnboundedReceiver<ReplyBatch>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Replies { sender }, receiver)
    }

    /// Sends answers; if nobody waits for them any more they are dropped.
    pub(crate) fn send(&self, answers: ReplyBatch) {
        if !answers.is_empty() {
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
