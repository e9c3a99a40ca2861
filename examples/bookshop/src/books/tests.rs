//! The check has teeth: books that balance pass, and each kind of fault is found.

use quorate_saga::Status;

use super::{Books, Ordered};
use crate::catalogue::{BOOKS, CUSTOMERS, OPENING_CENTS, TILL};

fn order(customer: &str, state: &str) -> Ordered {
    Ordered {
        customer: customer.into(),
        title: "Emma".into(),
        copies: 2,
        cents: 1_980,
        state: state.into(),
    }
}

/// Two orders: `a` was shipped to ada, `b` of basil has failed.
fn good() -> Books {
    let mut books = Books::default();
    for customer in CUSTOMERS {
        books.accounts.insert(customer.into(), OPENING_CENTS);
    }
    for (title, _, copies) in BOOKS {
        books.shelves.insert(title.into(), copies);
    }
    books.accounts.insert("ada".into(), OPENING_CENTS - 1_980);
    books.accounts.insert(TILL.into(), 1_980);
    *books.shelves.get_mut("Emma").expect("it is there") -= 2;
    books.parcels.push(("a".into(), "Emma".into(), 2));
    books.orders.insert("a".into(), order("ada", "shipped"));
    books.orders.insert("b".into(), order("basil", "failed"));
    let why = Some("basil is short of money".to_owned());
    books.sagas.insert("a".into(), (Status::Completed, None));
    books.sagas.insert("b".into(), (Status::Compensated, why));
    for (id, news) in [
        ("a", "placed"),
        ("b", "placed"),
        ("b", "failed"),
        ("a", "shipped"),
    ] {
        books.mails.push((id.into(), news.into()));
    }
    books
}

fn faults(change: impl FnOnce(&mut Books)) -> Vec<String> {
    let mut books = good();
    change(&mut books);
    books.faults(2)
}

#[test]
fn books_that_balance_have_no_faults() {
    assert_eq!(good().faults(2), Vec::<String>::new());
}

#[test]
fn books_with_money_lost_made_or_held_are_refused() {
    let lost = faults(|books| *books.accounts.get_mut("ada").expect("there") -= 1);
    assert_eq!(lost, ["ada has 580.19, and should have 580.20"]);
    let made = faults(|books| *books.accounts.get_mut(TILL).expect("there") += 1);
    assert_eq!(made, ["the bookshop has 19.81, and should have 19.80"]);
    let held = faults(|books| books.holds.push(("b".into(), 1_980)));
    assert_eq!(held, ["b: 19.80 is still held"]);
    // The sum is right, the customers are not.
    let moved = faults(|books| {
        *books.accounts.get_mut("ada").expect("there") += 5;
        *books.accounts.get_mut("basil").expect("there") -= 5;
    });
    assert_eq!(moved.len(), 2, "{moved:?}");
}

#[test]
fn books_with_copies_lost_set_aside_or_sent_twice_are_refused() {
    let lost = faults(|books| *books.shelves.get_mut("Walden").expect("there") -= 1);
    assert_eq!(lost, ["Walden: 79 on the shelf, and should be 80"]);
    let aside = faults(|books| books.reserved.push(("b".into(), 2)));
    assert_eq!(aside, ["b: 2 copies are still set aside"]);
    let twice = faults(|books| books.parcels.push(("a".into(), "Emma".into(), 2)));
    assert_eq!(
        twice,
        ["a: 2 parcels with 2 copies of Emma, and should be 1"]
    );
    let never = faults(|books| books.parcels.clear());
    assert_eq!(
        never,
        ["a: 0 parcels with 2 copies of Emma, and should be 1"]
    );
}

#[test]
fn books_with_mails_missing_doubled_or_untrue_are_refused() {
    let missing = faults(|books| drop(books.mails.pop()));
    assert_eq!(missing, ["a: 0 mails `shipped`, and should be 1"]);
    let doubled = faults(|books| books.mails.push(("b".into(), "failed".into())));
    assert_eq!(doubled, ["b: 2 mails `failed`, and should be 1"]);
    let untrue = faults(|books| books.mails.push(("b".into(), "shipped".into())));
    assert_eq!(untrue, ["b: 1 mails `shipped`, and should be 0"]);
}

#[test]
fn books_with_sagas_open_stuck_missing_or_at_odds_are_refused() {
    for status in [Status::Running, Status::Compensating, Status::Stuck] {
        let open = faults(|books| drop(books.sagas.insert("b".into(), (status, None))));
        assert_eq!(open, [format!("b: its saga is {status:?}")]);
    }
    let odd = faults(|books| drop(books.sagas.insert("b".into(), (Status::Completed, None))));
    assert_eq!(odd, ["b is failed, its saga Completed"]);
    let missing = faults(|books| drop(books.sagas.remove("b")));
    assert_eq!(missing, ["1 sagas for 2 orders", "b has no saga"]);
    let half = faults(|books| {
        books.orders.insert("b".into(), order("basil", "accepted"));
    });
    assert_eq!(half.len(), 3, "{half:?}");
}
