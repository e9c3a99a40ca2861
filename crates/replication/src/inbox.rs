//! A snapshot being received, chunk by chunk. One at a time for each replica: a new one takes the
//! place of one that is under way.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_env::{JobClass, Jobs};

use crate::machine::run_job;
use crate::state_machine::{SnapshotSink, StateMachine};
use crate::types::ReplicaId;

pub(crate) struct Inbox {
    machine: Arc<dyn StateMachine>,
    jobs: Arc<dyn Jobs>,
    session: Mutex<Option<Session>>,
}

/// Invariant: `sink` holds the chunks below `next`; it is absent while a chunk is being written.
struct Session {
    id: (ReplicaId, u64),
    next: u64,
    sink: Option<Box<dyn SnapshotSink>>,
}

fn out_of_place(what: &str) -> io::Error {
    io::Error::other(format!("{what} of a snapshot that is not being received"))
}

impl Inbox {
    pub fn new(machine: Arc<dyn StateMachine>, jobs: Arc<dyn Jobs>) -> Inbox {
        Inbox {
            machine,
            jobs,
            session: Mutex::new(None),
        }
    }

    /// Starts to receive; what was under way is dropped.
    pub async fn begin(&self, from: ReplicaId, session: u64) -> io::Result<()> {
        let machine = Arc::clone(&self.machine);
        let sink = run_job(&self.jobs, JobClass::Read, move || machine.receive()).await??;
        let new = Session {
            id: (from, session),
            next: 0,
            sink: Some(sink),
        };
        *self.session.lock() = Some(new);
        Ok(())
    }

    /// Takes the next chunk. One that came before is accepted and ignored.
    pub async fn chunk(
        &self,
        from: ReplicaId,
        session: u64,
        number: u64,
        bytes: Bytes,
    ) -> io::Result<()> {
        let mut sink = {
            let mut held = self.session.lock();
            let of = held.as_mut().filter(|s| s.id == (from, session));
            let of = of.ok_or_else(|| out_of_place("a chunk"))?;
            if number < of.next {
                return Ok(());
            }
            if number > of.next {
                return Err(out_of_place("a later chunk"));
            }
            of.sink
                .take()
                .ok_or_else(|| out_of_place("a chunk too many"))?
        };
        let write = move || {
            let written = sink.write(bytes);
            (sink, written)
        };
        let (sink, written) = run_job(&self.jobs, JobClass::Read, write).await?;
        let mut held = self.session.lock();
        match held.as_mut().filter(|s| s.id == (from, session)) {
            Some(of) if written.is_ok() => {
                of.next += 1;
                of.sink = Some(sink);
            }
            Some(_) => *held = None,
            None => {}
        }
        written
    }

    /// All chunks are here: hands out what received them.
    pub fn finish(
        &self,
        from: ReplicaId,
        session: u64,
        chunks: u64,
    ) -> io::Result<Box<dyn SnapshotSink>> {
        let mut held = self.session.lock();
        let whole = held
            .as_ref()
            .is_some_and(|s| s.id == (from, session) && s.next == chunks);
        if !whole {
            return Err(out_of_place("the end"));
        }
        let sink = held.take().and_then(|session| session.sink);
        sink.ok_or_else(|| out_of_place("the end"))
    }
}
