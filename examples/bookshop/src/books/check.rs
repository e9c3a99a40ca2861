//! The check: what must hold once all orders have come to their end.

use std::collections::BTreeMap;

use quorate_saga::Status;

use super::{Books, money};
use crate::catalogue::{BOOKS, CUSTOMERS, OPENING_CENTS, TILL};

impl Books {
    /// All that is wrong, for people. None: at least so many orders came to their end, whole or undone, and nothing was lost,
    /// made, or done twice.
    pub fn faults(&self, orders: usize) -> Vec<String> {
        let mut faults = Vec::new();
        self.sagas_ended(orders, &mut faults);
        self.money_is_there(&mut faults);
        self.copies_are_there(&mut faults);
        self.parcels_are_orders(&mut faults);
        self.mails_are_news(&mut faults);
        faults
    }

    fn in_state(&self, state: &str) -> impl Iterator<Item = (&String, &super::Ordered)> {
        self.orders
            .iter()
            .filter(move |(_, order)| order.state == state)
    }

    /// Every saga has ended, and its order says the same.
    fn sagas_ended(&self, orders: usize, faults: &mut Vec<String>) {
        if self.sagas.len() < orders {
            faults.push(format!("{} sagas for {orders} orders", self.sagas.len()));
        }
        for (id, (status, _)) in &self.sagas {
            let state = self.orders.get(id).map(|order| order.state.as_str());
            let fits = match status {
                Status::Completed => state == Some("shipped"),
                // Without an order if it could not even be placed.
                Status::Compensated => matches!(state, Some("failed") | None),
                _ => {
                    faults.push(format!("{id}: its saga is {status:?}"));
                    continue;
                }
            };
            if !fits {
                let state = state.unwrap_or("not there");
                faults.push(format!("{id} is {state}, its saga {status:?}"));
            }
        }
        let strays = self
            .orders
            .keys()
            .filter(|id| !self.sagas.contains_key(*id));
        faults.extend(strays.map(|id| format!("{id} has no saga")));
    }

    /// Each customer paid what was shipped to them, the till has it, and nothing is held.
    fn money_is_there(&self, faults: &mut Vec<String>) {
        let opening = CUSTOMERS.map(|name| (name.to_owned(), OPENING_CENTS));
        let mut wanted = BTreeMap::from(opening);
        let mut till = 0;
        for (_, order) in self.in_state("shipped") {
            *wanted.entry(order.customer.clone()).or_default() -= order.cents;
            till += order.cents;
        }
        wanted.insert(TILL.to_owned(), till);
        for (name, cents) in differences(&wanted, &self.accounts) {
            let (is, should) = (money(cents.0), money(cents.1));
            faults.push(format!("{name} has {is}, and should have {should}"));
        }
        for (id, cents) in &self.holds {
            faults.push(format!("{id}: {} is still held", money(*cents)));
        }
    }

    /// What is not on the shelf any more was shipped, and nothing is set aside.
    fn copies_are_there(&self, faults: &mut Vec<String>) {
        let opening = BOOKS.map(|(title, _, copies)| (title.to_owned(), copies));
        let mut wanted = BTreeMap::from(opening);
        for (_, order) in self.in_state("shipped") {
            *wanted.entry(order.title.clone()).or_default() -= order.copies;
        }
        for (title, copies) in differences(&wanted, &self.shelves) {
            let (is, should) = copies;
            faults.push(format!(
                "{title}: {is} on the shelf, and should be {should}"
            ));
        }
        for (id, copies) in &self.reserved {
            faults.push(format!("{id}: {copies} copies are still set aside"));
        }
    }

    /// A parcel for each order that was shipped, with what was ordered.
    fn parcels_are_orders(&self, faults: &mut Vec<String>) {
        let sent = self.parcels.iter();
        let sent = counted(sent.map(|(id, title, copies)| (id, title, *copies)));
        let ordered = self.in_state("shipped");
        let ordered = counted(ordered.map(|(id, o)| (id, &o.title, o.copies)));
        for ((id, title, copies), (is, should)) in differences(&ordered, &sent) {
            let text = format!("{is} parcels with {copies} copies of {title}");
            faults.push(format!("{id}: {text}, and should be {should}"));
        }
    }

    /// One mail that an order was placed, and one that it was shipped or failed.
    fn mails_are_news(&self, faults: &mut Vec<String>) {
        let written = counted(self.mails.iter().map(|(id, news)| (id, news.as_str())));
        let orders = self.orders.iter();
        let news = orders.flat_map(|(id, order)| [(id, "placed"), (id, order.state.as_str())]);
        for ((id, news), (is, should)) in differences(&counted(news), &written) {
            faults.push(format!("{id}: {is} mails `{news}`, and should be {should}"));
        }
    }
}

fn counted<K: Ord>(all: impl Iterator<Item = K>) -> BTreeMap<K, i64> {
    let mut counts = BTreeMap::new();
    for one in all {
        *counts.entry(one).or_default() += 1;
    }
    counts
}

/// What is not as it should be: what is there, and what should be.
fn differences<K: Ord + Clone>(
    wanted: &BTreeMap<K, i64>,
    found: &BTreeMap<K, i64>,
) -> Vec<(K, (i64, i64))> {
    let mut names: Vec<&K> = wanted.keys().chain(found.keys()).collect();
    names.sort();
    names.dedup();
    let of = |all: &BTreeMap<K, i64>, name| all.get(name).copied().unwrap_or(0);
    let both = names
        .into_iter()
        .map(|name| (name, of(found, name), of(wanted, name)));
    both.filter(|(_, is, should)| is != should)
        .map(|(name, is, should)| (name.clone(), (is, should)))
        .collect()
}
