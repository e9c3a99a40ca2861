//! The suite that every tier passes. It panics where a tier breaks the contract, so it is run from tests. Keys
//! have names of their own, so that it may run beside other work; [`Tier::clear`] is called.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;

use super::Tier;
use crate::core::{Cached, Invalidation, Looked, Mark, Put, Record, TagMarks};
use crate::{Need, Version};

const MINUTE: u64 = 60_000_000;

/// Runs everything.
///
/// # Panics
/// Where the tier breaks the contract.
pub async fn run(tier: &dyn Tier) {
    a_fill_is_installed_and_served_whole(tier).await;
    no_value_is_kept_as_such(tier).await;
    keys_and_values_are_any_bytes(tier).await;
    an_invalidation_without_version_refuses_fills_under_way(tier).await;
    a_floor_refuses_what_is_below(tier).await;
    an_invalidation_below_what_is_there_changes_nothing(tier).await;
    what_is_newer_stays(tier).await;
    what_was_never_registered_is_refused(tier).await;
    clearing_drops_values_and_fills(tier).await;
    for seed in 1..=30 {
        random_steps_agree_with_the_record(tier, seed).await;
    }
}

fn key(what: &str) -> Bytes {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Relaxed);
    format!("suite-{what}-{}-{number}", std::process::id()).into()
}

/// Something seen at a version, that expires in a minute.
fn cached(at: u64, value: Option<&'static [u8]>, n: u64) -> Cached<Bytes> {
    Cached {
        value: value.map(Bytes::from_static),
        version: Version::new(n),
        seen: Version::new(n),
        as_of: Some(at),
        expires: at + MINUTE,
        tags: n.is_multiple_of(2).then_some(TagMarks(u64::MAX - n)),
    }
}

async fn look(tier: &dyn Tier, key: &Bytes) -> Looked<Bytes> {
    tier.look(key).await.expect("looks")
}

async fn put(tier: &dyn Tier, key: &Bytes, mark: Mark, cached: Cached<Bytes>) -> Put {
    tier.put(key, mark, cached).await.expect("puts")
}

async fn invalidate(tier: &dyn Tier, key: &Bytes, invalidation: Invalidation) {
    tier.invalidate(key, invalidation)
        .await
        .expect("invalidates");
}

async fn a_fill_is_installed_and_served_whole(tier: &dyn Tier) {
    let key = key("whole");
    let looked = look(tier, &key).await;
    assert_eq!(looked.cached, None);
    let cached = Cached {
        value: Some(Bytes::from_static(b"one")),
        version: Version { epoch: 3, n: 7 },
        seen: Version {
            epoch: u32::MAX,
            n: u64::MAX,
        },
        as_of: None,
        expires: looked.at + MINUTE,
        tags: Some(TagMarks(u64::MAX)),
    };
    assert_eq!(
        put(tier, &key, looked.mark, cached.clone()).await,
        Put::Stored
    );
    let again = look(tier, &key).await;
    assert_eq!(again.cached, Some(cached));
    assert!(again.at >= looked.at, "time goes on");
}

async fn no_value_is_kept_as_such(tier: &dyn Tier) {
    let key = key("negative");
    let looked = look(tier, &key).await;
    let none = cached(looked.at, None, 4);
    assert_eq!(
        put(tier, &key, looked.mark, none.clone()).await,
        Put::Stored
    );
    assert_eq!(look(tier, &key).await.cached, Some(none));
    let looked = look(tier, &key).await;
    let empty = cached(looked.at, Some(b""), 5);
    assert_eq!(
        put(tier, &key, looked.mark, empty.clone()).await,
        Put::Stored
    );
    assert_eq!(look(tier, &key).await.cached, Some(empty));
}

async fn keys_and_values_are_any_bytes(tier: &dyn Tier) {
    let bytes: Vec<u8> = (0..=255).collect();
    let key = Bytes::from([key("bytes").as_ref(), &bytes].concat());
    let looked = look(tier, &key).await;
    let value = Bytes::from(bytes.repeat(400));
    let cached = Cached {
        value: Some(value),
        ..cached(looked.at, None, 1)
    };
    assert_eq!(
        put(tier, &key, looked.mark, cached.clone()).await,
        Put::Stored
    );
    assert_eq!(look(tier, &key).await.cached, Some(cached));
}

async fn an_invalidation_without_version_refuses_fills_under_way(tier: &dyn Tier) {
    let key = key("unknown");
    let before = look(tier, &key).await;
    invalidate(tier, &key, Invalidation::Unknown).await;
    let late = put(tier, &key, before.mark, cached(before.at, Some(b"old"), 1)).await;
    assert_eq!(late, Put::Overtaken);
    let after = look(tier, &key).await;
    assert_eq!(after.cached, None);
    assert!(after.need.latest, "{after:?}");
    let fresh = cached(after.at, Some(b"new"), 1);
    assert_eq!(put(tier, &key, after.mark, fresh).await, Put::Stored);
    invalidate(tier, &key, Invalidation::Unknown).await;
    assert_eq!(look(tier, &key).await.cached, None);
}

async fn a_floor_refuses_what_is_below(tier: &dyn Tier) {
    let key = key("floor");
    let before = look(tier, &key).await;
    invalidate(tier, &key, Invalidation::At(Version::new(10))).await;
    let late = put(tier, &key, before.mark, cached(before.at, Some(b"old"), 9)).await;
    assert_eq!(late, Put::Overtaken);
    assert_eq!(look(tier, &key).await.need.at_least, Version::new(10));
    let enough = cached(before.at, Some(b"new"), 10);
    assert_eq!(put(tier, &key, before.mark, enough).await, Put::Stored);
    invalidate(tier, &key, Invalidation::At(Version { epoch: 1, n: 2 })).await;
    let after = look(tier, &key).await;
    assert_eq!(
        after.cached, None,
        "an epoch is above all versions of the one before"
    );
    assert_eq!(after.need.at_least, Version { epoch: 1, n: 2 });
}

async fn an_invalidation_below_what_is_there_changes_nothing(tier: &dyn Tier) {
    let key = key("below");
    let looked = look(tier, &key).await;
    let there = cached(looked.at, Some(b"there"), 10);
    assert_eq!(
        put(tier, &key, looked.mark, there.clone()).await,
        Put::Stored
    );
    for n in [9, 10] {
        invalidate(tier, &key, Invalidation::At(Version::new(n))).await;
        assert_eq!(look(tier, &key).await.cached, Some(there.clone()), "at {n}");
    }
    invalidate(tier, &key, Invalidation::At(Version::new(11))).await;
    invalidate(tier, &key, Invalidation::At(Version::new(5))).await;
    let after = look(tier, &key).await;
    assert_eq!(
        (after.cached, after.need.at_least),
        (None, Version::new(11))
    );
}

async fn what_is_newer_stays(tier: &dyn Tier) {
    let key = key("newer");
    let looked = look(tier, &key).await;
    let newer = cached(looked.at, Some(b"newer"), 20);
    assert_eq!(
        put(tier, &key, looked.mark, newer.clone()).await,
        Put::Stored
    );
    let older = cached(looked.at, Some(b"older"), 19);
    assert_eq!(put(tier, &key, looked.mark, older).await, Put::Older);
    assert_eq!(look(tier, &key).await.cached, Some(newer));
    let same = cached(looked.at, Some(b"the same, written anew"), 20);
    assert_eq!(
        put(tier, &key, looked.mark, same.clone()).await,
        Put::Stored
    );
    assert_eq!(look(tier, &key).await.cached, Some(same));
}

async fn what_was_never_registered_is_refused(tier: &dyn Tier) {
    let key = key("never");
    let put = put(tier, &key, Mark(1), cached(0, Some(b"from nowhere"), 1)).await;
    assert_eq!(put, Put::Overtaken);
    assert_eq!(look(tier, &key).await.cached, None);
}

async fn clearing_drops_values_and_fills(tier: &dyn Tier) {
    let (there, filling) = (key("there"), key("filling"));
    let looked = look(tier, &there).await;
    put(tier, &there, looked.mark, cached(looked.at, Some(b"x"), 1)).await;
    let before = look(tier, &filling).await;
    tier.clear().await.expect("clears");
    let after = look(tier, &there).await;
    assert_eq!(after.cached, None);
    assert!(after.need.latest, "what was missed is not known");
    let late = put(
        tier,
        &filling,
        before.mark,
        cached(before.at, Some(b"x"), 1),
    )
    .await;
    assert_eq!(late, Put::Overtaken);
}

/// Steps from a seed on one key, beside a [`Record`] of the core.
async fn random_steps_agree_with_the_record(tier: &dyn Tier, seed: u64) {
    let key = key("random");
    let mut state = seed;
    let mut next = |end: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % end
    };
    let mut model: Record<Bytes> = Record::new(Mark(0), Need::NOTHING);
    let first = look(tier, &key).await;
    let mut known = HashMap::from([(Mark(0), first.mark)]);
    let mut marks = 0;
    for step in 0..40 {
        let here = format!("seed {seed}, step {step}");
        let version = Version::new(next(12));
        match next(4) {
            0 => {
                marks += 1;
                model.invalidate(Invalidation::Unknown, Mark(marks));
                invalidate(tier, &key, Invalidation::Unknown).await;
            }
            1 => {
                model.invalidate(Invalidation::At(version), Mark(u64::MAX));
                invalidate(tier, &key, Invalidation::At(version)).await;
            }
            _ => {
                let mark = Mark(next(marks + 1));
                let value = (next(3) > 0).then_some(&b"value"[..]);
                let cached = cached(first.at, value, version.n);
                if let Some(tiers) = known.get(&mark) {
                    let done = put(tier, &key, *tiers, cached.clone()).await;
                    assert_eq!(done, model.put(mark, Version::ZERO, cached), "{here}");
                }
            }
        }
        let expected = model.look(Version::ZERO, 0);
        let looked = look(tier, &key).await;
        assert_eq!(looked.cached, expected.cached, "{here}");
        assert_eq!(looked.need.at_least, expected.need.at_least, "{here}");
        assert!(looked.need.latest || !expected.need.latest, "{here}");
        let mark = known.entry(expected.mark).or_insert(looked.mark);
        assert_eq!(
            *mark, looked.mark,
            "{here}: a mark stays until it has to go"
        );
    }
    let distinct: std::collections::HashSet<&Mark> = known.values().collect();
    assert_eq!(distinct.len(), known.len(), "seed {seed}: a mark came back");
}
