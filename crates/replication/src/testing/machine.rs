//! A state machine in memory: the list of all commands applied. What is not flushed is lost when it
//! is reopened.

use std::io;
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use parking_lot::Mutex;

use crate::codec::Reader;
use crate::state_machine::{
    Applied, Command, CommandBody, SnapshotSink, SnapshotSource, StateMachine,
};

/// Keeps every write in order. Its answer to a write is the number of writes before it, as 8 bytes
/// little-endian.
#[derive(Default)]
pub struct MemoryMachine {
    state: Arc<Mutex<Both>>,
    /// Every apply flushes.
    flush_always: bool,
    /// What the next apply fails of.
    fault: Mutex<Option<io::ErrorKind>>,
}

#[derive(Default)]
struct Both {
    now: State,
    durable: State,
    receives: u64,
    installs: u64,
}

#[derive(Default, Clone)]
struct State {
    applied: Applied,
    writes: Vec<Bytes>,
}

impl MemoryMachine {
    /// An empty one that flushes only when told.
    pub fn new() -> MemoryMachine {
        MemoryMachine::default()
    }

    /// An empty one that flushes at each step.
    pub fn flushing() -> MemoryMachine {
        MemoryMachine {
            flush_always: true,
            ..MemoryMachine::default()
        }
    }

    /// Lets the next apply fail, without effect.
    pub fn fail_once(&self, kind: io::ErrorKind) {
        *self.fault.lock() = Some(kind);
    }

    /// Makes what is applied durable.
    pub fn flush(&self) {
        let mut state = self.state.lock();
        state.durable = state.now.clone();
    }

    /// As it comes up after a crash.
    pub fn reopen(&self) -> MemoryMachine {
        let durable = self.state.lock().durable.clone();
        let state = Both {
            now: durable.clone(),
            durable,
            receives: 0,
            installs: 0,
        };
        MemoryMachine {
            state: Arc::new(Mutex::new(state)),
            flush_always: self.flush_always,
            fault: Mutex::default(),
        }
    }

    /// All writes applied, in order.
    pub fn writes(&self) -> Vec<Bytes> {
        self.state.lock().now.writes.clone()
    }

    /// How many snapshots it began to receive.
    pub fn receives(&self) -> u64 {
        self.state.lock().receives
    }

    /// How many snapshots were installed.
    pub fn installs(&self) -> u64 {
        self.state.lock().installs
    }

    /// Applies without checking that no index is missing.
    pub(crate) fn apply_with_holes(&self, commands: &[Command]) -> io::Result<Vec<Bytes>> {
        let mut state = self.state.lock();
        let mut results = Vec::with_capacity(commands.len());
        for command in commands {
            state.now.applied.entry = Some(command.id);
            let mut result = Bytes::new();
            match &command.body {
                CommandBody::Blank => {}
                CommandBody::Write(bytes) => {
                    let before = state.now.writes.len() as u64;
                    result = Bytes::copy_from_slice(&before.to_le_bytes());
                    state.now.writes.push(bytes.clone());
                }
                CommandBody::Membership(bytes) => state.now.applied.membership = bytes.clone(),
            }
            results.push(result);
        }
        if self.flush_always {
            state.durable = state.now.clone();
        }
        Ok(results)
    }
}

impl StateMachine for MemoryMachine {
    fn applied(&self) -> io::Result<Applied> {
        Ok(self.state.lock().now.applied.clone())
    }

    fn apply(&self, commands: &[Command]) -> io::Result<Vec<Bytes>> {
        if let Some(kind) = self.fault.lock().take() {
            return Err(io::Error::new(kind, "failed on purpose"));
        }
        let last = self.state.lock().now.applied.entry;
        let first = last.map_or(0, |entry| entry.index + 1);
        for (command, expected) in commands.iter().zip(first..) {
            if command.id.index != expected {
                let got = command.id.index;
                return Err(io::Error::other(format!(
                    "applied {got} in place of {expected}"
                )));
            }
        }
        self.apply_with_holes(commands)
    }

    fn flushed(&self) -> Option<u64> {
        self.state
            .lock()
            .durable
            .applied
            .entry
            .map(|entry| entry.index)
    }

    fn snapshot(&self) -> io::Result<Box<dyn SnapshotSource>> {
        let state = self.state.lock().now.clone();
        let mut bytes = Vec::new();
        for write in &state.writes {
            bytes.put_u32_le(write.len() as u32);
            bytes.extend_from_slice(write);
        }
        Ok(Box::new(Source {
            applied: state.applied,
            rest: bytes.into(),
        }))
    }

    fn receive(&self) -> io::Result<Box<dyn SnapshotSink>> {
        self.state.lock().receives += 1;
        Ok(Box::new(Sink {
            state: Arc::clone(&self.state),
            bytes: Vec::new(),
        }))
    }
}

struct Source {
    applied: Applied,
    rest: Bytes,
}

impl SnapshotSource for Source {
    fn applied(&self) -> &Applied {
        &self.applied
    }

    fn next_chunk(&mut self, bytes_max: usize) -> io::Result<Option<Bytes>> {
        let length = bytes_max.min(self.rest.len());
        Ok((length > 0).then(|| self.rest.split_to(length)))
    }
}

struct Sink {
    state: Arc<Mutex<Both>>,
    bytes: Vec<u8>,
}

impl SnapshotSink for Sink {
    fn write(&mut self, chunk: Bytes) -> io::Result<()> {
        self.bytes.extend_from_slice(&chunk);
        Ok(())
    }

    fn install(self: Box<Self>, applied: &Applied) -> io::Result<()> {
        let length = self.bytes.len();
        let mut reader = Reader::new(self.bytes.into());
        let mut writes = Vec::new();
        while reader.at() < length {
            let mut write = || {
                let length = reader.u32()? as usize;
                reader.bytes(length)
            };
            writes.push(write().map_err(io::Error::other)?);
        }
        let mut state = self.state.lock();
        state.now = State {
            applied: applied.clone(),
            writes,
        };
        state.durable = state.now.clone();
        state.installs += 1;
        Ok(())
    }
}
