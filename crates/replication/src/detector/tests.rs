//! When a peer counts as silent, by a clock of the test's own.

use super::*;

const PEER: NodeId = 2;
const ROUND_TRIP: Duration = Duration::from_millis(1);
/// Asks every 25 ms.
const TIMING: Timing = Timing {
    silence_min: Duration::from_millis(100),
    ..Timing::FAST
};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

struct Watched {
    detector: Detector,
    now: Instant,
}

impl Watched {
    /// One peer, not heard yet.
    fn new() -> Watched {
        let detector = Detector::new(TIMING);
        detector.watch(&BTreeSet::from([PEER]));
        Watched {
            detector,
            now: Instant::now(),
        }
    }

    /// Time passes in steps of 5 ms, and the peer answers each `every` of it. Whether it was ever called silent.
    fn answers_for(&mut self, time: Duration, every: Duration) -> bool {
        let end = self.now + time;
        let mut next = self.now;
        let mut fell = false;
        while self.now < end {
            if self.now >= next {
                self.detector.answered(PEER, self.now, ROUND_TRIP);
                next = self.now + every;
            }
            self.now += ms(5);
            fell |= !self
                .detector
                .fell_silent(self.now, Duration::ZERO)
                .is_empty();
        }
        fell
    }

    /// How long it takes until the peer counts as silent from now on.
    fn silence(&mut self) -> Option<Duration> {
        let began = self.now;
        while self.now < began + ms(5000) {
            self.now += ms(1);
            if self.detector.fell_silent(self.now, Duration::ZERO) == [PEER] {
                assert!(self.detector.is_silent(PEER));
                return Some(self.now - began);
            }
        }
        None
    }
}

#[test]
fn detector_peer_that_answers_well_is_silent_soon_after() {
    let mut watched = Watched::new();
    assert!(!watched.answers_for(ms(5000), ms(25)));
    let silence = watched.silence().expect("it is silent");
    assert!(silence <= ms(138), "{silence:?}");
    assert_eq!(watched.detector.next_look(), None);
    watched
        .detector
        .answered(PEER, watched.now, Duration::from_millis(9));
    assert!(!watched.detector.is_silent(PEER));
    assert_eq!(watched.detector.round_trip(), ms(2));
}

#[test]
fn detector_restless_peer_is_borne_three_times_its_usual_silence_until_it_is_calm() {
    let mut watched = Watched::new();
    watched.answers_for(ms(5000), ms(25));
    // On a busy machine one answer in forty takes as long as 90 ms.
    for _ in 0..20 {
        assert!(!watched.answers_for(ms(1000), ms(25)));
        assert!(!watched.answers_for(ms(90), ms(90)));
    }
    watched.answers_for(ms(25), ms(25));
    let silence = watched.silence().expect("it is silent");
    assert!((ms(255)..=ms(335)).contains(&silence), "{silence:?}");
    // What was long ago counts no more.
    watched.answers_for(ms(61_000), ms(25));
    let silence = watched.silence().expect("it is silent");
    assert!(silence <= ms(138), "{silence:?}");
}

#[test]
fn detector_never_bears_more_than_the_longest_election_time() {
    let mut watched = Watched::new();
    watched.answers_for(ms(60_000), ms(400));
    let silence = watched.silence().expect("it is silent");
    assert!(silence <= TIMING.election_max + ms(1), "{silence:?}");
}

#[test]
fn detector_peer_that_was_away_once_is_not_called_restless() {
    let mut watched = Watched::new();
    watched.answers_for(ms(5000), ms(25));
    for away in [150, 2000, 300] {
        let silence = watched.silence().expect("it is silent");
        assert!(silence <= ms(138), "{silence:?}");
        watched.now += ms(away);
        watched.answers_for(ms(7000), ms(25));
    }
}

#[test]
fn detector_that_stood_still_itself_blames_nobody() {
    let mut watched = Watched::new();
    watched.answers_for(ms(5000), ms(25));
    watched.now += ms(3000);
    assert_eq!(watched.detector.fell_silent(watched.now, ms(2995)), []);
    // Then the peer has the usual time.
    let silence = watched.silence().expect("it is silent");
    assert!(silence >= ms(60), "{silence:?}");
}

#[test]
fn detector_does_not_judge_whom_it_hardly_knows() {
    let mut watched = Watched::new();
    assert_eq!(watched.silence(), None);
    watched.answers_for(ms(500), ms(25));
    assert!(watched.silence().is_some_and(|silence| silence > ms(1000)));
    // One that is no peer any more is forgotten.
    watched.detector.watch(&BTreeSet::new());
    assert!(!watched.detector.is_silent(PEER));
    watched.detector.answered(PEER, watched.now, ROUND_TRIP);
    assert!(watched.detector.peers().is_empty());
}

#[test]
fn detector_without_a_shortest_silence_asks_nobody() {
    let timing = Timing {
        silence_min: Duration::ZERO,
        ..TIMING
    };
    assert_eq!(Detector::new(timing).interval(), None);
}
