//! Tokens, positions and the choice of a replica, without a database.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::route::{Need, View, Watermarks, choose};
use crate::token::{parse_lsn, record_end};
use crate::transaction::{Backoff, Work};
use crate::{ErrorKind, Position, Token};

fn at(timeline: u32, lsn: u64) -> Position {
    Position {
        system: 7,
        timeline,
        lsn,
    }
}

#[test]
fn token_that_cannot_be_read_says_what_is_wrong() {
    for (text, said) in [
        ("", "4 parts"),
        ("pg1.7.1", "4 parts"),
        ("pg2.0000000000000007.1.ff", "\"pg2\" is not known"),
        ("pg1.zz.1.ff", "system"),
        ("pg1.7.100000000.ff", "past 32 bits"),
        ("pg1.7.+1.ff", "timeline"),
        ("pg1.7.1.", "position"),
        ("pg1.7.1.11112222333344445", "position"),
    ] {
        let error = text.parse::<Token>().expect_err(text);
        assert_eq!(error.kind(), ErrorKind::Invalid, "{text}");
        assert!(error.message().contains(said), "{text}: {error}");
    }
}

#[test]
fn token_of_another_timeline_or_system_is_never_reached() {
    let far = at(2, u64::MAX);
    assert!(!far.reaches(&at(1, 0)) && !at(1, u64::MAX).reaches(&at(2, 0)));
    assert!(!Position { system: 8, ..far }.reaches(&far));
    assert!(at(1, 5).reaches(&at(1, 5)) && !at(1, 4).reaches(&at(1, 5)));
}

#[test]
fn record_end_steps_back_over_page_headers() {
    const PAGE: u64 = 8192;
    const SEGMENT: u64 = 16 << 20;
    let end = |lsn| record_end(lsn, PAGE, SEGMENT);
    assert_eq!(end(3 * PAGE + 24), 3 * PAGE, "behind a page's header");
    assert_eq!(
        end(2 * SEGMENT + 40),
        2 * SEGMENT,
        "behind a segment's header"
    );
    for lsn in [3 * PAGE, 3 * PAGE + 32, 3 * PAGE + 40, 2 * SEGMENT + 48] {
        assert_eq!(end(lsn), lsn, "the end of a record");
    }
    assert_eq!(parse_lsn("16/B374D848"), Some(0x16_b374_d848));
    assert_eq!(parse_lsn("16"), None);
}

#[test]
fn backoff_doubles_to_its_limit_with_jitter() {
    let work = Work::default();
    let mut waits = Backoff::new(&work);
    let mut nominal = work.wait_min;
    for drawn in [0, 999, 500, 1, 2, 3, 4, 5, 6, 7] {
        let wait = waits.next(drawn);
        assert!(
            wait >= nominal / 2 && wait <= nominal,
            "{wait:?} of {nominal:?}"
        );
        nominal = (nominal * 2).min(work.wait_max);
    }
    assert_eq!(nominal, work.wait_max);
}

#[test]
fn watermarks_of_an_idle_primary_make_no_replica_old() {
    let begun = Instant::now();
    let mut marks = Watermarks::default();
    // Nothing is written for an hour; the replica has had all from the start.
    let mut last = begun;
    for second in 0..3600 {
        last = begun + Duration::from_secs(second);
        marks.add(last, at(1, 1000));
    }
    assert_eq!(marks.fresh_as_of(&at(1, 1000)), Some(last));
    assert_eq!(marks.fresh_as_of(&at(1, 999)), None, "it lacks one byte");
    assert_eq!(marks.fresh_as_of(&at(2, 1000)), None, "another timeline");
}

prop_compose! {
    fn a_view(now: Instant)(
        serving in any::<bool>(),
        position in proptest::option::of((1u32..3, 0u64..4)),
        fresh in proptest::option::of(0u64..100),
        since in proptest::option::of(0u64..100),
        in_use in 0usize..3,
    ) -> View {
        View {
            serving,
            position: position.map(|(timeline, lsn)| at(timeline, lsn)),
            fresh: fresh.map(|ms| now + Duration::from_millis(ms)),
            since: since.map(|ms| now + Duration::from_millis(ms)),
            in_use,
        }
    }
}

proptest! {
    #[test]
    fn token_string_form_goes_round(system: u64, timeline: u32, lsn: u64) {
        let token = Token::new(Position { system, timeline, lsn });
        prop_assert_eq!(token.to_string().parse::<Token>().expect("reads"), token);
    }

    #[test]
    fn token_parser_survives_any_text(text in ".{0,60}") {
        let _ = text.parse::<Token>();
    }

    #[test]
    fn route_chooses_the_least_used_of_those_that_meet_the_need(
        views in Just(Instant::now()).prop_flat_map(|now| proptest::collection::vec(a_view(now), 0..5)),
        which in 0usize..4,
        turn: usize,
        timeline in 1u32..3,
        lsn in 0u64..4,
    ) {
        let needs = [
            Need::Serving,
            Need::Settled,
            Need::Fresh(Instant::now() + Duration::from_millis(50)),
            Need::Reached(at(timeline, lsn)),
        ];
        let need = needs[which];
        let meeting: Vec<usize> = (0..views.len()).filter(|i| views[*i].meets(&need)).collect();
        match choose(&need, &views, turn) {
            None => prop_assert!(meeting.is_empty()),
            Some(chosen) => {
                prop_assert!(meeting.contains(&chosen), "{:?}", views[chosen]);
                let least = meeting.iter().map(|i| views[*i].in_use).min();
                prop_assert_eq!(Some(views[chosen].in_use), least);
            }
        }
    }

    #[test]
    fn route_never_serves_a_token_by_less(
        views in Just(Instant::now()).prop_flat_map(|now| proptest::collection::vec(a_view(now), 0..5)),
        turn: usize, timeline in 1u32..3, lsn in 0u64..4,
    ) {
        if let Some(chosen) = choose(&Need::Reached(at(timeline, lsn)), &views, turn) {
            let view = views[chosen];
            let position = view.position.expect("a proved position");
            prop_assert!(view.serving && position.timeline == timeline && position.lsn >= lsn);
        }
    }

    /// Against the whole history: what is called fresh as of an instant holds all of before it.
    #[test]
    fn watermarks_never_call_a_replica_fresher_than_it_is(
        steps in proptest::collection::vec((1u64..50, 0u64..3), 1..1500),
        replayed in 0u64..1500,
    ) {
        let begun = Instant::now();
        let mut marks = Watermarks::default();
        let mut history = Vec::new();
        let (mut time, mut lsn) = (0, 0);
        for (passed, written) in steps {
            time += passed;
            lsn += written;
            history.push((begun + Duration::from_millis(time), lsn));
            marks.add(begun + Duration::from_millis(time), at(1, lsn));
        }
        if let Some(fresh) = marks.fresh_as_of(&at(1, replayed)) {
            for (instant, lsn) in &history {
                prop_assert!(*instant > fresh || *lsn <= replayed);
            }
        } else if history.len() < 500 {
            prop_assert!(history[0].1 > replayed);
        }
    }
}
