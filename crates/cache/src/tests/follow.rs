//! Following what other processes write, over a stream that does as it is told.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_kv::BoxFuture;
use tokio::sync::Notify;
use tokio::time::{advance, sleep, timeout};

use super::support::{Shop, local, options, until, value};
use crate::core::planted::{self, Bug};
use crate::invalidations::{Batch, Invalidations, Message, Position, Told};
use crate::{
    Cache, CacheOptions, Error, ErrorKind, FollowOptions, Invalidation, Level, Origin, Result,
};

const BOUND: Duration = Duration::from_secs(1);

/// Waits for a condition, for at most a minute of simulated time.
async fn soon(what: &str, mut is_so: impl FnMut() -> bool) {
    let mut left = 60_000;
    while !is_so() {
        assert!(left > 0, "waited for {what}");
        left -= 1;
        sleep(Duration::from_millis(1)).await;
    }
}

struct State {
    name: &'static str,
    messages: Vec<Message>,
    end: u64,
    is_cut: bool,
}

/// What is said, by a name and numbers.
pub struct Wire {
    state: Mutex<State>,
    said: Notify,
}

impl Wire {
    pub fn new() -> Arc<Wire> {
        let state = State {
            name: "one",
            messages: Vec::new(),
            end: 0,
            is_cut: false,
        };
        Arc::new(Wire {
            state: Mutex::new(state),
            said: Notify::new(),
        })
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
        self.said.notify_waiters();
    }

    fn tell(&self, told: Told) {
        self.change(|state| {
            state.end += 1;
            let number = state.end;
            state.messages.push(Message { number, told });
        });
    }

    fn cut(&self, is_cut: bool) {
        self.change(|state| state.is_cut = is_cut);
    }

    fn answer(&self, position: Option<&Position>) -> Option<Batch> {
        let state = self.state.lock();
        let here = position.filter(|at| *at.stream == *state.name);
        if state.is_cut || here.is_some_and(|at| at.number == state.end) {
            return None;
        }
        let past = |message: &&Message| here.is_some_and(|at| message.number > at.number);
        Some(Batch {
            stream: state.name.into(),
            messages: state.messages.iter().filter(past).cloned().collect(),
            end: Some(state.end),
        })
    }

    async fn ask(&self, position: Option<&Position>, wait: Duration) -> Result<Batch> {
        let answer = async {
            loop {
                let mut said = std::pin::pin!(self.said.notified());
                said.as_mut().enable();
                match self.answer(position) {
                    Some(batch) => return batch,
                    None => said.await,
                }
            }
        };
        if let Ok(batch) = timeout(wait, answer).await {
            return Ok(batch);
        }
        let state = self.state.lock();
        match position {
            Some(_) if !state.is_cut => Ok(Batch {
                stream: state.name.into(),
                messages: Vec::new(),
                end: Some(state.end),
            }),
            _ => Err(Error::new(ErrorKind::Unavailable, "the wire is cut")),
        }
    }
}

struct End(Arc<Wire>);

impl Invalidations for End {
    fn after<'a>(
        &'a mut self,
        position: Option<&'a Position>,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Batch>> {
        Box::pin(self.0.ask(position, wait))
    }
}

fn bound(staleness_max: Duration) -> FollowOptions {
    FollowOptions { staleness_max }
}

/// A cache that follows a wire, is believed, and has `a` and `b`.
async fn following(shop: &Arc<Shop>, wire: &Arc<Wire>) -> Cache {
    let cache = local(
        shop,
        CacheOptions {
            local_ttl: Duration::from_secs(3600),
            ttl: Duration::from_secs(3600),
            ..options()
        },
    );
    cache
        .follow(End(wire.clone()), bound(BOUND))
        .expect("follows");
    soon("the first answer", || cache.is_local_believed()).await;
    for key in ["a", "b"] {
        shop.set(key, Some("old"));
        assert_eq!(value(&cache, key).await.as_deref(), Some("old"));
    }
    cache
}

fn wrote(key: &'static str) -> Told {
    Told::Key(key.into(), Invalidation::Unknown)
}

async fn tier_of(cache: &Cache, key: &str) -> Origin {
    cache.get(key, Level::Any).await.expect("reads").tier
}

#[tokio::test(start_paused = true)]
async fn follow_hears_of_a_write_and_drops_that_key_alone() {
    let (shop, wire) = (Shop::new(), Wire::new());
    let cache = following(&shop, &wire).await;
    shop.set("a", Some("new"));
    wire.tell(wrote("a"));
    soon("it is heard", || cache.stats().heard == 1).await;
    assert_eq!(value(&cache, "a").await.as_deref(), Some("new"));
    assert_eq!(tier_of(&cache, "b").await, Origin::Local);
    assert_eq!(cache.stats().gaps, 1, "the beginning");
}

#[tokio::test(start_paused = true)]
async fn follow_that_is_cut_off_is_not_believed_past_its_bound_and_goes_on_where_it_was() {
    let (shop, wire) = (Shop::new(), Wire::new());
    let cache = following(&shop, &wire).await;
    wire.cut(true);
    shop.set("a", Some("new"));
    wire.tell(wrote("a"));
    advance(BOUND / 2).await;
    assert_eq!(
        tier_of(&cache, "a").await,
        Origin::Local,
        "within the bound"
    );
    advance(BOUND / 2).await;
    assert!(!cache.is_local_believed());
    let read = cache.get("b", Level::Any).await.expect("reads");
    assert_eq!(read.tier, Origin::Source);
    assert_eq!(value(&cache, "a").await.as_deref(), Some("new"));
    assert!(cache.stats().unproven_reads >= 2);
    soon("a question fails", || cache.stats().follow_failures > 0).await;
    wire.cut(false);
    soon("it is proven again", || cache.is_local_believed()).await;
    assert_eq!(tier_of(&cache, "b").await, Origin::Local);
    assert_eq!(cache.stats().gaps, 1, "nothing was missed");
}

/// What a cache that was cut off reads after something else happened to the stream.
async fn read_after(happens: impl FnOnce(&mut State)) -> (Option<String>, u64) {
    let (shop, wire) = (Shop::new(), Wire::new());
    let cache = following(&shop, &wire).await;
    for _ in 0..3 {
        wire.tell(wrote("b"));
    }
    soon("it is heard", || cache.stats().heard == 3).await;
    wire.cut(true);
    shop.set("a", Some("new"));
    wire.tell(wrote("a"));
    wire.change(happens);
    advance(BOUND * 2).await;
    wire.cut(false);
    soon("it is proven again", || cache.is_local_believed()).await;
    (value(&cache, "a").await, cache.stats().gaps)
}

/// The same with a bug planted.
async fn read_after_with(bug: Bug, happens: impl FnOnce(&mut State)) -> Option<String> {
    planted::plant(Some(bug));
    let found = read_after(happens).await.0;
    planted::plant(None);
    found
}

#[tokio::test(start_paused = true)]
async fn follow_that_missed_messages_drops_what_it_had() {
    let lost = |state: &mut State| {
        state.end += 1;
        let number = state.end;
        state.messages.clear();
        state.messages.push(Message {
            number,
            told: Told::Nothing,
        });
    };
    let new = Some("new".to_owned());
    assert_eq!(read_after(lost).await, (new, 2));
    let found = read_after_with(Bug::FeedIgnoresGaps, lost).await;
    assert_eq!(found.as_deref(), Some("old"), "the guard has teeth");
}

#[tokio::test(start_paused = true)]
async fn follow_whose_stream_begins_anew_drops_what_it_had() {
    let anew = |state: &mut State| {
        state.name = "two";
        state.messages.clear();
        state.end = 3;
    };
    let new = Some("new".to_owned());
    assert_eq!(read_after(anew).await, (new, 2));
    let found = read_after_with(Bug::FeedIgnoresTheStream, anew).await;
    assert_eq!(found.as_deref(), Some("old"), "the guard has teeth");
}

#[tokio::test(start_paused = true)]
async fn follow_of_what_cannot_be_read_drops_everything() {
    let (shop, wire) = (Shop::new(), Wire::new());
    let cache = following(&shop, &wire).await;
    shop.set("a", Some("new"));
    wire.tell(Told::All);
    soon("it is heard", || cache.local_bytes() == 0).await;
    assert_eq!(value(&cache, "a").await.as_deref(), Some("new"));
}

#[tokio::test(start_paused = true)]
async fn follow_before_its_first_answer_reads_nothing_that_was_there() {
    let (shop, wire) = (Shop::new(), Wire::new());
    wire.cut(true);
    let cache = local(&shop, options());
    shop.set("a", Some("old"));
    value(&cache, "a").await;
    cache
        .follow(End(wire.clone()), bound(BOUND))
        .expect("follows");
    shop.set("a", Some("new"));
    assert_eq!(value(&cache, "a").await.as_deref(), Some("new"));
    shop.set("a", Some("newest"));
    wire.cut(false);
    soon("it is proven", || cache.is_local_believed()).await;
    assert_eq!(value(&cache, "a").await.as_deref(), Some("newest"));
}

/// What one reads who comes while it is not proven what others wrote, and a load is under way from before.
async fn read_beside_an_old_load() -> Option<String> {
    let (shop, wire) = (Shop::new(), Wire::new());
    let cache = following(&shop, &wire).await;
    shop.set("c", Some("old"));
    shop.hold();
    let before = shop.loads();
    let early = tokio::spawn({
        let cache = cache.clone();
        async move { value(&cache, "c").await }
    });
    shop.loads_reach(before + 1).await;
    wire.cut(true);
    shop.set("c", Some("new"));
    wire.tell(wrote("c"));
    advance(BOUND * 2).await;
    let late = tokio::spawn({
        let cache = cache.clone();
        async move { value(&cache, "c").await }
    });
    soon("it waits", || cache.flights() == 1 && !late.is_finished()).await;
    sleep(Duration::from_millis(1)).await;
    shop.release();
    assert_eq!(early.await.expect("reads").as_deref(), Some("old"));
    late.await.expect("reads")
}

#[tokio::test(start_paused = true)]
async fn follow_that_is_cut_off_joins_no_load_of_before() {
    assert_eq!(read_beside_an_old_load().await.as_deref(), Some("new"));
    planted::plant(Some(Bug::UnprovenIsJoined));
    let found = read_beside_an_old_load().await;
    planted::plant(None);
    assert_eq!(found.as_deref(), Some("old"), "the guard has teeth");
}

#[tokio::test(start_paused = true)]
async fn follow_of_two_streams_needs_both() {
    let (shop, one, two) = (Shop::new(), Wire::new(), Wire::new());
    let cache = following(&shop, &one).await;
    two.cut(true);
    cache
        .follow(End(two.clone()), bound(BOUND))
        .expect("follows");
    assert!(!cache.is_local_believed());
    two.cut(false);
    soon("both are heard", || cache.is_local_believed()).await;
    one.cut(true);
    advance(BOUND + Duration::from_millis(300)).await;
    assert!(!cache.is_local_believed());
}

#[tokio::test(start_paused = true)]
async fn follow_without_a_bound_serves_on_when_it_is_cut_off() {
    let (shop, wire) = (Shop::new(), Wire::new());
    let cache = local(&shop, options());
    cache
        .follow(End(wire.clone()), bound(Duration::MAX))
        .expect("follows");
    soon("the first answer", || cache.is_local_believed()).await;
    shop.set("a", Some("1"));
    value(&cache, "a").await;
    wire.cut(true);
    advance(Duration::from_secs(30)).await;
    assert_eq!(tier_of(&cache, "a").await, Origin::Local);
}

#[tokio::test]
async fn follow_ends_with_its_cache() {
    let (shop, wire) = (Shop::new(), Wire::new());
    let cache = local(&shop, options());
    let brief = bound(Duration::from_millis(4));
    cache.follow(End(wire.clone()), brief).expect("follows");
    assert_eq!(Arc::strong_count(&wire), 2);
    drop(cache);
    until("it ends", || Arc::strong_count(&wire) == 1).await;
}

#[test]
fn follow_outside_of_a_runtime_is_invalid() {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let cache = runtime
        .expect("a runtime")
        .block_on(async { local(&Shop::new(), options()) });
    let failed = cache.follow(End(Wire::new()), bound(BOUND));
    assert_eq!(failed.expect_err("is refused").kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn follow_with_a_bound_of_nothing_is_invalid() {
    let cache = local(&Shop::new(), options());
    let failed = cache.follow(End(Wire::new()), bound(Duration::ZERO));
    assert_eq!(failed.expect_err("is refused").kind(), ErrorKind::Invalid);
    assert!(cache.is_local_believed());
}
