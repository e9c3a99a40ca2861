//! What clients do: reads and writes of a few keys, as fast as they are answered, each noted in the history.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_client::NamespaceKv;
use quorate_env::Random;
use quorate_kv::{
    Batch, Compare, Condition, Delete, Entry, Error, ErrorKind, Get, Kv, Mutation, Op as KvOp,
    OpResult, Outcome as Known, Put, ReadLevel, Scan, ScanOrder, Token,
};

use crate::history::{Action, History, Level, Op, Outcome, Value};
use crate::trace::Trace;

/// Keys below this are of the wide namespace, the others of the compact one.
pub const WIDE_KEYS: u64 = 6;
/// All keys.
pub const KEYS: u64 = 10;

/// What all clients share.
#[derive(Clone)]
pub struct Shared {
    /// What they saw.
    pub history: Arc<Mutex<History>>,
    /// Errors that no fault explains.
    pub odd_errors: Arc<Mutex<Vec<String>>>,
    /// Where it is noted.
    pub trace: Trace,
    now_us: Arc<AtomicU64>,
    next_value: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Shared {
    /// Nothing happened yet.
    pub fn new(trace: Trace) -> Shared {
        Shared {
            history: Arc::default(),
            odd_errors: Arc::default(),
            trace,
            now_us: Arc::default(),
            next_value: Arc::new(AtomicU64::new(1)),
            over: Arc::default(),
        }
    }

    /// Time goes on.
    pub fn set_now(&self, now_us: u64) {
        self.now_us.fetch_max(now_us, Ordering::Relaxed);
    }

    /// A moment of its own: what comes later has a greater one.
    fn moment(&self) -> u64 {
        self.now_us.fetch_add(1, Ordering::Relaxed)
    }

    /// Clients end with what they are doing.
    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    fn value(&self) -> Value {
        self.next_value.fetch_add(1, Ordering::Relaxed)
    }
}

/// One client.
pub struct Worker {
    /// Its id.
    pub client: u64,
    /// The two namespaces.
    pub wide: NamespaceKv,
    /// The second.
    pub compact: NamespaceKv,
    /// Its choices.
    pub random: Random,
    /// What is shared.
    pub shared: Shared,
    /// The newest token of each namespace.
    pub tokens: [Option<Token>; 2],
    /// What it last saw of each key: its version.
    pub seen: Vec<u64>,
    /// How long it thinks at most, in milliseconds.
    pub think_ms: u64,
}

/// The bytes of a key.
fn key_bytes(key: u64) -> Bytes {
    Bytes::from(format!("key-{key:02}"))
}

/// The key of bytes.
fn key_of(bytes: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(bytes).ok()?;
    text.strip_prefix("key-")?.parse().ok()
}

fn value_bytes(value: Value, padding: usize) -> Bytes {
    let mut text = format!("{value} ");
    text.push_str(&"x".repeat(padding));
    Bytes::from(text)
}

fn value_of(bytes: &[u8]) -> Value {
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    let number = text.split(' ').next().and_then(|word| word.parse().ok());
    // What nobody wrote is a value that nobody wrote.
    number.unwrap_or(u64::MAX)
}

fn read_of(entry: Option<&Entry>) -> Outcome {
    Outcome::Done {
        applied: true,
        value: entry.map_or(0, |entry| value_of(&entry.value)),
        version: entry.map_or(0, |entry| entry.version),
    }
}

impl Worker {
    fn kv(&self, key: u64) -> &NamespaceKv {
        match key < WIDE_KEYS {
            true => &self.wide,
            false => &self.compact,
        }
    }

    fn space(key: u64) -> usize {
        usize::from(key >= WIDE_KEYS)
    }

    fn padding(&self) -> usize {
        match self.random.below(20) {
            0 => 3000 + self.random.below(3000) as usize,
            1..5 => self.random.below(600) as usize,
            _ => 0,
        }
    }

    /// Goes on until it is told to end.
    pub async fn run(mut self) {
        while !self.shared.over.load(Ordering::Relaxed) {
            self.once().await;
            let think = self.random.below(self.think_ms);
            tokio::time::sleep(Duration::from_millis(think)).await;
        }
    }

    async fn once(&mut self) {
        let key = self.random.below(KEYS);
        match self.random.below(100) {
            0..28 => self.put(key).await,
            28..34 => self.delete(key).await,
            34..44 => self.put_if(key).await,
            44..50 => self.compare(key).await,
            50..56 => self.batch(key).await,
            56..60 => self.scan().await,
            60..85 => {
                self.get(key, ReadLevel::Linearizable).await;
            }
            85..95 => self.get_at_least(key).await,
            _ => {
                self.get(key, ReadLevel::Stale).await;
            }
        }
    }

    fn timeout(&self) -> Option<Duration> {
        Some(Duration::from_millis(200 + self.random.below(2500)))
    }

    fn note(&self, key: u64, action: Action, began_us: u64, outcome: Outcome) {
        let ended_us = match outcome {
            Outcome::Unknown => u64::MAX,
            Outcome::Done { .. } => self.shared.moment(),
        };
        let numbers = match outcome {
            Outcome::Unknown => [self.client, key, began_us, 0, 0],
            Outcome::Done { value, version, .. } => [self.client, key, began_us, value, version],
        };
        self.shared.trace.note("op", &numbers);
        let op = Op {
            client: self.client,
            key,
            action,
            began_us,
            ended_us,
            outcome,
        };
        self.shared.history.lock().ops.push(op);
    }

    /// What an error says of the outcome; `None` if nothing happened.
    fn failed(&self, error: &Error) -> Option<Outcome> {
        let numbers = [self.client, u64::from(error.kind().code())];
        self.shared.trace.note("error", &numbers);
        if matches!(error.kind(), ErrorKind::Corruption | ErrorKind::Internal) {
            let mut odd = self.shared.odd_errors.lock();
            odd.push(error.to_string());
        }
        (error.outcome() != Known::NotApplied).then_some(Outcome::Unknown)
    }

    fn saw(&mut self, key: u64, version: u64) {
        if let Some(seen) = self.seen.get_mut(key as usize) {
            *seen = version;
        }
    }

    fn seen(&self, key: u64) -> u64 {
        self.seen.get(key as usize).copied().unwrap_or(0)
    }

    fn condition(expected: u64) -> Condition {
        match expected {
            0 => Condition::Absent,
            version => Condition::Version(version),
        }
    }

    /// A put; true if it was done.
    pub async fn put_once(&mut self, key: u64) -> bool {
        let (value, padding) = (self.shared.value(), self.padding());
        let put = Put::new(key_bytes(key), value_bytes(value, padding));
        let put = match self.timeout() {
            Some(timeout) => put.timeout(timeout),
            None => put,
        };
        self.write(key, Action::Write(value), put).await
    }

    async fn put(&mut self, key: u64) {
        self.put_once(key).await;
    }

    async fn put_if(&mut self, key: u64) {
        let (value, expected) = (self.shared.value(), self.seen(key));
        let put = Put::new(key_bytes(key), value_bytes(value, 0)).when(Self::condition(expected));
        let mut put = put;
        put.timeout = self.timeout();
        self.write(key, Action::WriteIf { expected, value }, put)
            .await;
    }

    async fn write(&mut self, key: u64, action: Action, put: Put) -> bool {
        let began_us = self.shared.moment();
        let answer = self.kv(key).put(put).await;
        match answer {
            Ok(written) => {
                let value = match action {
                    Action::Write(value) | Action::WriteIf { value, .. } => value,
                    Action::Read(_) => 0,
                };
                let outcome = Outcome::Done {
                    applied: written.applied,
                    value,
                    version: written.version,
                };
                self.note(key, action, began_us, outcome);
                self.tokens[Self::space(key)] = Some(written.token);
                // The version that was found may be of a value that nobody reads.
                if written.applied {
                    self.saw(key, written.version);
                }
                true
            }
            Err(error) => {
                if let Some(outcome) = self.failed(&error) {
                    self.note(key, action, began_us, outcome);
                }
                false
            }
        }
    }

    async fn delete(&mut self, key: u64) {
        let mut delete = Delete::new(key_bytes(key));
        delete.timeout = self.timeout();
        let began_us = self.shared.moment();
        match self.kv(key).delete(delete).await {
            Ok(written) => {
                let outcome = Outcome::Done {
                    applied: written.applied,
                    value: 0,
                    version: written.version,
                };
                self.note(key, Action::Write(0), began_us, outcome);
                self.tokens[Self::space(key)] = Some(written.token);
                self.saw(key, 0);
            }
            Err(error) => {
                if let Some(outcome) = self.failed(&error) {
                    self.note(key, Action::Write(0), began_us, outcome);
                }
            }
        }
    }

    async fn compare(&mut self, key: u64) {
        let (value, expected) = (self.shared.value(), self.seen(key));
        let put = KvOp::Mutate(Mutation::put(key_bytes(key), value_bytes(value, 0)));
        let get = KvOp::Get {
            key: key_bytes(key),
        };
        let compare = Compare::new().when(key_bytes(key), Self::condition(expected));
        let mut compare = compare.then(put).or_else(get);
        compare.timeout = self.timeout();
        let action = Action::WriteIf { expected, value };
        let began_us = self.shared.moment();
        let answer = self.kv(key).compare(compare).await;
        match answer {
            Ok(result) if result.succeeded => {
                let outcome = Outcome::Done {
                    applied: true,
                    value,
                    version: result.version,
                };
                self.note(key, action, began_us, outcome);
                self.tokens[Self::space(key)] = Some(result.token);
                self.saw(key, result.version);
            }
            Ok(result) => {
                let found = match result.results.first() {
                    Some(OpResult::Entry(entry)) => entry.as_ref(),
                    _ => None,
                };
                let outcome = read_of(found);
                self.saw(key, found.map_or(0, |entry| entry.version));
                let read = Action::Read(Level::Linearizable);
                self.note(key, read, began_us, outcome);
            }
            Err(error) => {
                if let Some(outcome) = self.failed(&error) {
                    self.note(key, action, began_us, outcome);
                }
            }
        }
    }

    async fn batch(&mut self, first: u64) {
        let (from, count) = match first < WIDE_KEYS {
            true => (0, WIDE_KEYS),
            false => (WIDE_KEYS, KEYS - WIDE_KEYS),
        };
        let second = from + (first - from + 1 + self.random.below(count - 1)) % count;
        let writes = [first, second].map(|key| (key, self.shared.value()));
        let mutations = writes
            .iter()
            .map(|(key, value)| Mutation::put(key_bytes(*key), value_bytes(*value, 0)));
        let mut batch = Batch::new(mutations.collect());
        batch.timeout = self.timeout();
        let began_us = self.shared.moment();
        let outcome = match self.kv(first).batch(batch).await {
            Ok(done) => {
                self.tokens[Self::space(first)] = Some(done.token);
                Some(Ok(done.version))
            }
            // Keys of several shards.
            Err(error) if error.kind() == ErrorKind::CrossShard => None,
            Err(error) => self.failed(&error).map(Err),
        };
        for (key, value) in writes {
            match outcome {
                Some(Ok(version)) => {
                    let done = Outcome::Done {
                        applied: true,
                        value,
                        version,
                    };
                    self.note(key, Action::Write(value), began_us, done);
                    self.saw(key, version);
                }
                Some(Err(unknown)) => self.note(key, Action::Write(value), began_us, unknown),
                None => {}
            }
        }
    }

    /// A read; true if it was answered.
    pub async fn get(&mut self, key: u64, level: ReadLevel) -> bool {
        let noted = match &level {
            ReadLevel::Linearizable => Level::Linearizable,
            ReadLevel::AtLeast(token) => Level::AtLeast(token.version),
            _ => Level::Stale,
        };
        let mut get = Get::new(key_bytes(key)).level(level);
        get.timeout = self.timeout();
        let began_us = self.shared.moment();
        match self.kv(key).get(get).await {
            Ok(entry) => {
                self.note(key, Action::Read(noted), began_us, read_of(entry.as_ref()));
                if noted == Level::Linearizable {
                    self.saw(key, entry.map_or(0, |entry| entry.version));
                }
                true
            }
            Err(error) => {
                self.failed(&error);
                false
            }
        }
    }

    async fn get_at_least(&mut self, key: u64) {
        let level = match self.tokens[Self::space(key)] {
            Some(token) => ReadLevel::AtLeast(token),
            None => ReadLevel::Linearizable,
        };
        self.get(key, level).await;
    }

    /// All keys of the compact namespace, in one page.
    async fn scan(&mut self) {
        let mut scan = Scan::prefix("key-").limit(100).order(ScanOrder::Key);
        scan.timeout = self.timeout();
        let began_us = self.shared.moment();
        let Ok(page) = self.compact.scan(scan).await else {
            return;
        };
        let read = Action::Read(Level::Linearizable);
        for key in WIDE_KEYS..KEYS {
            let of = |entry: &&Entry| key_of(&entry.key) == Some(key);
            let found = page.entries.iter().find(of);
            self.note(key, read, began_us, read_of(found));
        }
    }
}
