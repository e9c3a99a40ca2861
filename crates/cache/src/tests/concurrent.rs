//! Whole caches under readers and writers at once, in simulated time, from a seed: four processes (two tiers, the
//! remote one alone, the local one alone, two tiers and following what others tell the remote one), a source whose replicas lag and which fails, a remote tier that is slow
//! and fails. No read gets what is older than what was acknowledged when it began, or than its level.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_kv::{BoxFuture, Domain};
use tokio::time::{Instant, sleep};

use super::support::DOMAIN;
use crate::core::planted::{self, Bug};
use crate::core::tests::schedules::Chance;
use crate::core::{Cached, Invalidation, Looked, Mark, Put};
use crate::invalidations::{Batch, Invalidations, Message, Position, Told};
use crate::source::{Source, Stamped};
use crate::tier::{Memory, Tier};
use crate::{
    Cache, CacheOptions, Error, ErrorKind, FollowOptions, Level, Need, Read, Result, Strategy,
    Tiers, Version,
};

const KEYS: [&str; 2] = ["a", "b"];
const READERS: usize = 10;
const WRITERS: usize = 3;
const ROUNDS: usize = 25;

/// The tags of each key, where keys have tags.
const TAGS: [&[&str]; 2] = [&["both"], &["one", "both"]];

struct World {
    /// Whether each key is a tenant.
    has_tenants: bool,
    /// Whether keys have tags.
    is_tagged: bool,
    chance: Mutex<Chance>,
    began: Instant,
    commits: Mutex<Vec<(u64, usize, Option<Bytes>)>>,
    shared: Memory,
    /// What reads of each process and key must have.
    acknowledged: Mutex<HashMap<(usize, usize), u64>>,
    /// What the remote tier was told: the stream's epoch, and its messages.
    stream: Mutex<(u64, Vec<Told>)>,
    /// When a key and version were acknowledged that the remote tier was told, by anybody.
    told: Mutex<Vec<(u64, usize, u64)>>,
}

impl World {
    fn below(&self, end: u64) -> u64 {
        self.chance.lock().below(end)
    }

    fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Waits for up to so many milliseconds.
    async fn pause(&self, most: u64) {
        let micros = self.below(most * 1000);
        sleep(Duration::from_micros(micros)).await;
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    fn commit(&self, key: usize) -> (u64, Option<Bytes>) {
        let deletes = self.one_in(5);
        let now = self.now();
        let mut commits = self.commits.lock();
        let n = commits.len() as u64 + 1;
        // Some are too large to be kept.
        let length = if self.one_in(4) { 200 } else { 1 };
        let value = (!deletes).then(|| Bytes::from(format!("{key}:{n:0length$}")));
        commits.push((now, key, value.clone()));
        (n, value)
    }

    fn newest(&self) -> u64 {
        self.commits.lock().len() as u64
    }

    /// The version and value of a key at a version.
    fn at(&self, key: usize, n: u64) -> (u64, Option<Bytes>) {
        let commits = self.commits.lock();
        let until = commits.iter().take(n as usize).enumerate();
        let of_key = until.filter(|(_, (_, of, _))| *of == key);
        of_key.last().map_or((0, None), |(at, (_, _, value))| {
            (at as u64 + 1, value.clone())
        })
    }

    /// The version of all at a time.
    fn version_at(&self, time: u64) -> u64 {
        let commits = self.commits.lock();
        commits.iter().take_while(|(at, _, _)| *at <= time).count() as u64
    }
}

struct Replicas(Arc<World>);

impl Replicas {
    async fn read(&self, key: usize, need: Need) -> Result<Stamped> {
        let world = &self.0;
        world.pause(10).await;
        if world.one_in(12) {
            return Err(Error::new(ErrorKind::Unavailable, "not now"));
        }
        let newest = world.newest();
        let is_newest = need.latest || world.one_in(3);
        let lowest = need.at_least.n.min(newest);
        let n = match is_newest {
            true => newest,
            false => lowest + world.below(newest - lowest + 1),
        };
        let (version, value) = world.at(key, n);
        world.pause(10).await;
        Ok(Stamped {
            value,
            version: Version::new(version),
            seen: Version::new(n),
            lag: is_newest.then_some(Duration::ZERO),
        })
    }
}

impl Source for Replicas {
    fn domain(&self) -> Domain {
        DOMAIN
    }

    fn tags(&self, key: &[u8]) -> Vec<Bytes> {
        let key = KEYS.iter().position(|of| of.as_bytes() == key);
        let tags = key.filter(|_| self.0.is_tagged).map(|key| TAGS[key]);
        let tags = tags.unwrap_or_default().iter();
        tags.map(|tag| Bytes::from_static(tag.as_bytes())).collect()
    }

    fn load<'a>(&'a self, key: &'a Bytes, need: Need) -> BoxFuture<'a, Result<Stamped>> {
        let key = KEYS.iter().position(|of| of.as_bytes() == key);
        Box::pin(self.read(key.expect("a key"), need))
    }
}

struct Far(Arc<World>);

impl Far {
    /// Does it at some moment, and may lose the question or the answer.
    async fn call<T>(&self, done: impl FnOnce(&Memory) -> T + Send) -> Result<T> {
        let lost = || Error::new(ErrorKind::Unavailable, "lost").outcome_unknown();
        self.0.pause(3).await;
        if self.0.one_in(30) {
            return Err(lost());
        }
        let done = done(&self.0.shared);
        self.0.pause(3).await;
        match self.0.one_in(30) {
            true => Err(lost()),
            false => Ok(done),
        }
    }
}

impl Tier for Far {
    fn look<'a>(&'a self, key: &'a Bytes) -> BoxFuture<'a, Result<Looked<Bytes>>> {
        Box::pin(self.call(|memory| memory.look_now(key)))
    }

    fn put<'a>(
        &'a self,
        key: &'a Bytes,
        mark: Mark,
        cached: Cached<Bytes>,
    ) -> BoxFuture<'a, Result<Put>> {
        Box::pin(self.call(move |memory| memory.put_now(key, mark, cached)))
    }

    fn invalidate<'a>(
        &'a self,
        key: &'a Bytes,
        invalidation: Invalidation,
    ) -> BoxFuture<'a, Result<()>> {
        let tell = Told::Key(key.clone(), invalidation);
        Box::pin(self.call(move |memory| {
            memory.invalidate_now(key, invalidation);
            self.0.stream.lock().1.push(tell);
        }))
    }

    fn clear(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.call(|memory| {
            memory.clear_now();
            self.0.stream.lock().1.push(Told::All);
        }))
    }
}

/// What one process hears: late, in parts, with messages missing, or of a stream that began anew.
struct Ears(Arc<World>);

impl Ears {
    async fn hear(&self, position: Option<&Position>) -> Result<Batch> {
        let world = &self.0;
        // Now and then it is cut off for long.
        let most = if world.one_in(8) { 60 } else { 2 };
        world.pause(most).await;
        if world.one_in(150) {
            // The server is flushed; what was told is lost.
            world.shared.clear_now();
            let mut stream = world.stream.lock();
            *stream = (stream.0 + 1, Vec::new());
        }
        let mut batch = {
            let stream = world.stream.lock();
            let name: Arc<str> = stream.0.to_string().into();
            let here = position.filter(|at| at.stream == name);
            let past = |(number, _): &(u64, &Told)| here.is_some_and(|at| *number > at.number);
            let numbered = (1..).zip(&stream.1).filter(past).take(3);
            let messages = numbered.map(|(number, told)| Message {
                number,
                told: told.clone(),
            });
            Batch {
                stream: name,
                messages: messages.collect(),
                end: Some(stream.1.len() as u64),
            }
        };
        if world.one_in(8) && !batch.messages.is_empty() {
            batch.messages.remove(0);
        }
        world.pause(2).await;
        match world.one_in(6) {
            true => Err(Error::new(ErrorKind::Unavailable, "lost")),
            false => Ok(batch),
        }
    }
}

impl Invalidations for Ears {
    fn after<'a>(
        &'a mut self,
        position: Option<&'a Position>,
        _: Duration,
    ) -> BoxFuture<'a, Result<Batch>> {
        Box::pin(self.hear(position))
    }
}

/// Everything happens within fractions of a second.
fn hasty() -> CacheOptions {
    let millis = Duration::from_millis;
    CacheOptions {
        ttl: millis(60),
        local_ttl: millis(40),
        negative_ttl: millis(20),
        refresh_ahead: millis(8),
        stale_while_revalidate: millis(10),
        fail_safe: millis(30),
        soft_timeout: millis(5),
        hard_timeout: millis(80),
        load_timeout: millis(15),
        remote_timeout: millis(5),
        value_bytes_max: 100,
        breaker_failures: 3,
        breaker_pause: millis(10),
        ..CacheOptions::default()
    }
}

const PROCESSES: [(bool, bool); 4] = [(true, true), (false, true), (true, false), (true, true)];
/// The one that follows what others tell the remote tier...
const FOLLOWS: usize = 3;
/// ...and for how long its tier is believed.
const STALENESS_MAX: Duration = Duration::from_millis(6);

fn process(world: &Arc<World>, (has_local, has_remote): (bool, bool)) -> Cache {
    let far = || Arc::new(Far(world.clone())) as Arc<dyn Tier>;
    let tiers = Tiers {
        local: has_local.then(|| match world.has_tenants {
            // There is room for one: whoever reads one key drops the other.
            true => Memory::with_tenants(1 << 14, 1 << 13, |key| Some(key)).expect("room"),
            false => Memory::new(1 << 20),
        }),
        remote: has_remote.then(far),
    };
    Cache::new(Arc::new(Replicas(world.clone())), tiers, hasty())
}

/// A write is acknowledged: to its process, and, if the remote tier was told, to those that have that alone.
fn acknowledge(world: &World, process: usize, key: usize, n: u64, is_told: bool) {
    if is_told && PROCESSES[process].1 {
        world.told.lock().push((world.now(), key, n));
    }
    let mut acknowledged = world.acknowledged.lock();
    for (other, (has_local, has_remote)) in PROCESSES.into_iter().enumerate() {
        let shares = is_told && PROCESSES[process].1 && has_remote && !has_local;
        if other == process || shares {
            let known = acknowledged.entry((other, key)).or_default();
            *known = n.max(*known);
        }
    }
}

async fn write(world: &World, cache: &Cache, process: usize) {
    let key = world.below(KEYS.len() as u64) as usize;
    let kind = world.below(14);
    if kind == 0 {
        // Somebody who tells nobody.
        world.commit(key);
        return;
    }
    if kind == 1 {
        return clear(world, cache, process).await;
    }
    if world.is_tagged && world.one_in(3) {
        return write_by_tag(world, cache, process, key).await;
    }
    let commit = async {
        world.pause(3).await;
        let (n, value) = world.commit(key);
        world.pause(3).await;
        match world.one_in(10) {
            true => Err(Error::new(ErrorKind::Timeout, "who knows").outcome_unknown()),
            false => Ok((n, value)),
        }
    };
    let mut done = None;
    let commit = async {
        let (n, _) = commit.await.inspect_err(|_| done = Some(world.newest()))?;
        done = Some(n);
        Ok(Some(Version::new(n)))
    };
    let strategy = match kind {
        2..=6 => Strategy::Aside,
        7..=10 => Strategy::Versioned,
        _ => return write_through(world, cache, process, key).await,
    };
    let written = cache.write(KEYS[key], strategy, commit).await;
    let is_told = written.is_ok_and(|written| written.untold.is_none());
    if let Some(n) = done {
        // Of an unknown outcome the newest commit of the key, up to then, is what was invalidated.
        acknowledge(world, process, key, world.at(key, n).0, is_told);
    }
}

/// What was committed until then is seen of all keys with the tag when it returns.
async fn write_by_tag(world: &World, cache: &Cache, process: usize, key: usize) {
    let (n, _) = world.commit(key);
    world.pause(3).await;
    let invalidation = match world.one_in(2) {
        true => Invalidation::At(Version::new(n)),
        false => Invalidation::Unknown,
    };
    let told = cache.invalidate_tag("both", invalidation).await;
    for key in 0..KEYS.len() {
        acknowledge(world, process, key, world.at(key, n).0, told.is_ok());
    }
}

/// All that was committed before it began is seen when it returns.
async fn clear(world: &World, cache: &Cache, process: usize) {
    let newest = world.newest();
    if cache.clear().await.is_ok() {
        for key in 0..KEYS.len() {
            acknowledge(world, process, key, world.at(key, newest).0, true);
        }
    }
}

/// The value is known before its commit.
async fn write_through(world: &World, cache: &Cache, process: usize, key: usize) {
    let value = Bytes::from(format!("through {}", world.below(1 << 40)));
    let mut done = None;
    let commit = async {
        world.pause(3).await;
        let now = world.now();
        let n = {
            let mut commits = world.commits.lock();
            commits.push((now, key, Some(value.clone())));
            commits.len() as u64
        };
        world.pause(3).await;
        done = Some(n);
        Ok(Some(Version::new(n)))
    };
    let strategy = Strategy::Through(Some(value.clone()));
    let written = cache
        .write(KEYS[key], strategy, commit)
        .await
        .expect("commits");
    if let Some(n) = done {
        acknowledge(world, process, key, n, written.untold.is_none());
    }
}

async fn read(world: &World, cache: &Cache, process: usize) -> std::result::Result<(), String> {
    let key = world.below(KEYS.len() as u64) as usize;
    let newest = world.newest();
    let promised = world.acknowledged.lock().get(&(process, key)).copied();
    let mut bound = promised.unwrap_or(0);
    if process == FOLLOWS {
        let long_ago = world.now().saturating_sub(STALENESS_MAX.as_micros() as u64);
        let told = world.told.lock();
        let of_key = told
            .iter()
            .filter(|(at, of, _)| *at < long_ago && *of == key);
        bound = of_key.map(|(_, _, n)| *n).fold(bound, u64::max);
    }
    let level = match world.below(8) {
        0 => {
            bound = newest;
            Level::Linearizable
        }
        1 => {
            let n = world.below(newest + 1);
            bound = bound.max(n);
            Level::AtLeast(cache.token(Version::new(n)))
        }
        2 => {
            let age = world.below(60_000);
            let time = world.now().checked_sub(age + 1);
            bound = bound.max(time.map_or(0, |time| world.version_at(time)));
            Level::BoundedStale(Duration::from_micros(age))
        }
        _ => Level::Any,
    };
    let Ok(read) = cache.get(KEYS[key], level).await else {
        return Ok(());
    };
    let is_lax = matches!(level, Level::Any | Level::BoundedStale(_));
    if read.is_stale && !is_lax {
        return Err(format!("{level:?}: what has expired was served"));
    }
    judge(world, key, bound, &read)
        .map_err(|what| format!("process {process}, {level:?}: {what}: {read:?}"))
}

fn judge(world: &World, key: usize, bound: u64, read: &Read) -> std::result::Result<(), String> {
    let least = world.at(key, bound).0;
    if read.version.n < least {
        return Err(format!("{least} was promised"));
    }
    let (version, value) = world.at(key, read.seen.n);
    if (version, &value) != (read.version.n, &read.value) {
        return Err(format!("at {:?} there was {value:?}", read.seen));
    }
    Ok(())
}

/// One run; the answer is what was broken.
fn run(seed: u64) -> std::result::Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let world = Arc::new(World {
            has_tenants: seed % 3 == 1,
            is_tagged: seed % 2 == 1,
            chance: Mutex::new(Chance::new(seed)),
            began: Instant::now(),
            commits: Mutex::default(),
            shared: Memory::with_absent(1 << 20, Need::LATEST),
            acknowledged: Mutex::default(),
            stream: Mutex::default(),
            told: Mutex::default(),
        });
        let caches = PROCESSES.map(|has| process(&world, has));
        let bound = FollowOptions {
            staleness_max: STALENESS_MAX,
        };
        let follows = caches[FOLLOWS].follow(Ears(world.clone()), bound);
        follows.map_err(|error| error.to_string())?;
        let mut tasks = tokio::task::JoinSet::<std::result::Result<(), String>>::new();
        for task in 0..READERS + WRITERS {
            let (world, process) = (world.clone(), task % PROCESSES.len());
            let cache = caches[process].clone();
            tasks.spawn(async move {
                for _ in 0..ROUNDS {
                    world.pause(15).await;
                    match task < READERS {
                        true => read(&world, &cache, process).await?,
                        false => write(&world, &cache, process).await,
                    }
                }
                Ok(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.map_err(|error| error.to_string())??;
        }
        Ok(())
    })
}

#[test]
fn cache_under_random_readers_and_writers_keeps_its_promises() {
    let times = std::env::var("QUORATE_TEST_SEEDS");
    let times: u64 = times.ok().and_then(|t| t.parse().ok()).unwrap_or(1);
    for seed in 0..4_000 * times {
        if let Err(broken) = run(seed) {
            panic!("seed {seed}: {broken}");
        }
    }
}

#[test]
fn cache_check_notices_what_is_wrong_around_the_protocol() {
    let mut missed = Vec::new();
    for bug in Bug::AROUND {
        planted::plant(Some(bug));
        let found = (0..4_000).find(|seed| run(*seed).is_err());
        planted::plant(None);
        match found {
            Some(seed) => println!("{bug:?}: seed {seed}"),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not noticed: {missed:?}");
}
