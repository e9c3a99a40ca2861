//! The memory implementation passes the suite; tokens and error numbers keep their form.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use crate::conformance::{Suite, run};
use crate::memory::MemoryKv;
use crate::{Domain, ErrorKind, Outcome, Token};

const DOMAIN: Domain = Domain {
    cluster: 1,
    namespace: 2,
    incarnation: 3,
};

/// Runs a future that never waits.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    match future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the memory store never waits"),
    }
}

#[test]
fn memory_passes_the_conformance_suite() {
    let kv = MemoryKv::new(DOMAIN);
    block_on(run(&kv, &Suite::new("suite")));
}

#[test]
fn token_string_round_trips_and_junk_is_refused() {
    let token = Token {
        domain: DOMAIN,
        version: 77,
    };
    assert_eq!(Token::parse(&token.to_string()), Ok(token));
    for junk in ["", "0", "zz", "01", "é", &format!("{token}00")] {
        assert!(Token::parse(junk).is_err(), "{junk}");
    }
}

#[test]
fn error_numbers_round_trip_and_unknown_ones_are_safe() {
    for kind in ErrorKind::ALL {
        assert_eq!(ErrorKind::from_code(kind.code()), kind);
    }
    assert_eq!(ErrorKind::from_code(0), ErrorKind::Internal);
    assert_eq!(ErrorKind::from_code(999), ErrorKind::Internal);
    assert_eq!(Outcome::from_code(9), Outcome::Unknown);
}
