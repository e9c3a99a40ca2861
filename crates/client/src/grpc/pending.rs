//! The requests of one stream that were sent and not yet answered.

use quorate_kv::{Error, ErrorKind, Outcome};

use crate::Reply;

/// Replies by request id. An id is a slot's number, and in its upper half how often the slot was
/// used: a response to an id of the past finds nothing.
#[derive(Default)]
pub struct Pending {
    slots: Vec<Slot>,
    free: Vec<u32>,
    closed: bool,
}

#[derive(Default)]
struct Slot {
    used: u32,
    waiting: Option<(Reply, bool)>,
}

impl Pending {
    /// Notes a request that is about to be sent; gives its id.
    pub fn insert(&mut self, reply: Reply, is_write: bool) -> u64 {
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[at as usize];
        slot.used = slot.used.wrapping_add(1);
        slot.waiting = Some((reply, is_write));
        u64::from(slot.used) << 32 | u64::from(at)
    }

    /// Takes the reply of an id, if it is still open.
    pub fn remove(&mut self, id: u64) -> Option<Reply> {
        let at = id as u32;
        let slot = self.slots.get_mut(at as usize)?;
        if slot.used != (id >> 32) as u32 {
            return None;
        }
        let (reply, _) = slot.waiting.take()?;
        self.free.push(at);
        Some(reply)
    }

    /// Whether the stream has ended, so that nothing more is to be sent on it.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Ends it: every open request is answered that its connection broke.
    pub fn close(&mut self, why: &str) {
        self.closed = true;
        for slot in &mut self.slots {
            if let Some((reply, is_write)) = slot.waiting.take() {
                let outcome = if is_write {
                    Outcome::Unknown
                } else {
                    Outcome::NotApplied
                };
                let error = Error::new(ErrorKind::Unavailable, why).with_outcome(outcome);
                let _ = reply.send(Err(error.into()));
            }
        }
    }
}
