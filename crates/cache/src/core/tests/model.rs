//! The model: processes with tiers over a source, and what each was promised.
//!
//! A read is judged by what was acknowledged to its process when it began: an invalidation, a gap, a failover;
//! and by its level. What it gets must not be older.

use std::fmt;

use bytes::Bytes;

use super::feeds::{Ears, Stream};
use super::schedules::Chance;
use super::source::{Loaded, Source};
use crate::core::{
    Cached, Fill, Invalidation, Looked, Place, Put, Records, Step, Told, Want, Weigh,
    invalidation_order,
};
use crate::{Need, Version};

pub(super) const KEYS: usize = 2;
pub(super) const PROCESSES: usize = 2;
pub(super) const LOCAL_CLOCK: u64 = 1_000_000;
const REMOTE_CLOCK: u64 = 5_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Value(u64);

impl Weigh for Value {
    fn size_bytes(&self) -> usize {
        8
    }
}

/// A promise that was broken.
#[derive(Debug)]
pub struct Violation(String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(super) struct Process {
    pub local: Option<Records<Value>>,
    base: Version,
    /// The version of the source that each key may not be older than.
    promised: [Version; KEYS],
    /// What it hears of others, if it does.
    pub ears: Option<Ears>,
}

/// A read that has missed.
struct Reader {
    process: usize,
    key: usize,
    bound: Version,
    told_epoch: u32,
    fill: Fill,
    found: Option<Loaded>,
    is_refused: bool,
    expires: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    At,
    Unknown,
    Through,
    Clear,
}

/// A write, or a gap, on its way through the tiers.
struct Writer {
    process: usize,
    key: usize,
    /// Its tag is invalidated instead of it.
    by_tag: bool,
    kind: Kind,
    fill: Option<Fill>,
    committed: Option<Version>,
    value: Option<u64>,
    done: usize,
}

pub struct Model {
    pub(super) keys: [Bytes; KEYS],
    /// The tags of each key.
    tags: [Vec<Bytes>; KEYS],
    spam: Vec<Bytes>,
    pub(super) source: Source,
    pub(super) time: u64,
    pub(super) remote: Option<Records<Value>>,
    pub(super) processes: Vec<Process>,
    pub(super) stream: Stream,
    readers: Vec<Reader>,
    writers: Vec<Writer>,
    /// What a write broke.
    pub broken: Option<Violation>,
    /// Served from the local tier, the remote tier, the source.
    pub served: [u64; 3],
}

impl Model {
    /// Processes that hear of each other, or not.
    pub fn new(chance: &mut Chance, hear: bool) -> Self {
        // Of keys with tags and without: the first has the one, the second both.
        let tags = if chance.one_in(2) {
            &["t", "u"][..]
        } else {
            &[]
        };
        let tag = |tag: &&'static str| Bytes::from_static(tag.as_bytes());
        let tags: Vec<Bytes> = tags.iter().map(tag).collect();
        let size_bytes =
            350 + 170 * (chance.below(4) + tags.len() as u64) + if hear { 500 } else { 0 };
        let has_remote = hear || !chance.one_in(3);
        let process = |has_local: bool| Process {
            local: has_local.then(|| Records::new(size_bytes, Need::NOTHING)),
            base: Version::ZERO,
            promised: [Version::ZERO; KEYS],
            ears: (hear && has_local).then(Ears::default),
        };
        Model {
            keys: [Bytes::from_static(b"a"), Bytes::from_static(b"b")],
            tags: [tags.iter().take(1).cloned().collect(), tags],
            spam: vec![Bytes::from_static(b"x"), Bytes::from_static(b"y")],
            source: Source::default(),
            time: 1_000,
            // What is not there needs the newest state: so the floors of what was evicted need not be kept.
            remote: has_remote.then(|| Records::new(1 << 20, Need::LATEST)),
            processes: vec![
                process(true),
                process(hear || !has_remote || chance.one_in(2)),
            ],
            stream: Stream::default(),
            readers: Vec::new(),
            writers: Vec::new(),
            broken: None,
            served: [0; 3],
        }
    }

    /// Whether processes hear of each other.
    pub fn hears(&self) -> bool {
        self.processes.iter().any(|process| process.ears.is_some())
    }

    /// A key to read or write: where processes hear of each other the same one mostly, so that they meet.
    fn key(&self, chance: &mut Chance) -> usize {
        match self.hears() && !chance.one_in(8) {
            true => 0,
            false => chance.below(KEYS as u64) as usize,
        }
    }

    /// How many steps are taken at once.
    fn stride(&self, chance: &mut Chance) -> usize {
        if self.hears() && chance.one_in(2) {
            8
        } else {
            1
        }
    }

    fn want(&self, chance: &mut Chance) -> Want {
        let mut want = Want::default();
        match chance.below(8) {
            0 => want.latest = true,
            1 => want.age_max = Some(chance.below(60)),
            2 => {
                want.at_least = Version {
                    n: chance.below(self.source.now.n + 1),
                    ..self.source.now
                }
            }
            _ => {}
        }
        want
    }

    /// The version that a read which begins now must not be older than.
    fn bound(&self, process: usize, key: usize, want: &Want) -> Version {
        let mut promised = self.processes[process].promised[key].max(want.at_least);
        if self.processes[process].ears.is_some() {
            promised = promised.max(self.stream.acknowledged_long_ago(key, self.time));
        }
        let mut bound = self.source.newest(key, promised).0;
        if want.latest {
            bound = bound.max(self.source.newest(key, self.source.now).0);
        }
        if let Some(age) = want.age_max {
            bound = bound.max(
                self.source
                    .newest_by(key, self.time.saturating_sub(age + 1)),
            );
        }
        bound
    }

    pub fn read(&mut self, chance: &mut Chance) -> Result<(), Violation> {
        if self.readers.len() >= 4 {
            return self.advance_reader(chance);
        }
        let process = chance.below(PROCESSES as u64) as usize;
        let key = self.key(chance);
        let want = self.want(chance);
        let bound = self.bound(process, key, &want);
        let at = self.time + LOCAL_CLOCK;
        let of = &mut self.processes[process];
        let told_epoch = of.base.epoch;
        if let Some(local) = &mut of.local {
            let looked = look_under(local, &self.keys[key], &self.tags[key], at);
            let is_believed = of.ears.as_ref().is_none_or(|ears| ears.believe(at));
            if let Some(cached) = want.fresh_in(&looked).filter(|_| is_believed) {
                self.served[0] += 1;
                self.stream.served += u64::from(of.ears.is_some());
                if cached.expires <= at {
                    return Err(Violation(format!("{cached:?} was served at {at}")));
                }
                return self.judge(key, bound, told_epoch, &cached);
            }
        }
        let fill = Fill::new(want, of.base, at, of.local.is_some(), self.remote.is_some());
        self.readers.push(Reader {
            process,
            key,
            bound,
            told_epoch,
            fill,
            found: None,
            is_refused: false,
            expires: 20 + chance.below(200),
        });
        Ok(())
    }

    fn judge(
        &self,
        key: usize,
        bound: Version,
        told_epoch: u32,
        cached: &Cached<Value>,
    ) -> Result<(), Violation> {
        let value = cached.value.map(|value| value.0);
        // A bound that a failover took back is no longer one.
        let bound_holds = bound == Version::ZERO || {
            let at_bound = self.source.newest(key, bound);
            at_bound.0 == bound
        };
        if bound_holds && cached.version < bound {
            return Err(Violation(format!(
                "key {key}: {cached:?} was served, {bound:?} was promised"
            )));
        }
        let is_of_now = told_epoch == self.source.now.epoch;
        if is_of_now && !self.source.has(key, cached.version, value) {
            return Err(Violation(format!(
                "key {key}: {cached:?} was served, which a failover took back"
            )));
        }
        Ok(())
    }

    pub fn advance_reader(&mut self, chance: &mut Chance) -> Result<(), Violation> {
        if self.readers.is_empty() {
            return Ok(());
        }
        let at = chance.below(self.readers.len() as u64) as usize;
        let mut reader = self.readers.swap_remove(at);
        for _ in 0..self.stride(chance) {
            if !self.step_reader(&mut reader, chance)? {
                return Ok(());
            }
        }
        self.readers.push(reader);
        Ok(())
    }

    /// One step; whether there are more.
    fn step_reader(&mut self, reader: &mut Reader, chance: &mut Chance) -> Result<bool, Violation> {
        let key = self.keys[reader.key].clone();
        match reader.fill.step() {
            Step::LookLocal => {
                let looked = self.look_local(reader.process, reader.key);
                reader.fill.looked_local(&looked);
            }
            Step::LookRemote => {
                let looked = self.look_remote(reader.key, chance);
                if let Some(found) = reader.fill.looked_remote(looked.as_ref()) {
                    self.served[1] += 1;
                    self.judge(reader.key, reader.bound, reader.told_epoch, &found)?;
                    reader.found = Some(loaded_of(&found));
                }
            }
            Step::Load(_) if reader.fill.remote_mark().is_some() && chance.one_in(8) => {
                reader.fill.look_again();
            }
            Step::Load(need) => {
                let loaded = self.source.load(reader.key, need, self.time, chance);
                if reader.fill.loaded(loaded.seen, loaded.lag).is_err() {
                    return Ok(reader.fill.step() != Step::Done);
                }
                self.served[2] += 1;
                let cached = cached_of(&loaded, None, 0);
                self.judge(reader.key, reader.bound, reader.told_epoch, &cached)?;
                reader.found = Some(loaded);
            }
            step => {
                let Some(loaded) = reader.found else {
                    return Ok(false);
                };
                let ttl = reader.expires;
                let put = self.put(&mut reader.fill, reader.process, &key, step, &loaded, ttl)?;
                if put == Put::Stored && reader.is_refused {
                    return Err(Violation(format!(
                        "{loaded:?} was refused by the remote tier"
                    )));
                }
                reader.is_refused |= put != Put::Stored;
            }
        }
        Ok(reader.fill.step() != Step::Done)
    }

    fn look_local(&mut self, process: usize, key: usize) -> Looked<Value> {
        let local = self.processes[process].local.as_mut().expect("it has one");
        let at = self.time + LOCAL_CLOCK;
        look_under(local, &self.keys[key], &self.tags[key], at)
    }

    /// Now and then it does not answer.
    fn look_remote(&mut self, key: usize, chance: &mut Chance) -> Option<Looked<Value>> {
        let remote = self.remote.as_mut().expect("there is one");
        let at = self.time + REMOTE_CLOCK;
        (!chance.one_in(8)).then(|| look_under(remote, &self.keys[key], &self.tags[key], at))
    }

    fn put(
        &mut self,
        fill: &mut Fill,
        process: usize,
        key: &Bytes,
        step: Step,
        loaded: &Loaded,
        ttl: u64,
    ) -> Result<Put, Violation> {
        match step {
            Step::PutRemote {
                mark,
                at,
                as_of,
                tags,
            } => {
                let remote = self.remote.as_mut().expect("there is one");
                let expires = at + ttl;
                let cached = Cached {
                    tags,
                    ..cached_of(loaded, as_of, expires)
                };
                let put = put_forward(remote, key, |r| r.put(key, mark, cached))?;
                fill.put_remote(Some(put));
                Ok(put)
            }
            Step::PutLocal {
                mark,
                at,
                as_of,
                tags,
            } => {
                let local = self.processes[process].local.as_mut().expect("it has one");
                let expires = at + ttl;
                let cached = Cached {
                    tags,
                    ..cached_of(loaded, as_of, expires)
                };
                let put = put_forward(local, key, |l| l.put(key, mark, cached))?;
                fill.put_local(put);
                if put == Put::Stored && loaded.seen < self.processes[process].base {
                    return Err(Violation(format!(
                        "{loaded:?} of an old epoch was installed"
                    )));
                }
                Ok(put)
            }
            _ => Ok(Put::Stored),
        }
    }

    pub fn write(&mut self, chance: &mut Chance) {
        if self.writers.len() >= 3 {
            return self.advance_writer(chance);
        }
        let process = chance.below(PROCESSES as u64) as usize;
        let kind = match chance.below(5) {
            0 | 1 => Kind::At,
            2 | 3 => Kind::Unknown,
            _ => Kind::Through,
        };
        let of = &self.processes[process];
        let want = Want {
            latest: true,
            ..Want::default()
        };
        let at = self.time + LOCAL_CLOCK;
        let through = || Fill::new(want, of.base, at, of.local.is_some(), self.remote.is_some());
        let fill = (kind == Kind::Through).then(through);
        let key = self.key(chance);
        let by_tag = !self.tags[key].is_empty() && chance.one_in(2);
        self.writers.push(Writer {
            process,
            key,
            by_tag,
            kind,
            fill,
            committed: None,
            value: None,
            done: 0,
        });
    }

    pub fn advance_writer(&mut self, chance: &mut Chance) {
        if self.writers.is_empty() {
            return;
        }
        let at = chance.below(self.writers.len() as u64) as usize;
        let mut writer = self.writers.swap_remove(at);
        for _ in 0..self.stride(chance) {
            if !self.step_writer(&mut writer, chance) {
                return;
            }
        }
        self.writers.push(writer);
    }

    /// One step; whether there are more.
    fn step_writer(&mut self, writer: &mut Writer, chance: &mut Chance) -> bool {
        let key = self.keys[writer.key].clone();
        if writer.committed.is_none() {
            match writer.fill.as_mut().map(|fill| fill.step()) {
                Some(Step::LookLocal) => {
                    let looked = self.look_local(writer.process, writer.key);
                    writer
                        .fill
                        .as_mut()
                        .expect("is there")
                        .looked_local(&looked);
                }
                Some(Step::LookRemote) => {
                    let looked = self.look_remote(writer.key, chance);
                    let fill = writer.fill.as_mut().expect("is there");
                    let _ = fill.looked_remote(looked.as_ref());
                }
                _ => self.commit(writer, chance),
            }
            return true;
        }
        if let Some(place) = invalidation_order().get(writer.done) {
            writer.done += 1;
            let tag = self.tags[writer.key].last().filter(|_| writer.by_tag);
            let key = tag.unwrap_or(&key).clone();
            self.invalidate(writer, *place, &key);
            return true;
        }
        self.finish_writer(writer, &key)
    }

    fn commit(&mut self, writer: &mut Writer, chance: &mut Chance) {
        let committed = self.source.commit(writer.key, chance.one_in(6), self.time);
        writer.committed = Some(committed);
        writer.value = self.source.newest(writer.key, committed).1;
        let loaded = writer
            .fill
            .as_mut()
            .map(|fill| fill.loaded(committed, Some(0)));
        if loaded.is_some_and(|loaded| loaded.is_err()) {
            writer.fill = None;
        }
    }

    fn invalidate(&mut self, writer: &Writer, place: Place, key: &Bytes) {
        let tier = match place {
            Place::Local => self.processes[writer.process].local.as_mut(),
            Place::Remote => self.remote.as_mut(),
        };
        let (Some(tier), Some(committed)) = (tier, writer.committed) else {
            return;
        };
        let invalidation = match writer.kind {
            Kind::Clear => {
                tier.clear();
                if place == Place::Remote {
                    self.stream.publish(Told::All);
                }
                return;
            }
            Kind::Unknown => Invalidation::Unknown,
            Kind::At | Kind::Through => Invalidation::At(committed),
        };
        tier.invalidate(key, invalidation);
        if place == Place::Remote {
            self.stream.publish(Told::Key(key.clone(), invalidation));
        }
    }

    /// The puts of a write-through, then the acknowledgement.
    fn finish_writer(&mut self, writer: &mut Writer, key: &Bytes) -> bool {
        let Some(committed) = writer.committed else {
            return false;
        };
        if let Some(fill) = &mut writer.fill
            && fill.step() != Step::Done
        {
            let loaded = Loaded {
                value: writer.value,
                version: committed,
                seen: committed,
                lag: Some(0),
            };
            let step = fill.step();
            let put = self.put(fill, writer.process, key, step, &loaded, 100);
            self.broken = put.err();
            return true;
        }
        let has_remote = self.remote.is_some();
        for (at, process) in self.processes.iter_mut().enumerate() {
            let sees = at == writer.process || (has_remote && process.local.is_none());
            for (of, promised) in process.promised.iter_mut().enumerate() {
                let is_meant = of == writer.key || writer.kind == Kind::Clear;
                if sees && is_meant {
                    *promised = (*promised).max(committed);
                }
                if has_remote && is_meant && at == writer.process {
                    self.stream.acknowledged.push((self.time, of, committed));
                }
            }
        }
        false
    }

    /// A commit whose invalidation is lost.
    pub fn commit_unseen(&mut self, chance: &mut Chance) {
        let key = chance.below(KEYS as u64) as usize;
        self.source.commit(key, false, self.time);
    }

    /// A process notices that it has missed invalidations.
    pub fn gap(&mut self, chance: &mut Chance) {
        let process = chance.below(PROCESSES as u64) as usize;
        if chance.one_in(2) {
            let now = self.source.now;
            self.raise(process, now);
            let of = &mut self.processes[process];
            of.promised = of.promised.map(|promised| promised.max(now));
            return;
        }
        self.writers.push(Writer {
            process,
            key: 0,
            by_tag: false,
            kind: Kind::Clear,
            fill: None,
            committed: Some(self.source.now),
            value: None,
            done: 0,
        });
    }

    /// The source fails over, or a process is told that it has.
    pub fn fail_over(&mut self, chance: &mut Chance) {
        if chance.one_in(3) {
            self.source.fail_over(chance.below(4) as usize);
        }
        let process = chance.below(PROCESSES as u64) as usize;
        self.raise(process, Version::epoch(self.source.now.epoch));
    }

    fn raise(&mut self, process: usize, version: Version) {
        let of = &mut self.processes[process];
        of.base = of.base.max(version);
        if let Some(local) = &mut of.local {
            local.raise(version);
        }
    }

    pub fn evict(&mut self, chance: &mut Chance) {
        let key = chance.below(KEYS as u64) as usize;
        let process = chance.below(PROCESSES as u64) as usize;
        let tag = self.tags[key].first().filter(|_| chance.one_in(3));
        let key = tag.unwrap_or(&self.keys[key]);
        if chance.one_in(2) {
            if let Some(remote) = &mut self.remote {
                remote.evict(key);
            }
            return;
        }
        let Some(local) = &mut self.processes[process].local else {
            return;
        };
        if chance.one_in(2) {
            return local.evict(key);
        }
        for spam in &self.spam {
            local.look(spam, self.time + LOCAL_CLOCK);
        }
    }

    pub fn pass_time(&mut self, chance: &mut Chance) {
        let most = if self.hears() { 15 } else { 40 };
        self.time += chance.below(most);
    }

    /// What would be served of a key, if it had not expired.
    fn peek_under(&self, records: &Records<Value>, key: usize) -> Option<Cached<Value>> {
        let looked = records.peek_record(&self.keys[key])?;
        let tags = self.tags[key].iter().map(|tag| records.peek_record(tag));
        let tags: Option<Vec<_>> = tags.collect();
        looked.under(&tags?).cached
    }

    /// Lets all that is under way end, and reads everything once more.
    pub fn finish(&mut self, chance: &mut Chance) -> Result<(), Violation> {
        while !self.readers.is_empty() || !self.writers.is_empty() {
            self.advance_reader(chance)?;
            self.advance_writer(chance);
            self.broken.take().map_or(Ok(()), Err)?;
        }
        for process in 0..PROCESSES {
            for key in 0..KEYS {
                let bound = self.bound(process, key, &Want::default());
                let of = &self.processes[process];
                let at = self.time + LOCAL_CLOCK;
                if of.ears.as_ref().is_some_and(|ears| !ears.believe(at)) {
                    continue;
                }
                let (told, cached) = (of.base.epoch, of.local.as_ref());
                let cached = cached.and_then(|local| self.peek_under(local, key));
                if let Some(cached) = cached {
                    self.judge(key, bound, told, &cached)?;
                }
            }
        }
        Ok(())
    }
}

/// Looks at a key under its tags.
fn look_under(records: &mut Records<Value>, key: &Bytes, tags: &[Bytes], at: u64) -> Looked<Value> {
    let tags: Vec<_> = tags.iter().map(|tag| records.look(tag, at)).collect();
    records.look(key, at).under(&tags)
}

/// Puts, and sees that what is there never gives way to something older.
fn put_forward(
    records: &mut Records<Value>,
    key: &Bytes,
    put: impl FnOnce(&mut Records<Value>) -> Put,
) -> Result<Put, Violation> {
    let before = records.peek(key).map(|cached| cached.seen);
    let put = put(records);
    let after = records.peek(key).map(|cached| cached.seen);
    if after.is_some() && before > after {
        return Err(Violation(format!("{before:?} gave way to {after:?}")));
    }
    Ok(put)
}

fn cached_of(loaded: &Loaded, as_of: Option<u64>, expires: u64) -> Cached<Value> {
    Cached {
        value: loaded.value.map(Value),
        version: loaded.version,
        seen: loaded.seen,
        as_of,
        expires,
        tags: None,
    }
}

fn loaded_of(cached: &Cached<Value>) -> Loaded {
    Loaded {
        value: cached.value.map(|value| value.0),
        version: cached.version,
        seen: cached.seen,
        lag: None,
    }
}
