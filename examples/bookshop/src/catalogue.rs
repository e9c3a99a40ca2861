//! What the shop opens with, and what its customers order: always the same.

use quorate_outbox::inbox::Failure;
use quorate_saga::message::Command;
use serde::{Deserialize, Serialize};

/// Titles, their prices in cents, and copies on the shelf at the opening.
pub const BOOKS: [(&str, i64, i64); 6] = [
    ("Moby-Dick", 1_800, 60),
    ("Middlemarch", 1_650, 60),
    ("Emma", 990, 90),
    ("Dead Souls", 1_400, 80),
    ("Walden", 1_120, 80),
    ("Dracula", 1_280, 90),
];

/// Customers, each with so much on account at the opening.
pub const CUSTOMERS: [&str; 10] = [
    "ada", "basil", "clara", "dorian", "emil", "frieda", "gustav", "hedda", "ivan", "jane",
];
/// In cents.
pub const OPENING_CENTS: i64 = 60_000;
/// The account of the shop itself, empty at the opening.
pub const TILL: &str = "the bookshop";

/// What is ordered: the input of the saga, and of each of its steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Who orders.
    pub customer: String,
    /// Which book.
    pub title: String,
    /// How many copies.
    pub copies: i64,
    /// What they cost together.
    pub cents: i64,
}

impl Order {
    /// The order with this number.
    pub fn number(number: usize) -> Order {
        let dice = scatter(number as u64);
        let pick = |shift: u32, of: usize| (dice >> shift) as usize % of;
        let (title, price, _) = BOOKS[pick(0, BOOKS.len())];
        let copies = 1 + pick(16, 3) as i64;
        Order {
            customer: CUSTOMERS[pick(32, CUSTOMERS.len())].to_owned(),
            title: title.to_owned(),
            copies,
            cents: copies * price,
        }
    }

    /// The name of the order with this number: the key of its saga.
    pub fn id(number: usize) -> String {
        format!("order-{number}")
    }

    /// Whether the customer of this one thinks better of it at once.
    pub fn is_withdrawn(number: usize) -> bool {
        number % 20 == 7
    }

    /// The order that a command is about. A command that has none will not get better: it is set aside.
    pub fn of(command: &Command) -> Result<Order, Failure> {
        let read = serde_json::from_value(command.input.clone());
        read.map_err(|e| Failure::last(format!("the input of {} is no order: {e}", command.key)))
    }
}

/// Bits that depend on the number alone (splitmix64).
pub fn scatter(number: u64) -> u64 {
    let mut z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
